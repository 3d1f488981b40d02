"""The manifest of a run's shards: what is finished, of which run, and where to go on.

One JSON object a line. The first says what was run; each of the others was added, and synced, when
its shard had its name. A line that was cut short by a kill is no line.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.batch.options import RunKey
from serving.drift.check import DriftState
from serving.errors import IntegrityError
from serving.files import json_line, read_record, sync_folder, write_text
from serving.inputs.inputs import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The first line: which run it is, and what else made its rows."""

    key: RunKey
    model: str
    ferry_version: str | None
    onnxruntime: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A finished part of the output, and of the list of what could not be read."""

    index: int
    rows: int
    """Written; without any, there is no file of rows."""
    errors: int
    """Listed; without any, there is no file of errors."""
    end: Place
    """Where the run goes on."""
    digest: str | None
    """Of a stream, up to there."""
    bytes: int
    """Of the file of rows, 0 where there is none."""
    seconds: float
    """That the run had taken since it was begun or taken up again."""
    drift: DriftState | None
    """What the drift check had counted after it."""
    last: bool = False
    """Whether the input ended with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What a manifest says."""

    provenance: Provenance
    shards: Sequence[Shard]

    @property
    def end(self) -> Place:
        """The first row that no shard holds."""
        return self.shards[-1].end if self.shards else Place(0, 0)

    @property
    def digest(self) -> str | None:
        """Of a stream, up to there."""
        return self.shards[-1].digest if self.shards else None

    @property
    def drift(self) -> DriftState | None:
        """What the drift check had counted up to there."""
        return self.shards[-1].drift if self.shards else None

    @property
    def complete(self) -> bool:
        """Whether the whole input is in the shards."""
        return bool(self.shards) and self.shards[-1].last

    @property
    def rows(self) -> int:
        """The rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def errors(self) -> int:
        """What could not be read, of all shards."""
        return sum(shard.errors for shard in self.shards)


def read_journal(path: Path) -> Journal | None:
    """Read a manifest, and cut off a last line that is not whole; None where there is none.

    Raises IntegrityError for what no run wrote.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    lines = [_parsed(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
    if not lines:
        return None
    shards = [
        read_record(Shard, line, f"{path}: line {number}")
        for number, line in enumerate(lines[1:], 2)
    ]
    if [shard.index for shard in shards] != list(range(len(shards))):
        raise IntegrityError(f"{path} does not list its shards in order; --overwrite begins again")
    return Journal(
        provenance=read_record(Provenance, lines[0], f"{path}: line 1"), shards=tuple(shards)
    )


def begin_journal(path: Path, provenance: Provenance) -> None:
    """Make a manifest without shards, whole or not at all."""
    write_text(path, json_line(provenance))
    sync_folder(path.parent)


def add_to_journal(path: Path, shard: Shard) -> None:
    """Add a shard that has its name, so that a kill after it loses nothing of it."""
    sync_folder(path.parent)
    with path.open("ab") as file:
        file.write(json_line(shard).encode())
        file.flush()
        os.fsync(file.fileno())


def _parsed(path: Path, number: int, line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{path}: line {number} is not JSON; --overwrite begins again"
        ) from error
