"""`ferry predict MODEL INPUT... --output FILE`: run a model on images, texts or rows of numbers.

Rows are read, run and written batch by batch, so that memory does not grow with the input; what
cannot be read is listed beside the output and does not stop the run.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from serving.answers import Columns, answer
from serving.console import note
from serving.errors import InputError, UsageError
from serving.files import atomic_write
from serving.model import Model, open_model
from serving.parallel_map import ordered_map
from serving.profiles import Profile
from serving.readers.inputs import Inputs, open_inputs
from serving.readers.items import Row, Unreadable
from serving.session import ProviderProof
from serving.versions import ferry_version
from serving.writers import format_of, open_writer

__all__ = ["PredictOptions", "PredictReport", "predict", "summary"]

MOST_NOTES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """How a run is done."""

    provider: str = "cpu"
    threads: int | None = None
    """None: as the bundle's profile says, or the cores that this process may use without one."""
    batch_rows: int | None = None
    """None: as the bundle's profile says, or 32 without one that fits."""
    array: str | None = None
    """The array to take from `.npz` files."""
    columns: tuple[str, ...] = ()
    """The columns to read of `.csv`, `.jsonl` and `.parquet` files; () for all, or the text."""
    resize: bool = False
    """Whether images are fitted to the model in size and mode."""
    probabilities: bool = False
    """Whether the score of every class is written too; for classifiers only."""
    format: str | None = None
    """One of "csv", "jsonl" and "parquet"; None: by the output's suffix."""
    default_format: str = "csv"
    """What goes to stdout when `format` is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictReport:
    """What a run did."""

    model: Path
    model_sha256: str
    output: Path | None
    rows: int
    errors: int
    errors_file: Path | None
    """Where the unreadable inputs are listed."""
    seconds: float
    """From the first row read to the last one written."""
    rows_per_second: float
    threads: int
    profile: Profile | None
    """What of the bundle's profiles the settings were taken from; None where none was used."""
    proof: ProviderProof


class NothingReadableError(InputError):
    """Not one row of the input could be used."""


def predict(
    model: Path,
    inputs: Sequence[Path],
    *,
    output: Path | None,
    options: PredictOptions | None = None,
) -> PredictReport:
    """Run every row of `inputs` in order, and write one line for each to `output` or stdout.

    What is written of a row is told by `serving.answers.answer`.

    Inputs that cannot be read are listed in `OUTPUT.errors.jsonl`, or told on stderr when there is
    no output. Raises UsageError, MissingInputError, ModelError, ProviderError or InputError before
    anything is written, and InputError when not one row could be read.
    """
    options = options or PredictOptions()
    if not inputs:
        raise UsageError("there is no input to predict")
    form = format_of(output, options.format, default=options.default_format)
    opened = open_model(model, provider=options.provider, threads=options.threads)
    if options.probabilities and opened.kind != "classifier":
        raise UsageError(f"--probabilities is for classifiers, {model} gives no scores of classes")
    rows = open_inputs(
        inputs, opened, array=options.array, columns=options.columns, resize=options.resize
    )
    start = time.perf_counter()
    # The answers are closed when the writing fails, which drops the batches that wait.
    with (
        ErrorLog(output) as errors,
        contextlib.closing(_answers(opened, rows, errors, options)) as answers,
    ):
        done = _write(answers, errors, opened.session.sha256, output=output, form=form)
    seconds = time.perf_counter() - start
    return PredictReport(
        model=model,
        model_sha256=opened.session.sha256,
        output=output,
        rows=done,
        errors=errors.count,
        errors_file=errors.path if errors.count else None,
        seconds=seconds,
        rows_per_second=done / seconds,
        threads=opened.session.threads,
        profile=opened.profile,
        proof=opened.session.proof,
    )


def summary(report: PredictReport) -> str:
    """One line for a person."""
    where = f" to {report.output}" if report.output else ""
    errors = f", {report.errors} not read" if report.errors else ""
    listed = f" (see {report.errors_file})" if report.errors_file else ""
    profile = f", {report.profile.told()}" if report.profile else ""
    return (
        f"{report.rows} rows{where}{errors}{listed}; {report.seconds:.2f} s, "
        f"{report.rows_per_second:,.0f} rows/s on {report.proof.asked}{profile}"
    )


class ErrorLog:
    """The inputs that could not be used: a file of JSON Lines that appears whole, or stderr."""

    def __init__(self, output: Path | None) -> None:
        self.path = output.with_name(f"{output.name}.errors.jsonl") if output else None
        self.count = 0
        self.first = ""
        self._stack = contextlib.ExitStack()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, item: Unreadable) -> None:
        """Record one."""
        self.count += 1
        self.first = self.first or f"{item.id}: {item.reason}"
        if self.path:
            if self._file is None:  # only a run with errors leaves a file
                self._file = self._stack.enter_context(atomic_write(self.path))
            text = json.dumps({"id": item.id, "reason": item.reason}, ensure_ascii=False)
            self._file.write(f"{text}\n".encode())
        elif self.count <= MOST_NOTES:
            note(f"not read: {item.id}: {item.reason}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, NothingReadableError):
            self._stack.__exit__(kind, error, trace)
            return
        self._stack.close()
        if self.path and not self.count:
            self.path.unlink(missing_ok=True)  # that of an earlier run
        if not self.path and self.count > MOST_NOTES:
            note(f"not read: {self.count - MOST_NOTES} more")


def _answers(
    model: Model, rows: Inputs, errors: ErrorLog, options: PredictOptions
) -> Generator[Columns, None, None]:
    """The answers to all rows that can be used, batch by batch, in the order of the rows."""
    size = model.fixed_batch or options.batch_rows or model.batch_rows

    def answered(batch: list[Row]) -> tuple[Columns, npt.NDArray[np.bool_]]:
        ids = [row.id for row in batch]
        values = np.stack([row.value for row in batch])
        return answer(model, ids, values, all_classes=options.probabilities)

    batches = _batches(_readable(_progress(rows), errors), size)
    for columns, finite in ordered_map(answered, batches, parallel=model.parallel):
        # A row without numbers has no highest one, and JSON could not hold it.
        for index in np.flatnonzero(~finite):
            reason = "the model gave what is not a finite number"
            errors.add(Unreadable(columns["id"][index], reason))
        if finite.all():
            yield columns
        elif finite.any():
            yield {name: values[finite] for name, values in columns.items()}


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _write(
    answers: Iterator[Columns], errors: ErrorLog, sha256: str, *, output: Path | None, form: str
) -> int:
    """Write all answers and return their number."""
    first = next(answers, None)
    if first is None:
        raise NothingReadableError(f"not one of {errors.count} rows can be used: {errors.first}")
    metadata = {"ferry.model_sha256": sha256, "ferry.version": ferry_version() or "unknown"}
    done = 0
    with open_writer(output, form, first, metadata) as writer:
        for columns in itertools.chain([first], answers):
            writer.write(columns)
            done += len(columns["id"])
    return done


def _readable(items: Iterable[Row | Unreadable], errors: ErrorLog) -> Iterator[Row]:
    for item in items:
        if isinstance(item, Row):
            yield item
        else:
            errors.add(item)


def _progress(rows: Inputs) -> Iterable[Row | Unreadable]:
    """The same items, counted by a bar on stderr if that is a terminal."""
    from tqdm import tqdm

    bar: Iterable[Row | Unreadable] = tqdm(rows, total=rows.count, unit="row", disable=None)
    return bar
