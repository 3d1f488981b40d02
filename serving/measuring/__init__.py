"""What `ferry bench` is made of: a process per measured thing, turns, scenarios and records."""
