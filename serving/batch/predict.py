"""`ferry predict MODEL INPUT... --output FILE`: run a model on images, texts or rows of numbers.

Rows are read, run and written chunk by chunk, so that memory does not grow with the input; what
cannot be read is listed beside the output and does not stop the run. A run that was stopped, or
killed, goes on where it was when the same command is given again. SIGINT and SIGTERM end a run
after the batch in hand; a second one acts as it always does.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from serving.batch import engine
from serving.batch.engine import Answered, Work
from serving.batch.journal import Journal, Layout, begin_run, drop_run, finish_run, read_journal
from serving.batch.outputs import Output, ShardedOutput, Stdout
from serving.batch.report import PredictReport, Stages
from serving.batch.run import PredictOptions, PredictRun, Preview, prepare, preview
from serving.console import note
from serving.drift.check import DriftCheck, open_check
from serving.errors import FerryError, InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def predict(
    model: Path | str,
    inputs: Sequence[Path | str],
    *,
    output: Path | None,
    options: PredictOptions | None = None,
) -> PredictReport:
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
    check = _check(run)
    if output is None:
        loop = PredictLoop(run, Stdout(run.form, run.metadata()), None, check)
        loop.go()
        return loop.report(None, None)
    layout = Layout(output=output, form=run.form)
    journal = begin_run(layout, run.provenance(), overwrite=options.overwrite)
    state = check.to_record if check else _nothing
    sharded = ShardedOutput(layout, run.metadata(), journal, state)
    loop = PredictLoop(run, sharded, journal, check)
    with _kept(layout):
        if not journal.complete:
            loop.go()
        if not loop.stop:
            _finish(layout, journal, loop)
    return loop.report(output, layout.errors)


def dry_run(
    model: Path | str,
    inputs: Sequence[Path | str],
    *,
    output: Path | None,
    options: PredictOptions | None = None,
) -> Preview:
    """What `predict` would read and write, and the first rows; raises what that raises at first."""
    return preview(prepare(Path(model), inputs, output, options or PredictOptions()), output)


class PredictLoop:
    """The rows that are left of a run, from the engine to the output."""

    def __init__(
        self, run: PredictRun, output: Output, journal: Journal | None, check: DriftCheck | None
    ) -> None:
        """Go on after the shards of `journal`, and count the rows for `check`."""
        self._run = run
        self._output = output
        self._journal = journal
        self._check = check
        if check and journal and journal.drift:
            check.restore(journal.drift)
        self._before = output.rows
        self._seconds = self._decode = self._inference = self._write = 0.0
        self.stop = Stop()
        self.first_error = ""

    def go(self) -> None:
        """Answer and write them; raises InputError for more unreadable rows than are allowed."""
        begin = time.perf_counter()
        with stoppable() as self.stop, self._output, _progress(self._run, self._output) as count:
            # The answers are closed when the writing fails, which drops the batches that wait.
            with contextlib.closing(self._answers()) as answers:
                for one in answers:
                    self._take(one)
                    count(one)
                    if self.stop or self._too_many():
                        break
                else:
                    self._output.close(last=True)
            if self.stop or self._too_many():
                self._output.close(last=False)
        self._seconds = time.perf_counter() - begin
        self._refuse_too_many()

    def nothing_readable(self) -> InputError:
        """The error for an input without one good row."""
        return InputError(f"not one of {self._output.errors} rows can be used: {self.first_error}")

    def report(self, output: Path | None, errors_file: Path | None) -> PredictReport:
        """What was done; raises InputError when there was no row to write."""
        if not self._output.rows and not self.stop:
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
            stopped=self.stop.signal.name if self.stop.signal else None,
        )

    def _answers(self) -> Generator[Answered]:
        run, output = self._run, self._output
        work = Work(
            inputs=run.inputs,
            chunks=run.chunks(self._journal),
            count=run.count(output.rows + output.errors),
            how=run.how,
            chunk_rows=run.chunk_rows,
            workers=run.workers,
        )
        if run.options.engine == "ray":
            from serving.batch import on_ray

            return on_ray.answers(run.model, work, address=run.options.ray_address)
        return engine.answers(run.model, work)

    def _take(self, one: Answered) -> None:
        begin = time.perf_counter()
        if one.unreadable and not self.first_error:
            self.first_error = f"{one.unreadable[0].id}: {one.unreadable[0].reason}"
        self._count(one)
        self._output.take(one)
        self._decode += one.decode_seconds
        self._inference += one.run_seconds
        self._write += time.perf_counter() - begin

    def _count(self, one: Answered) -> None:
        """Let the drift check count these rows."""
        if self._check and one.columns and one.rows is not None:
            numbers = {k: v for k, v in one.columns.items() if isinstance(v, np.ndarray)}
            self._check.add(one.rows, numbers)

    def _too_many(self) -> bool:
        most = self._run.options.max_errors
        return most is not None and self._output.errors > most

    def _refuse_too_many(self) -> None:
        if self._too_many():
            raise InputError(
                f"{self._output.errors} rows cannot be read, --max-errors is "
                f"{self._run.options.max_errors}: {self.first_error}; a higher one goes on from "
                f"here"
            )


class Stop:
    """Whether the run was asked to stop, and by what."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Note the first signal instead of dying of it; outside the main thread there are none."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {one: signal.getsignal(one) for one in SIGNALS}

    def remember(number: int, _frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        _restore(before)

    for one in SIGNALS:
        # One that is ignored, as in the background of a script, stays so.
        if before[one] is not signal.SIG_IGN:
            signal.signal(one, remember)
    try:
        yield stop
    finally:
        _restore(before)


def _restore(before: Mapping[signal.Signals, Any]) -> None:
    for one, handler in before.items():
        signal.signal(one, handler)


def _check(run: PredictRun) -> DriftCheck | None:
    """The check of the rows against the training data, if the options ask for it."""
    return open_check(run.model.path) if run.options.reference else None


def _nothing() -> None:
    """The state of a run without a drift check."""


def _finish(layout: Layout, journal: Journal, loop: PredictLoop) -> None:
    """Make the output of the shards."""
    whole = read_journal(layout.manifest) or journal
    finish_run(layout, whole)
    if not whole.rows:
        raise loop.nothing_readable()


@contextlib.contextmanager
def _kept(layout: Layout) -> Iterator[None]:
    """Say how many rows a run that fails leaves behind, and clean up after one that leaves none."""
    try:
        yield
    except (OSError, FerryError):
        journal = read_journal(layout.manifest)
        if journal is not None and journal.rows:
            note(f"{journal.rows} rows are kept in {layout.parts}; the same command goes on")
        raise
    finally:
        journal = read_journal(layout.manifest)
        if journal is not None and not journal.shards:
            drop_run(layout)


@contextlib.contextmanager
def _progress(run: PredictRun, output: Output) -> Iterator[Callable[[Answered], None]]:
    """Give a function that counts rows on a progress bar, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _one: None
        return
    from tqdm import tqdm

    done, left = output.rows + output.errors, run.count(output.rows + output.errors)
    total = None if left is None else done + left
    with tqdm(total=total, initial=done, unit="row") as bar:

        def count(one: Answered) -> None:
            bar.update(one.count + len(one.unreadable))
            if output.errors:
                bar.set_postfix(errors=output.errors, refresh=False)

        yield count
