"""Where a model makes the first value that is no finite number."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["NonFinite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NonFinite:
    """A node that makes NaN or infinities of finite inputs."""

    node: str
    operator: str
    tensor: str
    kind: Literal["NaN", "infinity"]

    def told(self) -> str:
        """The finding in one line."""
        return f"{self.node} ({self.operator}) is the first to make {self.kind}, in {self.tensor}"
