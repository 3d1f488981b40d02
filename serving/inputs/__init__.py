"""The inputs of `ferry predict`, as ordered streams of rows; `serving.inputs.inputs` opens them.

What cannot be read is an item of the stream as well, so that one broken image does not stop a run
of a million.
"""
