"""What `ferry bundle` is made of: the choice of a variant, its proof, and drift's reference."""
