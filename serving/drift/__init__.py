"""Whether rows and answers have moved from the training data: `ferry predict --reference`.

The bundle stage measures some numbers of each training row, and keeps in the bundle how they are
distributed. A run measures the same of its own rows and says what has moved.
"""
