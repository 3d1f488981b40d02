"""What ONNX Runtime is measured beside: PyTorch in three ways, and MLflow's own way of serving."""
