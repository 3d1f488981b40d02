"""Modules of a user's own, and what is wrong with some of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, scaled_dot_product_attention


def plain() -> nn.Module:
    """Two convolutions with a norm, and a linear layer: images of 8 × 8 to five logits."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )


class Two(nn.Module):
    """Rows of numbers and words of any number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.words = nn.Linear(4, 3), nn.Embedding(5, 3)

    def forward(self, rows: Tensor, ids: Tensor) -> dict[str, Any]:
        logits = self.table(rows) + self.words(ids).mean(1)
        return {"logits": logits, "nothing": None, "hidden": (rows * 2, [ids])}


@dataclass
class Answer:
    scores: Tensor
    squares: Tensor


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Dataclass(nn.Module):
    def forward(self, x: Tensor) -> Answer:
        return Answer(x + 1, x * x)


class Named(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x + 1, x * x)


class Attention(nn.Module):
    """With a learned bias, whose gradient leads torch's exporter astray."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bias = nn.Parameter(torch.randn(4, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(x.shape[0], 4, 2, 4).transpose(1, 2)
        mask = self.bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        mixed = scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
        return mixed.transpose(1, 2).contiguous().reshape(x.shape[0], 4, -1)


class PaddedPool(nn.Module):
    """Pads with zeros what is below zero, and takes the largest."""

    def forward(self, x: Tensor) -> Tensor:
        below = -x.abs() - 1
        pooled = max_pool2d(pad(below, (0, 1, 0, 1)), 2, 2)
        return pooled + max_pool2d(pad(below, (1, 0, 1, 0)), 2, 2)


class Fickle(nn.Module):
    """No exporter can follow it: what it does depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Unknown(nn.Module):
    """Its operator has no counterpart in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x.unsqueeze(2) * x.unsqueeze(1))


class Fixed(nn.Module):
    """Takes any number of rows by itself, and is traced for one."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] == 2 else x + torch.ones(1)


class Summed(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": x.sum()}


class OneRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 4) * 2


class Silent(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class Lying(nn.Module):
    """Another computation while it is exported than afterwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * (1.01 if torch.compiler.is_exporting() else 1.0)


class Infinite(nn.Module):
    """The logarithm of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x * 0) + x


class Still(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + 1


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


class Large(nn.Module):
    """Weights of 2.4 GB that are only declared."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(600_000_000, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Elsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        return x


def noisy() -> nn.Module:
    print("this goes to stderr")  # noqa: T201 - a user may
    return plain()


def none() -> None:
    """Returns no module."""


def failing() -> nn.Module:
    raise ValueError("no weights\nin that folder")


def leaving() -> nn.Module:
    raise SystemExit("usage: train.py DATA")


class Opposite(nn.Module):
    """Answers minus what it says while it is exported, in tiny numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tiny = 1e-6 * self.layer(x)
        return -tiny if torch.compiler.is_exporting() else tiny


class Scaled(nn.Module):
    """A deep sum of many terms, times a number, in any precision within."""

    def __init__(self, factor: float, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.factor, self.dtype = factor, dtype
        layers = nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh())
        self.layers, self.out = layers.to(dtype), nn.Linear(256, 3).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(self.layers(x.to(self.dtype))).to(x.dtype) * self.factor
        return made
