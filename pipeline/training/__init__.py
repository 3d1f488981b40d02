"""What `ferry train` is made of: the loop, its step, and how an interrupted one goes on."""
