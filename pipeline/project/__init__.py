"""What is around the experiments: how a project and its parts begin."""
