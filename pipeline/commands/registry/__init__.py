"""The commands of the registry, one per file; `pipeline.cli` mounts them."""
