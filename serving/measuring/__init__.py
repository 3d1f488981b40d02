"""What `ferry bench` is made of: a process per subject, turns, load patterns, tuner and reports."""
