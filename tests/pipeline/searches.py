"""A tiny experiment that a search can train in a blink."""

from collections.abc import Mapping
from dataclasses import replace

from pipeline.config.experiment import Experiment, Params, SearchSpace

__all__ = ["searching"]


def searching(params: Params, search: Mapping[str, SearchSpace], epochs: int = 1) -> Experiment:
    """digits-mlp with 8 hidden units and that search section."""
    base = params.experiment("digits-mlp")
    settings = {**base.model.settings, "hidden": (8,)}
    model = replace(base.model, settings=settings)
    return replace(base, epochs=epochs, model=model, search=dict(search))
