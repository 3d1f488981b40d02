"""The baselines of a benchmark: PyTorch in three ways, and MLflow's own way of serving."""
