"""Whether rows and answers have moved from the training data: `ferry predict --reference`."""

FIRST_ROWS = 1000
"""How many of a run are looked at where nothing else is said."""
