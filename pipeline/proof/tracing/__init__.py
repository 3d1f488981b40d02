"""What a model computes on its way, in PyTorch and in ONNX, so that the two can be compared."""
