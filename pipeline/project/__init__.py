"""What is around the experiments: a project's own folder, and a look at its data."""
