"""`ferry bench --tune`: candidates, their screening, and the finals."""
