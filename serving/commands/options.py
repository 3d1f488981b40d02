"""What commands of serving share: a model that is named by its path, its bundle or the registry."""

from typing import TYPE_CHECKING, Any

from serving.console import PathType

if TYPE_CHECKING:
    from pathlib import Path

    import click


class ModelType(PathType):
    """A path, the name of a bundle in `bundles/`, or models:/NAME@champion."""

    def convert(
        self, value: Any, param: "click.Parameter | None", ctx: "click.Context | None"
    ) -> "Path":
        """Make a path of what was typed."""
        from serving.bundles.finding import located

        return located(super().convert(value, param, ctx))


MODEL = ModelType()
