"""The shards of a run: where they lie, which are finished, and how a run that was stopped goes on.

A folder `labels/` is the shards themselves, a file `labels.csv` is joined of the shards in
`labels.csv.parts/` when the run has come to its end. The manifest of the shards holds one JSON
object a line. The first says what was run; each of the others was added, and synced, when its shard
had its name. A line that was cut short by a kill is no line.

Every step can be interrupted and done again: what is listed in the manifest counts, all else of a
run is swept away.
"""

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from serving.batch.writers import is_folder, join_parts
from serving.drift.check import DriftState
from serving.errors import IntegrityError, OutputError
from serving.files import atomic_write, json_line, read_record, sync_folder, write_bytes, write_text
from serving.inputs.inputs import Place

SCHEMA = 2
HALF_MANIFEST = "._manifest.jsonl.*"
OURS = (
    *("part-*", "_part-*", ".part-*", "._part-*", "_errors.jsonl", "_manifest.jsonl"),
    *("._errors.jsonl.*", HALF_MANIFEST),
)
"""What a run leaves in a folder of shards."""
HALF = ".????????.tmp"
"""How the name ends of a file that was being written when its run was killed."""
WORDS = {
    "model_sha256": "another model",
    "fingerprint": "other inputs, or inputs that have changed since",
    "inputs": "other inputs",
}
"""How a difference is named that says little by its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which files an output is made of."""

    output: Path
    form: str
    """A name of `serving.batch.writers.FORMATS`."""

    @property
    def is_folder(self) -> bool:
        """Whether the shards are the output."""
        return is_folder(self.output)

    @property
    def parts(self) -> Path:
        """The folder of the shards."""
        return self.output if self.is_folder else self._beside(".parts")

    @property
    def manifest(self) -> Path:
        """The list of the shards while a run is not complete, of a folder afterwards too."""
        return self.parts / "_manifest.jsonl"

    @property
    def finished_manifest(self) -> Path:
        """The list of the shards when the run is complete."""
        return self.manifest if self.is_folder else self._beside(".manifest.jsonl")

    @property
    def errors(self) -> Path:
        """What could not be read, when the run is complete."""
        return self.output / "_errors.jsonl" if self.is_folder else self._beside(".errors.jsonl")

    def shard(self, index: int) -> Path:
        """The rows of a shard; of a file under a name that no reader of its folder looks for."""
        name = f"part-{index:05}.{self.form}"
        return self.parts / (name if self.is_folder else f"_{name}.part")

    def shard_errors(self, index: int) -> Path:
        """What could not be read of a shard."""
        return self.parts / f"_part-{index:05}.errors.jsonl"

    def _beside(self, suffix: str) -> Path:
        return self.output.with_name(self.output.name + suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKey:
    """What the answers of a run depend on: two runs of the same key write the same rows."""

    schema: int = SCHEMA
    model_sha256: str
    provider: str
    batch_rows: int
    inputs: tuple[str, ...]
    fingerprint: str | None
    """The sum of the inputs; None where one is a stream, whose shards carry digests instead."""
    array: str | None
    columns: tuple[str, ...]
    input_format: str | None
    resize: bool
    delimiter: str | None
    decimal: str | None
    missing: str
    cast: bool
    null: bool
    limit: int | None
    probabilities: bool
    top_k: int | None
    task: str | None
    shared: Mapping[str, str]
    format: str
    csv_safe: bool
    reference: bool


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
    """The sum of a stream, up to there."""
    bytes: int
    """The size of the file of rows, 0 where there is none."""
    seconds: float
    """How long the run had taken since it was begun or taken up again."""
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
    def last(self) -> Shard | None:
        """The last shard, with which the run goes on; None before the first."""
        return self.shards[-1] if self.shards else None

    @property
    def complete(self) -> bool:
        """Whether the whole input is in the shards."""
        return self.last is not None and self.last.last

    @property
    def rows(self) -> int:
        """The rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def errors(self) -> int:
        """What could not be read, of all shards."""
        return sum(shard.errors for shard in self.shards)


def begin_run(layout: Layout, provenance: Provenance, *, overwrite: bool) -> Journal:
    """The journal of a run of `provenance`: that of its earlier, stopped runs, or a new one.

    With `overwrite` shards that are there go first; a file stays until another takes its place.
    Raises OutputError when something else is there, or shards of another model, other settings or
    other inputs, and IntegrityError for shards that are not as the manifest lists them.
    """
    if overwrite:
        drop_run(layout)
        _refuse_occupied(layout, overwrite=True)
    else:
        journal = find_run(layout, provenance)
        if journal is not None:
            _sweep(layout, journal)
            return journal
    layout.parts.mkdir(parents=True, exist_ok=True)
    for path in _ours(layout):
        path.unlink()
    write_text(layout.manifest, json_line(provenance))
    sync_folder(layout.parts)
    return Journal(provenance=provenance, shards=())


def find_run(layout: Layout, provenance: Provenance) -> Journal | None:
    """What is there already of a run of `provenance`, or None; raises what `begin_run` raises."""
    journal = read_journal(layout.manifest)
    if journal is not None:
        _check_shards(layout, journal)
    elif not layout.is_folder and layout.output.exists():
        journal = read_journal(layout.finished_manifest)
    if journal is not None:
        _refuse_another(journal.provenance.key, provenance.key, str(layout.output))
    else:
        _refuse_occupied(layout, overwrite=False)
    return journal


def finish_run(layout: Layout, journal: Journal) -> None:
    """Make the output of the shards of a complete journal, and sweep up; it may be done again."""
    if not layout.manifest.exists():
        shutil.rmtree(layout.parts, ignore_errors=True)
        return
    _join_errors(layout, journal)
    if layout.is_folder:
        return
    if journal.rows:
        shards = [layout.shard(shard.index) for shard in journal.shards if shard.rows]
        if len(shards) == 1:
            if shards[0].exists():  # else it has become the output already
                shards[0].replace(layout.output)
        else:
            with atomic_write(layout.output) as file:
                join_parts(file, shards, layout.form)
        write_bytes(layout.finished_manifest, layout.manifest.read_bytes())
        sync_folder(layout.output.parent)
    layout.manifest.unlink()
    shutil.rmtree(layout.parts, ignore_errors=True)


def drop_run(layout: Layout) -> None:
    """Remove the shards, and all that a run left beside them; a file that is joined stays."""
    # The manifest first: without it the rest is swept up, whenever this is interrupted.
    layout.manifest.unlink(missing_ok=True)
    for path in _ours(layout):
        path.unlink(missing_ok=True)
    if not layout.is_folder:
        shutil.rmtree(layout.parts, ignore_errors=True)
        return
    with contextlib.suppress(OSError):  # others have files there
        layout.parts.rmdir()


def read_journal(path: Path) -> Journal | None:
    """Read a manifest, if there, but for half a line; IntegrityError for what no run wrote."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    whole = content[: _end_of_lines(content)]
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


def add_to_journal(path: Path, shard: Shard) -> None:
    """Add a shard that has its name, so that a kill after it loses nothing of it."""
    sync_folder(path.parent)
    with path.open("ab") as file:
        file.write(json_line(shard).encode())
        file.flush()
        os.fsync(file.fileno())


def _end_of_lines(content: bytes) -> int:
    """The length of the whole lines."""
    return content.rfind(b"\n") + 1


def _refuse_another(found: RunKey, key: RunKey, where: str) -> None:
    """Raise OutputError when what lies at `where` was begun by a run of another key."""
    for field in fields(RunKey):
        before, now = getattr(found, field.name), getattr(key, field.name)
        if before == now:
            continue
        name = field.name.replace("_", " ")
        difference = WORDS.get(field.name, f"{name} {before}, not {now}")
        raise OutputError(
            f"{where} was begun with {difference}; --overwrite begins again, or name another "
            f"--output"
        )


def _check_shards(layout: Layout, journal: Journal) -> None:
    with_rows = [shard for shard in journal.shards if shard.rows]
    for shard in with_rows:
        path = layout.shard(shard.index)
        # Where joining was interrupted, the only shard may have become the output already.
        joined = [layout.output] if journal.complete and len(with_rows) == 1 else []
        sizes = [one.stat().st_size for one in (path, *joined) if one.is_file()]
        if shard.bytes not in sizes:
            raise IntegrityError(
                f"{path} should have {shard.bytes} bytes by {layout.manifest}, and "
                f"{'has not' if path.exists() else 'is not there'}; --overwrite begins again"
            )


def _sweep(layout: Layout, journal: Journal) -> None:
    """Remove what no line of the manifest stands for: a run was killed while it wrote that."""
    if not layout.manifest.exists():
        return  # all is joined
    with layout.manifest.open("r+b") as file:
        content = file.read()
        if _end_of_lines(content) < len(content):
            file.truncate(_end_of_lines(content))
    listed = {layout.manifest, layout.errors}
    for shard in journal.shards:
        listed |= {layout.shard(shard.index), layout.shard_errors(shard.index)}
    for path in _ours(layout):
        if path not in listed:
            path.unlink()


def _ours(layout: Layout) -> Iterator[Path]:
    for pattern in OURS:
        yield from layout.parts.glob(pattern)
    if not layout.is_folder:
        for path in (layout.output, layout.errors, layout.finished_manifest):
            yield from path.parent.glob(f".{glob.escape(path.name)}{HALF}")


def _refuse_occupied(layout: Layout, *, overwrite: bool) -> None:
    if layout.output.is_dir() and not layout.is_folder:
        raise OutputError(f"{layout.output} is a folder; name a file")
    if layout.output.is_dir():
        for other in layout.output.iterdir():
            if not other.match(HALF_MANIFEST):
                raise OutputError(
                    f"{layout.output} is a folder with other files ({other.name}); name a new one"
                )
    elif layout.output.exists() and not overwrite:
        raise OutputError(f"{layout.output} exists already; --overwrite replaces it")


def _join_errors(layout: Layout, journal: Journal) -> None:
    lists = [layout.shard_errors(shard.index) for shard in journal.shards if shard.errors]
    if not lists:
        layout.errors.unlink(missing_ok=True)  # of an earlier run
        return
    if all(path.exists() for path in lists):
        with atomic_write(layout.errors) as file:
            join_parts(file, lists, "jsonl")
    if layout.is_folder:
        for path in lists:
            path.unlink(missing_ok=True)


def _parsed(path: Path, number: int, line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{path}: line {number} is not JSON; --overwrite begins again"
        ) from error
