"""What is around the experiments: how a project and its parts begin, and what lies in it."""
