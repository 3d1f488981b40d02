"""This machine: its processor, its installation, and what of it makes trouble."""
