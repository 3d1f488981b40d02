"""The kinds of rows that a data set may have, and all that depends on them asks about."""

from typing import Literal

__all__ = ["Kind"]

Kind = Literal["image", "table", "text"]
"""Raw rows are uint8 [H, W, C], float32 [features] or a string."""
