"""What `ferry report` draws: the figures, and the section on speed."""
