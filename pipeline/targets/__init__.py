"""What a bundle becomes for the place that it goes to: which variant, and which files besides."""
