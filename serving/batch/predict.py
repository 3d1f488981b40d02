"""`ferry predict MODEL INPUT... --output FILE`: run a model on images, texts or rows of numbers.

Rows are read, run and written chunk by chunk, so that memory does not grow with the input; what
cannot be read is listed beside the output and does not stop the run. Rows go to stdout as they
come, or into shards: a shard, and the list of what could not be read beside it, gets its name when
it is whole and synced, and then the manifest gets a line (see `serving.batch.journal`). So a run
that was stopped, or killed, goes on where it was when the same command is given again. SIGINT and
SIGTERM end a run after the batch in hand; a second one does not wait for that.
"""

import abc
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from serving.batch.engine import Answered, answers, answers_of_cluster, import_ray
from serving.batch.run import CHUNK_ROWS, PredictOptions, PredictRun, prepare
from serving.batch.signals import stoppable
from serving.batch.writers import Write, open_writer
from serving.console import note
from serving.errors import FerryError, InputError
from serving.files import atomic_write, json_line
from serving.inputs.inputs import Place
from serving.inputs.sources import REST
from serving.runtime import guard
from serving.runtime.cores import AHEAD

if TYPE_CHECKING:
    from serving.batch.journal import Journal, Layout
    from serving.batch.report import PredictReport
    from serving.drift.check import DriftCheck
    from serving.drift.first_rows import FirstRows

MOST_NOTES = 10
SHARD_ROWS = 1_000_000
LOCK_SECONDS = 1.0
"""How long a run that was killed may take to be gone, its parent first."""
SHARD_SECONDS = 10
"""A kill costs so many seconds of work at most, and one batch more."""


def predict(
    model: Path | str,
    inputs: Sequence[Path | str],
    *,
    output: Path | None,
    options: PredictOptions | None = None,
) -> "PredictReport":
    """Run every row of `inputs` in order, and write one line for each to `output` or stdout.

    `serving.batch.answers` says what is written of a row. An `output` without a suffix is a
    folder of shards. What is there of the same run is not done again; SIGINT and SIGTERM end the
    run after the batch in hand, and the report says so.

    Inputs that cannot be read are listed in `OUTPUT.errors.jsonl`, or on stderr when there is no
    output. Raises UsageError, MissingInputError, ModelError, ProviderError, InputError or
    OutputError before anything is written, and InputError when not one row could be read, or more
    than `max_errors` could not.
    """
    options = options or PredictOptions()
    run = prepare(Path(model), inputs, output, options)
    if options.engine == "ray":
        import_ray(options.ray_address)  # so that what is there stays where Ray is not installed
    check = None
    if options.reference:
        from serving.drift.check import open_check

        check = open_check(run.model.path)
    if output is None:
        loop = PredictLoop(run, Stdout(run), None, check)
        loop.go()
        return loop.report(None, None)
    from serving.batch.journal import Layout, begin_run, finish_run, read_journal
    from serving.batch.lock import lock_output

    layout = Layout(output=output, form=run.form)
    with lock_output(output, LOCK_SECONDS):
        journal = begin_run(layout, run.provenance(), overwrite=options.overwrite)
        loop = PredictLoop(run, ShardedOutput(run, layout, journal, check), journal, check)
        with _kept(layout):
            if not journal.complete:
                loop.go()
            if not loop.stopped:
                whole = read_journal(layout.manifest) or journal
                finish_run(layout, whole)
                if not whole.rows:
                    raise loop.nothing_readable()
    return loop.report(output, layout.errors)


@contextlib.contextmanager
def _kept(layout: "Layout") -> Iterator[None]:
    """Say how many rows a run that fails leaves behind, and clean up after one that leaves none."""
    from serving.batch.journal import drop_run, read_journal

    try:
        yield
    except (OSError, FerryError):
        journal = read_journal(layout.manifest)
        if journal is not None and journal.rows:
            note(_what_is_kept(journal.rows, layout))
        raise
    finally:
        journal = read_journal(layout.manifest)
        if journal is not None and not journal.shards:
            drop_run(layout)


def _what_is_kept(rows: int, layout: "Layout") -> str:
    return f"{rows} rows are kept in {layout.parts}; the same command goes on"


# Where the rows go


class Output(contextlib.ExitStack, abc.ABC):
    """Takes the answers to one chunk after the other; a block that fails leaves no half of any.

    What is open is on its stack: closed when it is whole, taken back when the block fails.
    """

    def __init__(self, run: PredictRun, *, rows: int = 0, errors: int = 0) -> None:
        super().__init__()
        self.rows = rows
        self.errors = errors
        self._form, self._metadata = run.form, run.metadata()
        self._safe = run.options.csv_safe

    @abc.abstractmethod
    def take(self, one: Answered) -> None:
        """Write one."""

    @abc.abstractmethod
    def finish(self, *, last: bool) -> None:
        """Make what was taken last; `last` says that the input has ended."""


class Stdout(Output):
    """Rows to stdout as they come, and what could not be read to stderr; nothing to go on from."""

    _write: Write | None = None

    def take(self, one: Answered) -> None:
        """Write one."""
        if one.columns:
            if self._write is None:
                opened = open_writer(None, self._form, one.columns, self._metadata, safe=self._safe)
                self._write = self.enter_context(opened)
            self._write(one.columns)
            sys.stdout.buffer.flush()  # whoever reads the pipe waits for these rows
        for item in one.unreadable:
            self.errors += 1
            if self.errors <= MOST_NOTES:
                note(f"not read: {item.id}: {item.reason}")
        self.rows += one.count

    def finish(self, *, last: bool) -> None:  # noqa: ARG002 - of every output
        """Close what writes, and count what was not listed."""
        self.close()
        if self.errors > MOST_NOTES:
            note(f"not read: {self.errors - MOST_NOTES} more")


@dataclass(slots=True)
class _Open:
    """The shard that is being written."""

    since: float
    end: Place
    rows: int = 0
    errors: int = 0
    digest: str | None = None
    write: Write | None = None
    listed: IO[bytes] | None = None


class ShardedOutput(Output):
    """Shards in a folder, listed in its manifest."""

    def __init__(
        self, run: PredictRun, layout: "Layout", journal: "Journal", check: "DriftCheck | None"
    ) -> None:
        """Go on after the shards of `journal`; the folder and its manifest are there."""
        super().__init__(run, rows=journal.rows, errors=journal.errors)
        self._layout = layout
        self._check = check
        self._index = len(journal.shards)
        self._begin = time.monotonic()
        self._open: _Open | None = None
        self._before = journal.last
        self._goes_on = journal.provenance.key.fingerprint is not None
        self._in_flight = AHEAD * run.model.parallel * CHUNK_ROWS
        self._tell()

    def take(self, one: Answered) -> None:
        """Write one into the open shard, and close that when it is large or old enough."""
        shard = self._open = self._open or _Open(since=time.monotonic(), end=one.end)
        if one.columns:
            if shard.write is None:
                # Shards of one file are joined byte by byte: only the first names the columns.
                header = self._layout.is_folder or self.rows == 0
                path = self._layout.shard(self._index)
                opened = open_writer(
                    path, self._form, one.columns, self._metadata, header=header, safe=self._safe
                )
                shard.write = self.enter_context(opened)
            shard.write(one.columns)
        for item in one.unreadable:
            if shard.listed is None:
                path = self._layout.shard_errors(self._index)
                shard.listed = self.enter_context(atomic_write(path))
            shard.listed.write(json_line(item).encode())
            if item.reason.endswith(REST):
                note(f"Warning: {item.id} {item.reason}")
        shard.rows += one.count
        shard.errors += len(one.unreadable)
        shard.end, shard.digest = one.end, one.digest
        self.rows += one.count
        self.errors += len(one.unreadable)
        done, careful = self.rows + self.errors, guard.careful()
        # A process before this one died over one of the next batches: keep the rows up to there.
        near = careful is not None and careful <= done < careful + self._in_flight
        if near or shard.rows >= SHARD_ROWS or time.monotonic() - shard.since >= SHARD_SECONDS:
            self.finish(last=False)
        self._tell()

    def _tell(self) -> None:
        if self._goes_on:
            guard.done(self.rows + self.errors)

    def finish(self, *, last: bool) -> None:
        """Give the open shard its name, and then a line in the manifest."""
        from serving.batch.journal import Shard, add_to_journal

        self.close()
        shard, path = self._open, self._layout.shard(self._index)
        if shard is not None:
            self._before = Shard(
                index=self._index,
                rows=shard.rows,
                errors=shard.errors,
                end=shard.end,
                digest=shard.digest,
                bytes=path.stat().st_size if shard.rows else 0,
                seconds=time.monotonic() - self._begin,
                drift=self._check.to_record() if self._check else None,
                last=last,
            )
        elif last and self._before:  # the run before this one ended with the last row
            self._before = replace(
                self._before, index=self._index, rows=0, errors=0, bytes=0, last=True
            )
        else:
            return
        self._open = None
        add_to_journal(self._layout.manifest, self._before)
        guard.kept(_what_is_kept(self.rows, self._layout))
        self._index += 1


# From the inputs to the output


class PredictLoop:
    """The rows that are left of a run, from the engine to the output."""

    def __init__(
        self,
        run: PredictRun,
        output: Output,
        journal: "Journal | None",
        check: "DriftCheck | None",
    ) -> None:
        """Go on after the shards of `journal`, and count the rows for `check`."""
        self._run = run
        self._output = output
        self._journal = journal
        self._check = check
        if check and journal and journal.last and journal.last.drift:
            check.restore(journal.last.drift)
        self._before = output.rows
        begins = run.options.reference is None and not (journal and journal.shards)
        self._first: FirstRows | None = None
        if begins and run.model.path.is_dir():
            from serving.drift import first_rows

            self._first = first_rows.FirstRows(run.model.path)
        self._unlike: str | None = None
        self._seconds = self._decode = self._inference = self._write = 0.0
        self.stopped: list[signal.Signals] = []
        """The signals that ended the run; after the second one the batch in hand is left undone."""
        self.first_error = ""
        self._noted: set[str] = set()

    def go(self) -> None:
        """Answer and write them; raises InputError for more unreadable rows than are allowed."""
        self._refuse_errors()  # of the runs before
        begin, ended = time.perf_counter(), False
        end_batches = self._run.model.session.stop
        with (
            stoppable(end_batches) as self.stopped,
            self._output,
            _progress(self._run, self._output) as count,
        ):
            # The answers are closed when the writing fails, which drops the batches that wait.
            with contextlib.closing(self._until_hurried()) as found:
                for one in found:
                    self._take(one)
                    count(one)
                    if self.stopped or self._too_many():
                        break
                else:
                    ended = not self._hurried
            self._output.finish(last=ended)
            self._warn()
        self._seconds = time.perf_counter() - begin
        self._refuse_errors()

    def nothing_readable(self) -> InputError:
        """The error for an input without one good row."""
        return InputError(f"not one of {self._output.errors} rows can be used: {self.first_error}")

    def report(self, output: Path | None, errors_file: Path | None) -> "PredictReport":
        """What was done; raises InputError when there was no row to write."""
        from serving.batch.report import PredictReport, Stages

        if not self._output.rows and not self.stopped:
            raise self.nothing_readable()
        model, done = self._run.model, self._output.rows - self._before
        return PredictReport(
            model=model.path,
            model_sha256=model.session.sha256,
            output=output,
            rows=self._output.rows,
            resumed_rows=self._before,
            errors=self._output.errors,
            errors_file=errors_file if self._output.errors else None,
            first_error=self.first_error,
            seconds=self._seconds,
            rows_per_second=done / self._seconds if self._seconds else 0.0,
            batch_rows=self._run.batch_rows,
            workers=self._run.workers,
            threads=model.session.settings.threads,
            profile=model.profile,
            proof=model.session.proof,
            stages=Stages(
                decode_seconds=self._decode,
                inference_seconds=self._inference,
                write_seconds=self._write,
            ),
            drift=self._check.report() if self._check else None,
            unlike=self._unlike,
            stopped=self.stopped[0].name if self.stopped else None,
        )

    def _answers(self) -> Generator[Answered]:
        run, chunks = self._run, self._run.chunks(self._journal)
        if run.options.engine == "ray":
            return answers_of_cluster(run, chunks)
        return answers(run, chunks, self._output.rows + self._output.errors)

    @property
    def _hurried(self) -> bool:
        return len(self.stopped) > 1

    def _until_hurried(self) -> Generator[Answered]:
        """The answers, up to a batch that is left undone; what came before an error is kept."""
        try:
            yield from self._answers()
        except (KeyboardInterrupt, FerryError):
            if not self._hurried:
                self._output.finish(last=False)
                raise

    def _warn(self) -> None:
        """Say once what is to be said of the first rows."""
        if self._first:
            self._unlike = self._first.warning()
            if self._unlike:
                note(f"Warning: {self._unlike}")
            self._first = None

    def _take(self, one: Answered) -> None:
        begin = time.perf_counter()
        for text in one.notes - self._noted:
            self._noted.add(text)
            note(text)
        if one.unreadable and not self.first_error:
            self.first_error = f"{one.unreadable[0].id}: {one.unreadable[0].reason}"
        if self._check and one.columns and one.rows is not None:
            numbers = {k: v for k, v in one.columns.items() if isinstance(v, np.ndarray)}
            self._check.add(one.rows, numbers)
        self._output.take(one)
        if self._first and one.rows is not None:  # after the first rows are out
            self._first.add(one.rows)
            if self._first.complete:
                self._warn()
        self._decode += one.decode_seconds
        self._inference += one.run_seconds
        self._write += time.perf_counter() - begin

    def _too_many(self) -> bool:
        most = self._run.options.max_errors
        return most is not None and self._output.errors > most

    def _refuse_errors(self) -> None:
        if self._too_many():
            first = f", the first {self.first_error}" if self.first_error else ""
            again = "; a higher one goes on from here" if self._journal else ""
            raise InputError(
                f"{self._output.errors} rows cannot be read, --max-errors is "
                f"{self._run.options.max_errors}{first}{again}"
            )


@contextlib.contextmanager
def _progress(run: PredictRun, output: Output) -> Iterator[Callable[[Answered], None]]:
    """Give a function that counts rows on a progress bar, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _one: None
        return
    from tqdm import tqdm

    done = output.rows + output.errors
    left = run.count(done)
    with tqdm(total=None if left is None else done + left, initial=done, unit="row") as bar:

        def count(one: Answered) -> None:
            bar.update(one.count + len(one.unreadable))
            if output.errors:
                bar.set_postfix(errors=output.errors, refresh=False)

        yield count
