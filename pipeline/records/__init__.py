"""What a stage measured, in two files: all of its report, and the few numbers a person compares.

The records import no heavy package, so that results, report and bundle read them without torch.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from serving.errors import IntegrityError, on_one_line
from serving.files import (
    read_json,
    read_record,
    require,
    sha256_of_bytes,
    sha256_of_file,
    write_json,
    write_text,
)

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


def record_of(path: Path) -> Path:
    """Where the sha256 of a file is recorded: beside it, as `sha256sum --check` reads it.

    Not in the details of the stage, which are others each time it runs: a file that comes out the
    same again leaves what was made of it up to date.
    """
    return path.with_name(f"{path.name}.sha256")


def record(path: Path, sha256: str) -> None:
    """Record the sha256 of a file that a stage has written, for those that read it."""
    write_text(record_of(path), _line(path, sha256))


def check_recorded(path: Path, stage: str) -> None:
    """Hold a file to the sha256 that `stage` recorded, for instance "train@mnist-cnn".

    DVC does not notice a bit that rotted, here or in its cache. Raises MissingInputError without
    the file or the record, and IntegrityError for other bytes.
    """
    _hold(path, sha256_of_file(require(path, _command(stage))), stage)


def read_recorded(path: Path, stage: str) -> bytes:
    """The bytes of a file, held to the sha256 that `stage` recorded as `check_recorded` does."""
    content = require(path, _command(stage)).read_bytes()
    _hold(path, sha256_of_bytes(content), stage)
    return content


def _hold(path: Path, found: str, stage: str) -> None:
    noted = require(record_of(path), _command(stage))
    recorded = noted.read_bytes()
    if recorded != _line(path, found).encode():
        text = on_one_line(recorded[:64].decode(errors="replace"))
        raise altered(path, found, text, stage, noted)


def altered(path: Path, found: str, recorded: str, stage: str, *also: Path) -> IntegrityError:
    """The error for a file whose sha256 is not the recorded one, with what restores it.

    `also` are files that are restored with it.
    """
    drop = shlex.join(["rm", str(path), *map(str, also)])
    return IntegrityError(
        f"{path} has sha256 {found[:12]}…, {stage} recorded {recorded[:12]}…: it has rotted or was "
        f"altered; `ferry doctor --cache` says whether DVC's own copy is whole, `{drop} && dvc "
        f"checkout {stage}` restores it then, and `{_command(stage)}` makes it anew"
    )


def _line(path: Path, sha256: str) -> str:
    return f"{sha256}  {path.name}\n"


def _command(stage: str) -> str:
    return f"ferry {stage.replace('@', ' ')}"


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
