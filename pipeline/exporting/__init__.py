"""Models that ferry did not make: any `torch.nn.Module`, exported and proven the same."""
