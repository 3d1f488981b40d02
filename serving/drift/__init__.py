"""Whether rows and answers have moved from the training data: `ferry predict --reference`."""
