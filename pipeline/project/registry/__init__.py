"""What writes to the registry: a new version, the champion, and the way back."""
