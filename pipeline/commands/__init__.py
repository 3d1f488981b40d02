"""The commands of `ferry` that need the pipeline, one per file; `pipeline.cli` mounts them."""
