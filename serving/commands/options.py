"""What commands that run models share.

A model that is named by its path, its bundle or the registry; what it may take; and numbers.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from serving.console import Command, PathType
from serving.runtime import guard

if TYPE_CHECKING:
    from pathlib import Path

LEAST_GIB = 0.25
"""The smallest limit of memory: below it libraries do not start, and end without a reason."""


class ModelType(PathType):
    """A path, the name of a bundle in `bundles/`, or models:/NAME@champion."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> "Path":
        """Make a path of what was typed."""
        from serving.bundles.finding import located

        return located(super().convert(value, param, ctx))


MODEL = ModelType()


class FiniteRange(click.FloatRange):
    """A number in a range; click's own takes NaN for one in any, and infinity where it is open."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Make a number of what was typed."""
        number: float = super().convert(value, param, ctx)
        if not abs(number) < float("inf"):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


POSITIVE = FiniteRange(min=0, min_open=True)


def limit_options(command: Command) -> Command:
    """Add `--call-timeout` and `--max-memory`, which a watched command obeys."""

    def limit(
        name: str, unit: str, kind: FiniteRange, obey: Callable[[float], object], words: str
    ) -> Callable[[Command], Command]:
        return click.option(
            name,
            metavar=unit,
            type=kind,
            expose_value=False,
            callback=lambda _context, _option, given: given and obey(given),
            help=words,
        )

    longest = f"How long one call of a model may take. ({guard.TIMEOUT_SECONDS:g})"
    timeout = limit("--call-timeout", "SECONDS", POSITIVE, guard.set_timeout, longest)
    most = "How much memory it may have. (what the machine has)"
    memory = limit("--max-memory", "GIB", FiniteRange(min=LEAST_GIB), guard.set_memory_limit, most)
    return timeout(memory(command))
