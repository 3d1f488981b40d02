"""The inputs of `ferry predict`, as ordered streams of rows; `inputs.open_inputs` opens them."""
