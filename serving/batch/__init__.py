"""Batch inference, `ferry predict`: an engine that answers chunks, and outputs that lose no row."""
