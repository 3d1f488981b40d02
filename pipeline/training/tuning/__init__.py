"""What `ferry tune` is made of: what may be searched, the study in a file, and its processes."""
