"""The larger commands of `ferry`, one per file; `pipeline.cli` mounts them."""
