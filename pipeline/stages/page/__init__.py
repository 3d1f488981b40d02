"""What a person looks at: the results that are there, and what the page makes of them."""
