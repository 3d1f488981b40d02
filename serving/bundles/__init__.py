"""Bundles: what they hold, how they are opened, and how they are verified."""

from typing import Literal

Target = Literal["cpu", "arm64", "web", "c", "triton"]
"""The kind of place that a bundle is made for."""
