"""The journal: what MLflow is to show of each run, written here before anything is sent.

    tracking/RUN/records.jsonl    one record a line, in the order in which they were made
    tracking/RUN/files/           the figures, reports and models that the records name
    tracking/RUN/sent.json        how many of the records which server has
    tracking/weights/SHA256       the run that trained these weights

MLflow is a view of it. A line that was cut short by a kill is no record, and what cannot be written
now, as on a full disk, is kept in memory and tried again with the next one.
"""

import contextlib
import errno
import fcntl
import math
import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from serving.console import DASH
from serving.errors import IntegrityError
from serving.files import (
    json_line,
    parse_json,
    read_json,
    read_record,
    sha256_of_bytes,
    sha256_of_file,
    write_bytes,
    write_json,
    write_text,
)
from serving.runtime.tensors import TensorInfo

Signature = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]
"""The inputs and the outputs of a model."""
FOLDER = "tracking"
SENT = "sent.json"
RUN_ID = re.compile(r"[0-9a-f]{32}")
WEIGHTS_TAG = "ferry.weights_sha256"
BYTES_OF_A_LOOK = 4096
"""Read at once, from the end of a journal."""
MOST_OF_DIGEST = 36
"""Characters of a data set's digest that MLflow keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A run, which a command began."""

    experiment: str
    name: str
    labels: Mapping[str, str]
    """Tags that it has from its birth."""
    adopts: str | None
    """The sha256 of weights: a run that trained them, and is on the server, is this one."""
    begun_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Settings."""

    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of a metric."""

    key: str
    value: float | str
    """Text where JSON has no number for it: "nan", "inf"."""
    step: int
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Numbers of the run, or of one of its models."""

    points: tuple[Point, ...]
    of_model: str | None
    """The name of a model of this run that they are measured of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Tags; `mlflow.runName` and `mlflow.note.content` are what a run is called and says."""

    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file of the run."""

    artifact: str
    """Where MLflow shows it: "figures/learning_curve.png"."""
    file: str
    """Its name in `files/`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsRead:
    """Rows of a data set that the run read."""

    context: str
    """What for: "training" or "evaluation"."""
    dataset: str
    digest: str
    source: Mapping[str, str]
    features: TensorInfo
    targets: TensorInfo | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedModel:
    """A model of the run, as a file."""

    model: str
    """Its name: a variant, or "pytorch"."""
    file: str
    """Its name in `files/`; it ends in .onnx or .pt2."""
    sha256: str
    example: str
    """Rows to try it with, [2, ...], in `files/` as .npy."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedRun:
    """A training that has ended inside of this run."""

    run: str
    name: str
    settings: Mapping[str, str]
    state: str
    history: tuple[Point, ...]
    ended_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of the run; later stages may still add to it."""

    status: str
    """FINISHED, FAILED or KILLED."""
    ended_ms: int


Entry = Begun | Parameters | Metrics | Tags | Artifact | RowsRead | LoggedModel | NestedRun | Ended


def kind_of(entry: Entry) -> str:
    """What a record is, in words: "nested run"."""
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", type(entry).__name__).lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of `records.jsonl`."""

    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How much of a run a server has."""

    store: str
    """The sha256 of `store_key`, the server's address, which may hold a password."""
    run_id: str
    """Of the run there."""
    entries: int
    problem: str
    """Why the last try went no further; "" where nothing was wrong."""
    refused: tuple[str, ...]
    """What the server will not take, with the reason: not tried again."""


UNKNOWN = Begun(experiment=DASH, name="", labels={}, adopts=None, begun_ms=0)
"""How a run began whose journal cannot be read."""
PT2 = ".pt2"
"""The suffix of an exported program."""
EPOCH = b'"key": "train/'
"""What is in the lines of epochs."""


class RunJournal:
    """The journal of one run, below the folder `tracking/` of a checkout."""

    def __init__(self, folder: Path) -> None:
        """Of the run whose id `folder` is called by; nothing is written yet."""
        self.folder = folder
        self._waiting = b""
        self._learnt = 0
        """The bytes whose records are in the next."""
        self._said: dict[str, object] = {}
        self.failure: OSError | None = None
        """Why what is kept in memory could not be written."""

    @property
    def run_id(self) -> str:
        """32 hexadecimal digits, which the run has on every server as the tag `ferry.run`."""
        return self.folder.name

    @property
    def path(self) -> Path:
        """The records."""
        return self.folder / "records.jsonl"

    def file(self, name: str) -> Path:
        """A file that a record names."""
        return self.folder / "files" / name

    def kept(self, name: str) -> Path:
        """The same, which must hold what was kept: its name is the sha256 of that.

        But for an exported program, whose bytes differ each time: its weights give it the name.
        """
        path = self.file(name)
        if not path.is_file():
            raise IntegrityError(f"{path} is gone")
        if path.suffix != PT2 and not sha256_of_file(path).startswith(path.stem):
            raise IntegrityError(f"{path} has rotted: it is not what was kept")
        return path

    def append(self, entry: Entry) -> None:
        """Write a record, or keep it in memory until that can be done."""
        self._waiting += json_line(Line(entry=entry)).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _append_whole(self.path, self._waiting)
        except OSError as error:
            self.failure = error
        else:
            self._waiting, self.failure = b"", None

    def says(self, entry: Entry) -> bool:
        """Whether a record like this one is there, and none after it that says otherwise."""
        for line in self.lines(self._learnt):
            self._learnt += len(line) + 1
            # A long training has thousands of epochs, which take seconds to read.
            if EPOCH not in line:
                with contextlib.suppress(IntegrityError):  # it is told where it is sent
                    self._said |= _sayings(self.parse(line, 0))
        said = _sayings(entry)
        return bool(said) and said.items() <= self._said.items()

    def last_epoch(self) -> int:
        """The last one whose measurements are recorded; 0 for none."""
        for number, line in reversed([*enumerate(self.lines(), 1)]):
            with contextlib.suppress(IntegrityError):
                entry = self.parse(line, number) if EPOCH in line else None
                if isinstance(entry, Metrics):
                    return max(one.step for one in entry.points)
        return 0

    def keep(self, content: bytes, suffix: str) -> str:
        """Keep bytes in `files/`, once, and return the name."""
        name = f"{sha256_of_bytes(content)[:32]}{suffix}"
        if not self.file(name).is_file():
            write_bytes(self.file(name), content)
        return name

    def keep_file(self, path: Path, sha256: str) -> str:
        """Keep a file as it is now: by a second name, where the file system has such."""
        name = f"{sha256[:32]}{path.suffix}"
        target = self.file(name)
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Whoever writes `path` anew renames a new file to it, and this one stays.
                os.link(path.resolve(), target)
            except OSError:
                write_bytes(target, path.read_bytes())
        return name

    def lines(self, begin: int = 0) -> list[bytes]:
        """The whole lines from a byte on: what a kill left of one is no record."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(begin)
            return file.read().split(b"\n")[:-1]
        return []  # not begun, or not ours to read

    def count(self) -> int:
        """How many records there are."""
        return len(self.lines())

    def largest(self) -> int:
        """Bytes of the largest file that it keeps."""
        return max((one.stat().st_size for one in self.file("").glob("*")), default=0)

    def parse(self, line: bytes, number: int) -> Entry:
        """A record; IntegrityError for a line that is none."""
        where = f"{self.path}:{number}"
        return read_record(Line, parse_json(line, where), where).entry

    def entries(self) -> list[Entry]:
        """All records; IntegrityError for a line that is none."""
        return [self.parse(line, number) for number, line in enumerate(self.lines(), 1)]

    def begun(self) -> Begun:
        """How it began, as far as that can be read."""
        with contextlib.suppress(OSError, IntegrityError), self.path.open("rb") as file:
            entry = self.parse(file.readline(), 1)
            return entry if isinstance(entry, Begun) else UNKNOWN
        return UNKNOWN

    def sent(self, store: str) -> Sent:
        """What the server has that `store_key` calls `store`."""
        none = Sent(
            store=sha256_of_bytes(store.encode()), run_id="", entries=0, problem="", refused=()
        )
        path = self.folder / SENT
        # What is sent twice stays one, so a note that cannot be read is as none.
        with contextlib.suppress(OSError, IntegrityError):
            found = read_record(Sent, read_json(path), str(path))
            return found if found.store == none.store else none
        return none

    def note_sent(self, sent: Sent) -> None:
        """Write what a server has now."""
        write_json(self.folder / SENT, sent)


def journals(root: Path) -> list[RunJournal]:
    """Those of all runs of a checkout, the oldest first."""
    folders = [one for one in (root / FOLDER).glob("*") if RUN_ID.fullmatch(one.name)]
    found = [one for one in map(RunJournal, folders) if one.path.is_file()]
    return sorted(found, key=lambda one: (one.begun().begun_ms, one.run_id))


def new_run_id() -> str:
    """An id that no other run has."""
    return uuid.uuid4().hex


def of_run(root: Path, run_id: str) -> RunJournal:
    """The journal of a run, which may not be begun yet."""
    return RunJournal(root / FOLDER / run_id)


def of_weights(root: Path, sha256: str) -> str | None:
    """The id of the latest run that trained these weights, or None where no journal tells."""
    try:
        found = _weights(root, sha256).read_text().strip()
    except (OSError, ValueError):  # nobody noted it, or it cannot be read
        return None
    return found if RUN_ID.fullmatch(found) else None


def note_weights(root: Path, sha256: str, run_id: str) -> None:
    """Note which run trained these weights."""
    write_text(_weights(root, sha256), f"{run_id}\n")


def now_ms() -> int:
    """Now, as MLflow counts time."""
    return time.time_ns() // 1_000_000


def points(values: Mapping[str, float], step: int, time_ms: int) -> tuple[Point, ...]:
    """Values that were measured at one time."""
    return tuple(
        Point(
            key=key, value=value if math.isfinite(value) else str(value), step=step, time_ms=time_ms
        )
        for key, value in values.items()
    )


def _weights(root: Path, sha256: str) -> Path:
    return root / FOLDER / "weights" / sha256


def _sayings(entry: Entry) -> dict[str, object]:
    """What a record says that a later one may say otherwise."""
    match entry:
        case Artifact():
            return {f"file {entry.artifact}": entry.file}
        case Tags():
            return {f"tag {key}": value for key, value in entry.tags.items()}
        case Metrics():
            of = entry.of_model or ""
            return {f"metric {of} {one.key} {one.step}": one.value for one in entry.points}
    return {}


def _append_whole(path: Path, content: bytes) -> None:
    """Append whole lines, all or none; another stage may add to the same run meanwhile.

    What a kill or a full disk left of a line is cut off: it was no record.
    """
    with path.open("ab+", buffering=0) as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        whole = _end_of_lines(file)
        file.truncate(whole)
        if file.write(content) != len(content):
            file.truncate(whole)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line ends, found from the end: a journal may be long."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - BYTES_OF_A_LOOK)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
