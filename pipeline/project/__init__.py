"""What is around the experiments: how a project begins, and what lies in it."""
