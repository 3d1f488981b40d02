"""Muon, an optimizer whose steps are orthogonal: `train.optimizer: muon`.

torch's own takes matrices alone; this one takes the kernels of convolutions as well.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that drives all singular values towards 1, between 0.7 and 1.2 in few steps."""
ITERATIONS = 5
SMALLEST = 1e-7


class Muon(Optimizer):
    """Nesterov's momentum, orthogonalised for every weight that has more than one axis.

    A kernel counts as a matrix of a row for each output. Its step is the nearest matrix whose
    singular values are all alike, so that no direction of the gradient is too weak to be learnt
    (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024). Vectors, such
    as shifts, take the plain step. Weight decay is that of AdamW, and not for vectors.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        """Begin without momentum."""
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Any = None) -> Any:
        """Move each weight once; returns what `closure` does, which computes the gradients."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, settings: Mapping[str, Any]) -> None:
        lr, momentum, state = settings["lr"], settings["momentum"], self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        change = gradient.add(buffer, alpha=momentum)
        if weight.ndim > 1:
            matrix = change.flatten(start_dim=1)
            rows, columns = matrix.shape
            scale = max(1.0, rows / columns) ** 0.5
            change = orthogonal(matrix).view_as(change) * scale
            weight.mul_(1 - lr * settings["weight_decay"])
        weight.add_(change, alpha=-lr)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with singular values of 1, float32 [rows, columns] as `matrix`.

    The quintic iteration of Newton and Schulz, which multiplies matrices alone.
    """
    a, b, c = COEFFICIENTS
    wide: Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found: Tensor = wide / (wide.norm() + SMALLEST)
    for _ in range(ITERATIONS):
        square = found @ found.T
        found = a * found + (b * square + c * square @ square) @ found
    return found if wide is matrix else found.T
