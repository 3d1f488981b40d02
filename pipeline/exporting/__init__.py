"""Making ONNX files: of a module of PyTorch, and what is changed, promised and checked of them."""
