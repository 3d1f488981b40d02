"""What a stage measured, in two files: all of its report, and the few numbers a person compares.

The records import no heavy package, so that results, report and bundle read them without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from serving.errors import IntegrityError
from serving.files import read_json, read_record, require, write_json

Record = TypeVar("Record")
DIGITS = 4
"""That count, of each number of a headline: more would be noise to compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Where a stage writes its report."""

    details: Path
    """All of it, for later stages and the page: `reports/details/E/STAGE.json`."""
    metrics: Path
    """Its headline, for `dvc metrics show` and `diff`: `metrics/E/STAGE.json`."""


class StageReport(Protocol):
    """The record that a stage returns."""

    @property
    def headline(self) -> Mapping[str, float | None]:
        """The few numbers that a person compares; None for what is not known.

        All stages together may have about ten names: each is a column of `dvc metrics show`. DVC
        rounds to five decimals, so a number is given in a unit in which it is not tiny.
        """


def write(report: StageReport, files: ReportFiles) -> None:
    """Write all of a report, then its headline; each file is whole or not there."""
    write_json(files.details, report)
    known = {name: value for name, value in report.headline.items() if value is not None}
    write_json(files.metrics, {name: _rounded(value) for name, value in known.items()})


def read(record: type[Record], path: Path, command: str) -> Record:
    """Read what a stage wrote in full; `command` is what makes it.

    Raises MissingInputError without the file and IntegrityError when it is not such a record.
    """
    try:
        return read_record(record, read_json(require(path, command)), str(path))
    except IntegrityError as error:
        raise IntegrityError(f"{error}; `{command}` makes it anew") from error


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
