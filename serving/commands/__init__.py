"""The commands of serving, one per file; `serving.cli` mounts them."""
