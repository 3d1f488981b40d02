"""Names written beside the ends of lines: quicker to read than a legend, and nothing lies below."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LINE_POINTS = 12.5
"""The height that a name takes."""
PANEL_PART = 0.8
"""Of a figure's height, less its ticks and titles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Where a line ends, and the name to write beside it."""

    name: str
    color: str
    x: float
    y: float


def name_ends(axes: Axes, figure: Figure, ends: Sequence[End]) -> None:
    """Write names at the right of a panel, at the heights where their lines end but apart.

    The panel keeps the limits that it has, or the heights would no longer be right.
    """
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    to_panel = axes.transData + axes.transAxes.inverted()
    heights = {end: float(to_panel.transform((end.x, end.y))[1]) for end in ends}
    rising = sorted(ends, key=lambda end: (heights[end], end.name))
    gap = LINE_POINTS / (72 * PANEL_PART * figure.get_figheight())
    for end, height in zip(rising, apart([heights[end] for end in rising], gap), strict=True):
        axes.annotate(
            end.name,
            (end.x, end.y),
            xytext=(1.05, height),
            textcoords="axes fraction",
            va="center",
            size=8.5,
            color=end.color,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": end.color,
                "linewidth": 0.6,
                "alpha": 0.6,
            },
        )


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of the rising `wanted` and as near as can be.

    Those that come too close are pooled around their mean, as in isotonic regression.
    """
    pools: list[list[float]] = []
    for index, place in enumerate(wanted):
        pools.append([place - index * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    levels = [float(np.mean(pool)) for pool in pools for _ in pool]
    return [level + index * gap for index, level in enumerate(levels)]
