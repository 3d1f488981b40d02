"""What `ferry quantize` is made of: recipes, how each is applied and judged, and the search."""
