"""`ferry lint`: which runtime and which provider take a model, and where int8 answers alike."""
