"""A run of `ferry predict` before it begins: options, opened model, and inputs cut into chunks.

`dry_run` shows what a run would read and where it would write; nothing is run.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from serving.batch.writers import LINES, format_of
from serving.console import note
from serving.errors import OutputError, UsageError, redacted
from serving.files import printable, resolved
from serving.inputs.inputs import Inputs, open_inputs
from serving.inputs.names import STDIN, is_address, unsigned
from serving.inputs.sources import Chunk, InputRow, ReadOptions, UnreadableRow
from serving.model import Model, open_model
from serving.runtime import guard
from serving.runtime.classes import Task
from serving.runtime.cores import allowed_cores
from serving.runtime.settings import GPU_PROVIDERS, SessionSettings

if TYPE_CHECKING:
    from serving.batch.journal import Journal, Provenance, Shard

Engine = Literal["local", "ray"]
Chunks = Iterator[tuple[int, Chunk]]
"""Each with the number of its source."""

CHUNK_ROWS = 1024
CHUNK_BYTES = 8 * 2**20
TEXT_BYTES = 256
"""What a text is taken to need."""
PREVIEWED_ROWS = 5
"""How many rows a preview shows."""
MOST_SHOWN = 60
"""Characters of a text that a preview shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions(ReadOptions):
    """How a run is done, and how its inputs are read."""

    provider: str = "cpu"
    threads: int | None = None
    """Threads within one operator; None for those of the bundle's profile, or one."""
    workers: int | None = None
    """Batches at a time, and threads or processes that decode; None for those of the profile, or
    as many as the allowed cores have room for."""
    batch_rows: int | None = None
    """The batch size; None for that of the bundle's profile, or 32 where none fits."""
    limit: int | None = None
    """The most rows to read, unreadable ones counted."""
    probabilities: bool = False
    """Whether the score of every class is written too; for classifiers only."""
    top_k: int | None = None
    """Whether the best classes of each row are written too, and how many; for classifiers only."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """The values of inputs that are the same for all rows, besides those that a bundle keeps."""
    task: Task | None = None
    """What the model tells, where its outputs, metadata and labels do not say it."""
    format: str | None = None
    """One of `serving.batch.writers.FORMATS`; None to guess it from the suffix of the output."""
    default_format: str = "csv"
    """The format on stdout when `format` is None."""
    csv_safe: bool = False
    """Whether texts that a spreadsheet would take for a formula are written with a ' before."""
    overwrite: bool = False
    """Whether what is at the output is replaced; else a run that was stopped goes on."""
    max_errors: int | None = None
    """The most unreadable rows; None for any number."""
    reference: bool | None = None
    """Whether all rows are held against the statistics of the training data in the bundle; None
    looks at the first rows, and warns of those that are unlike anything in it."""
    engine: Engine = "local"
    ray_address: str | None = None
    """The address of a running cluster of Ray; None to start one on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRun:
    """What is to be done."""

    model: Model
    inputs: Inputs
    names: tuple[str, ...]
    """The names of the inputs, as they were given."""
    options: PredictOptions
    batch_rows: int
    """Rows that the model is given at a time; those of the options, which name them here."""
    form: str
    """The format of the output."""

    @property
    def workers(self) -> int:
        """Batches at a time, and threads or processes that decode."""
        return self.model.parallel if guard.careful() is None else 1

    @property
    def chunk_rows(self) -> int:
        """Rows that are cut off the input at a time: whole batches, as a chunk has its own cost."""
        info = self.model.input
        values = math.prod(axis if isinstance(axis, int) else 1 for axis in info.shape[1:])
        size = TEXT_BYTES if info.is_text else np.dtype(info.dtype).itemsize
        rows = min(CHUNK_ROWS, CHUNK_BYTES // max(1, values * size))
        if guard.careful() is not None:
            rows = self.batch_rows
        return self.batch_rows * max(1, rows // self.batch_rows)

    def count(self, done: int) -> int | None:
        """The rows that are left after `done`, None where only reading them all would show."""
        total, limit = self.inputs.count, self.options.limit
        if limit is not None:
            total = limit if total is None else min(limit, total)
        return None if total is None else max(0, total - done)

    def chunks(self, journal: "Journal | None") -> Chunks:
        """The chunks that no shard holds yet; OutputError when the stream is another one."""
        last, limit = journal.last if journal else None, self.options.limit
        if journal is not None and limit is not None:
            limit -= journal.rows + journal.errors
            if not limit:
                return iter(())
        if journal is None or last is None:
            chunks = self.inputs.chunks(self.chunk_rows)
        elif journal.provenance.key.fingerprint is None:
            chunks = self._later_of_stream(last)
        else:
            chunks = self.inputs.chunks(self.chunk_rows, last.end)
        return chunks if limit is None else _limited(chunks, limit)

    def provenance(self) -> "Provenance":
        """Which run it is."""
        from serving.batch.journal import Provenance, RunKey
        from serving.machine.environment import ferry_version, runtime_wheels

        options = self.options
        key = RunKey(
            model_sha256=self.model.session.sha256,
            provider=options.provider,
            batch_rows=self.batch_rows,
            inputs=tuple(_kept(name) for name in self.names),
            fingerprint=self.inputs.fingerprint(),
            array=options.array,
            columns=options.columns,
            input_format=options.input_format,
            resize=options.resize,
            delimiter=options.delimiter,
            decimal=options.decimal,
            missing=options.missing,
            cast=options.cast,
            null=options.null,
            limit=options.limit,
            probabilities=options.probabilities,
            top_k=options.top_k,
            task=options.task,
            shared=self.model.session.given,
            format=self.form,
            csv_safe=options.csv_safe,
            reference=bool(options.reference),
        )
        return Provenance(
            key=key,
            model=redacted(printable(self.model.path)),
            ferry_version=ferry_version(),
            onnxruntime=next(iter(runtime_wheels().values()), None),
        )

    def metadata(self) -> dict[str, str]:
        """What the file of the rows says of itself; nothing where its format has no place."""
        if self.form in LINES:
            return {}
        from serving.machine.environment import ferry_version

        return {
            "ferry.model": redacted(printable(self.model.path)),
            "ferry.model_sha256": self.model.session.sha256,
            "ferry.version": ferry_version() or "unknown",
            "ferry.provider": self.options.provider,
            "ferry.batch_rows": str(self.batch_rows),
        }

    def _later_of_stream(self, last: "Shard") -> Chunks:
        chunks = self.inputs.chunks(self.chunk_rows)
        for number, chunk in chunks:
            end = self.inputs.after(number, chunk)
            if end == last.end and (last.digest in (None, chunk.digest)):
                return chunks
            if (end.source, end.row) >= (last.end.source, last.end.row):
                break
        raise OutputError(
            "the stream is not the one that this output was begun with; --overwrite begins again"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRow:
    """One of the first rows."""

    id: str
    readable: bool
    text: str
    """What is in it, or why it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A run that was not made."""

    model: Path
    model_sha256: str
    takes: str
    """The dtype and shape of its rows."""
    provider: str
    threads: int
    workers: int
    batch_rows: int
    rows: int | None
    """How many the input has; None where only reading it all would show."""
    first: Sequence[FirstRow]
    output: Path | None
    format: str
    done_rows: int
    """Written by an earlier run that this one would go on from."""


def prepare(
    path: Path, inputs: Sequence[Path | str], output: Path | None, options: PredictOptions
) -> PredictRun:
    """Open the model and look at the inputs; raises what is wrong with them, and writes nothing."""
    if not inputs:
        raise UsageError("there is no input to predict")
    form = format_of(output, options.format, default=options.default_format)
    if options.csv_safe and form.partition(".")[0] != "csv":
        raise UsageError(f"--csv-safe is for CSV, and {output or 'stdout'} is written as {form}")
    names = tuple(map(str, inputs))
    if options.engine == "ray" and STDIN in names:
        raise UsageError("--engine ray reads files; a stream is for the engine on this machine")
    if output is not None:
        _refuse_place(output, names)
    model = _open(path, options)
    if (options.probabilities or options.top_k) and model.kind != "classifier":
        flag = "--probabilities" if options.probabilities else "--top-k"
        cure = "--task classification says it of its only table of floats"
        if model.classes.label:
            cure = f"it gives the label itself, {model.classes.label.name}, and its other outputs"
        raise UsageError(
            f"{flag} is for classifiers, and nothing says which output of {path} holds the scores "
            f"of which classes; {cure}"
        )
    for info in model.left_out:
        made = f"{info.dtype} {list(info.shape)}"
        note(f"Warning: output {info.name} is {made}, not one answer a row; it is left out")
    batch_rows = model.fixed_batch or options.batch_rows or model.batch_rows
    return PredictRun(
        model=model,
        inputs=open_inputs(names, model, options),
        names=names,
        options=replace(options, batch_rows=batch_rows),
        batch_rows=batch_rows,
        form=form,
    )


def _kept(name: str) -> str:
    """The name of an input as its rows keep it: a new signature of an address is no other input."""
    text = printable(name)
    return unsigned(text) if is_address(text) else redacted(text)


def _refuse_place(output: Path, names: Sequence[str]) -> None:
    """Raise OutputError where no output can be, or where it would be one of the inputs."""
    if not output.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}; make it first")
    for name in names:
        if Path(name).exists() and resolved(output).is_relative_to(resolved(name)):
            raise OutputError(
                f"{output} would be read as part of the input {name}; write elsewhere"
            )


def dry_run(
    path: Path, inputs: Sequence[Path | str], output: Path | None, options: PredictOptions
) -> Preview:
    """Look at the first rows of a run, and at its output; raises what the run would at first."""
    run = prepare(path, inputs, output, options)
    model, journal = run.model, None
    if output is not None:
        from serving.batch.journal import Layout, find_run

        layout = Layout(output=output, form=run.form)
        journal = None if run.options.overwrite else find_run(layout, run.provenance())
    return Preview(
        model=model.path,
        model_sha256=model.session.sha256,
        takes=model.takes(),
        provider=model.session.provider,
        threads=model.session.settings.threads,
        workers=run.workers,
        batch_rows=run.batch_rows,
        rows=run.count(0),
        first=[_describe(item) for item in itertools.islice(run.inputs, PREVIEWED_ROWS)],
        output=output,
        format=run.form,
        done_rows=journal.rows if journal else 0,
    )


def as_text(shown: Preview) -> str:
    """What a dry run shows, in some lines for a person."""
    rows = "rows" if shown.rows is None else f"{shown.rows:,} rows"
    how = f"in batches of {shown.batch_rows}, {shown.workers} at a time, on {shown.provider}"
    lines = [
        f"{shown.model} takes {shown.takes}; {rows} {how}",
        *(
            f"  {row.id}  {row.text if row.readable else f'not read: {row.text}'}"
            for row in shown.first
        ),
        f"to {shown.output or 'stdout'} as {shown.format}",
    ]
    if shown.done_rows:
        lines.append(f"{shown.done_rows:,} rows are there already; the run would go on after them")
    return "\n".join(lines)


def _limited(chunks: Chunks, most: int) -> Chunks:
    """The first `most` rows of chunks; the last one says how many of its rows count."""
    while most > 0:
        number, chunk = next(chunks, (0, None))
        if chunk is None:
            return
        yield number, replace(chunk, count=min(chunk.count, most))
        most -= chunk.count


def _open(path: Path, options: PredictOptions) -> Model:
    """The model with the settings asked for, its profile's, or a batch on every core."""
    threads = options.threads or 1
    side_by_side = 1 if options.provider in GPU_PROVIDERS else allowed_cores() // threads
    parallel = options.workers or max(1, side_by_side)
    settings = SessionSettings(threads=threads, parallel=parallel)
    said: Any = {"task": options.task, "shared": options.shared}
    if options.threads or options.workers:
        return open_model(path, provider=options.provider, settings=settings, **said)
    return open_model(path, provider=options.provider, untuned=settings, **said)


def _describe(item: InputRow | UnreadableRow) -> FirstRow:
    if isinstance(item, UnreadableRow):
        return FirstRow(id=item.id, readable=False, text=item.reason)
    return FirstRow(id=item.id, readable=True, text=_shown(item.value))


def _shown(value: npt.NDArray[Any]) -> str:
    if value.dtype.kind in "OUT":
        text = repr(str(value.reshape(-1)[0])) if value.size else "no text"
        return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
    if not value.size:
        return f"{value.dtype} {list(value.shape)}"
    return f"{value.dtype} {list(value.shape)}, {np.min(value):.4g} to {np.max(value):.4g}"
