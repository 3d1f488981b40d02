"""What params.yaml says: its records, how it is read, and what is refused."""
