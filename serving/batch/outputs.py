"""Where the rows of a run go: into shards that survive anything, or to stdout as they come.

A shard, and the list of what could not be read beside it, gets its name when it is whole and
synced; then the manifest gets a line (see `serving.batch.journal`).
"""

import abc
import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO, Self

from serving.batch.engine import Answered
from serving.batch.journal import Journal, Layout, Shard, add_to_journal
from serving.batch.writers import Writer, open_writer
from serving.console import note
from serving.drift.check import DriftState
from serving.files import atomic_write, json_line
from serving.inputs.inputs import Place
from serving.inputs.sources import UnreadableRow

MOST_NOTES = 10
SHARD_ROWS = 1_000_000
SHARD_SECONDS = 10
"""A kill costs so many seconds of work at most, and one batch more."""


class Output(abc.ABC):
    """Takes the answers to one chunk after the other; a block that fails leaves no half of any."""

    def __init__(self, *, rows: int = 0, errors: int = 0) -> None:
        """Go on after so many `rows` that were written and `errors` that were listed before."""
        self.rows = rows
        self.errors = errors
        self._stack = contextlib.ExitStack()
        """What is open: closed when it is whole, taken back when the block fails."""

    @abc.abstractmethod
    def take(self, one: Answered) -> None:
        """Write one."""

    @abc.abstractmethod
    def close(self, *, last: bool) -> None:
        """Make what was taken last; `last` says that the input has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


@dataclass(slots=True)
class _Open:
    """The shard that is being written."""

    since: float
    end: Place
    rows: int = 0
    errors: int = 0
    digest: str | None = None
    writer: Writer | None = None
    listed: IO[bytes] | None = None


class ShardedOutput(Output):
    """Shards in a folder, listed in its manifest."""

    def __init__(
        self,
        layout: Layout,
        metadata: Mapping[str, str],
        journal: Journal,
        drift: Callable[[], DriftState | None],
    ) -> None:
        """Go on after the shards of `journal`; the folder and its manifest are there.

        `drift` gives what the drift check has counted of all that was taken.
        """
        super().__init__(rows=journal.rows, errors=journal.errors)
        self._layout = layout
        self._metadata = metadata
        self._drift = drift
        self._index = len(journal.shards)
        self._begin = time.monotonic()
        self._open: _Open | None = None
        self._before = journal.shards[-1] if journal.shards else None

    def take(self, one: Answered) -> None:
        """Write one into the open shard, and close that when it is large or old enough."""
        shard = self._open = self._open or _Open(since=time.monotonic(), end=one.end)
        if one.columns:
            if shard.writer is None:
                shard.writer = self._stack.enter_context(self._writer(one))
            shard.writer.write(one.columns)
        for item in one.unreadable:
            self._list(shard, item)
        shard.rows += one.count
        shard.errors += len(one.unreadable)
        shard.end, shard.digest = one.end, one.digest
        self.rows += one.count
        self.errors += len(one.unreadable)
        if shard.rows >= SHARD_ROWS or time.monotonic() - shard.since >= SHARD_SECONDS:
            self.close(last=False)

    def close(self, *, last: bool) -> None:
        """Give the open shard its name, and then a line in the manifest."""
        shard = self._open
        self._stack.close()
        if shard is not None:
            self._before = self._finished(shard, last=last)
        elif last and self._before:  # the run before this one ended with the last row
            self._before = replace(
                self._before, index=self._index, rows=0, errors=0, bytes=0, last=True
            )
        else:
            return
        self._open = None
        add_to_journal(self._layout.manifest, self._before)
        self._index += 1

    def _finished(self, shard: _Open, *, last: bool) -> Shard:
        path = self._layout.shard(self._index)
        return Shard(
            index=self._index,
            rows=shard.rows,
            errors=shard.errors,
            end=shard.end,
            digest=shard.digest,
            bytes=path.stat().st_size if shard.rows else 0,
            seconds=time.monotonic() - self._begin,
            drift=self._drift(),
            last=last,
        )

    def _writer(self, one: Answered) -> contextlib.AbstractContextManager[Writer]:
        # Shards of one file are joined byte by byte, so that only the first names the columns.
        header = self._layout.is_folder or self.rows == 0
        path = self._layout.shard(self._index)
        columns = one.columns or {}
        return open_writer(path, self._layout.form, columns, self._metadata, header=header)

    def _list(self, shard: _Open, item: UnreadableRow) -> None:
        if shard.listed is None:
            path = self._layout.shard_errors(self._index)
            shard.listed = self._stack.enter_context(atomic_write(path))
        shard.listed.write(json_line(item).encode())


class Stdout(Output):
    """Rows to stdout as they come, and what could not be read to stderr; nothing to go on from."""

    def __init__(self, form: str, metadata: Mapping[str, str]) -> None:
        super().__init__()
        self._form = form
        self._metadata = metadata
        self._writer: Writer | None = None

    def take(self, one: Answered) -> None:
        """Write one."""
        if one.columns:
            if self._writer is None:
                opened = open_writer(None, self._form, one.columns, self._metadata)
                self._writer = self._stack.enter_context(opened)
            self._writer.write(one.columns)
            sys.stdout.buffer.flush()  # whoever reads the pipe waits for these rows
        for item in one.unreadable:
            self.errors += 1
            if self.errors <= MOST_NOTES:
                note(f"not read: {item.id}: {item.reason}")
        self.rows += one.count

    def close(self, *, last: bool) -> None:  # noqa: ARG002 - of every output
        """Flush."""
        self._stack.close()
        if self.errors > MOST_NOTES:
            note(f"not read: {self.errors - MOST_NOTES} more")
