"""What `ferry predict` is made of: an engine that answers chunks, and outputs that lose nothing.

`serving.batch.predict` joins them. A run that writes to a file goes on where it was
stopped: its shards
are whole or absent, and its manifest lists those that are there.
"""
