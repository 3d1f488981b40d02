"""The baselines of a benchmark: how each is opened, and the process that it is measured in."""
