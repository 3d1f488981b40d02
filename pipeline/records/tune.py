"""What `ferry tune` found: the trials of a study, and the best settings among them.

It is printed, not kept: the trials themselves lie in the study's journal.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

from serving.console import table

Setting = bool | int | float | str | tuple[int, ...]
SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training with settings of its own."""

    number: int
    """Counted from 0; numbers that are missing were interrupted and tried again."""
    state: str
    """"complete", "pruned", "diverged" or "failed"."""
    settings: Mapping[str, Setting]
    """By the key's path below the experiment."""
    validation_accuracy: float | None
    """Of the best epoch, 0 to 1; None where no class is predicted or no epoch was done."""
    validation_loss: float | None
    """Of the same epoch; None where no epoch was done."""
    epochs: int
    """That were run."""
    seconds: float
    reason: str | None
    """Why it diverged or failed."""

    @property
    def reached(self) -> str:
        """What it reached on validation, for a person."""
        if self.validation_loss is None:
            return "-"
        right = self.validation_accuracy
        return f"{self.validation_loss:.5f}" if right is None else f"{right:.2%}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport:
    """A study as it stands: all that was tried so far, by this command and by those before it."""

    experiment: str
    dataset: str
    study: str
    """Its name: another search space, other settings or other data are another study."""
    metric: Literal["validation_accuracy", "validation_loss"]
    sampler: str
    states: Mapping[str, int]
    """Trials in each state."""
    exhausted: bool
    """Whether every combination of the listed values was tried."""
    best: Trial | None
    best_value: float | None
    """Of the metric."""
    best_settings: Mapping[str, Setting]
    trials: tuple[Trial, ...]
    seconds: float
    """That this command took."""
    data_sha256: str
    run_id: str | None


def best_of(trials: tuple[Trial, ...]) -> Trial | None:
    """The best trial that was trained to its end, the first of equals; None where none was."""
    return max((one for one in trials if one.state == "complete"), key=_order, default=None)


def _order(trial: Trial) -> tuple[bool, float, float, int]:
    """Grows as the trial is better: complete ones first, by accuracy, by loss, by number."""
    loss = inf if trial.validation_loss is None else trial.validation_loss
    return trial.state == "complete", trial.validation_accuracy or 0.0, -loss, -trial.number


def settings_text(settings: Mapping[str, Setting]) -> str:
    """Settings on one line: `train.lr 0.004, model.hidden [10, 10]`."""
    return ", ".join(f"{key} {_text(value)}" for key, value in settings.items())


def as_table(report: TuneReport) -> str:
    """Lay out the best trials for a terminal, one per line."""
    metric = report.metric.replace("_", " ")
    keys = list(dict.fromkeys(key for trial in report.trials for key in trial.settings))
    ordered = sorted(report.trials, key=_order, reverse=True)
    rows = [
        (
            str(trial.number),
            trial.state,
            trial.reached,
            str(trial.epochs),
            *(_text(trial.settings[key]) if key in trial.settings else "-" for key in keys),
        )
        for trial in ordered[:SHOWN]
    ]
    left = len(ordered) - len(rows)
    more = f"\n... and {left} more" if left else ""
    return table(("trial", "state", metric, "epochs", *keys), rows) + more


def _text(value: Setting) -> str:
    return value if isinstance(value, str) else json.dumps(value)
