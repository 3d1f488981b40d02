"""Batch inference, `ferry predict`: an engine that answers chunks, and outputs that lose no row.

`serving.batch.predict` joins them. A run that writes to a file goes on where it was stopped: its
shards are whole or absent, and its manifest lists those that are there.
"""
