"""The optimizers and learning rate schedules of params.yaml, and how their state is laid out.

Each is torch's own; what is decided here is which of its options the settings stand for.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from pipeline.config import TrainConfig

__all__ = ["make_optimizer", "make_scheduler", "match_layouts"]


def make_optimizer(weights: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Make the optimizer that `config` names.

    The fused forms walk all weights at once and read no value back from a GPU, not even where the
    loss is scaled for half precision.
    """
    lr, decay, momentum = config.lr, config.weight_decay, config.momentum
    betas = (momentum, 0.99)
    match config.optimizer:
        case "sgd":
            nesterov = momentum > 0
            return torch.optim.SGD(
                weights, lr, momentum, weight_decay=decay, nesterov=nesterov, fused=True
            )
        case "adam":
            return torch.optim.Adam(weights, lr, betas, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(weights, lr, betas, weight_decay=decay, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(weights, lr, momentum=momentum, weight_decay=decay)
        case "lbfgs":
            return torch.optim.LBFGS(weights, lr, line_search_fn="strong_wolfe")


def make_scheduler(
    optimizer: Optimizer, config: TrainConfig, steps: int
) -> lr_scheduler.LRScheduler:
    """Make the schedule that `config` names, over all `steps` of the training."""
    match config.schedule:
        case "onecycle":
            # One step more than there are: OneCycleLR refuses to be asked after its last one.
            return lr_scheduler.OneCycleLR(
                optimizer, config.lr, total_steps=steps + 1, cycle_momentum=False
            )
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        case "linear":
            return lr_scheduler.LinearLR(optimizer, 1.0, end_factor=0.0, total_iters=steps)
        case "constant":
            return lr_scheduler.ConstantLR(optimizer, 1.0)


def match_layouts(optimizer: Optimizer) -> None:
    """Lay moments out in memory as their weights are.

    A file keeps rows in order and the weights are channels last; torch's fused optimizers walk both
    by address and would pair the wrong elements.
    """
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[key] = torch.empty_like(weight).copy_(value)
