"""Begin an output or go on with it, and join its shards when they are all there.

Every step can be interrupted and done again: what is listed in the manifest counts, all else of a
run is swept away.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from serving.batch.journal import Journal, Provenance, begin_journal, read_journal
from serving.batch.options import refuse_another
from serving.batch.outputs import Layout
from serving.batch.writers import join_arrow
from serving.errors import IntegrityError, OutputError
from serving.files import atomic_write, sync_folder, write_bytes

OURS = ("part-*", "_part-*", ".part-*", "._part-*", "_errors.jsonl", "_manifest.jsonl")
"""What a run leaves in a folder of shards."""


def begin(layout: Layout, provenance: Provenance, *, overwrite: bool) -> Journal:
    """The journal of a run of `provenance`: that of its earlier, stopped runs, or a new one.

    With `overwrite` shards that are there go first; a file stays until another takes its place.
    Raises OutputError when something else is there, or shards of another model, other settings or
    other inputs, and IntegrityError for shards that are not as the manifest lists them.
    """
    if overwrite:
        drop(layout)
        _refuse_occupied(layout, overwrite=True)
    else:
        journal = found(layout, provenance)
        if journal is not None:
            _sweep(layout, journal)
            return journal
    layout.parts.mkdir(parents=True, exist_ok=True)
    begin_journal(layout.manifest, provenance)
    return Journal(provenance=provenance, shards=())


def found(layout: Layout, provenance: Provenance) -> Journal | None:
    """What is there already of a run of `provenance`; None for nothing.

    Raises what `begin` raises.
    """
    journal = read_journal(layout.manifest)
    if journal is not None:
        _check_shards(layout, journal)
    elif not layout.is_folder and layout.output.exists():
        journal = read_journal(layout.finished_manifest)
    if journal is not None:
        refuse_another(journal.provenance.key, provenance.key, str(layout.output))
    else:
        _refuse_occupied(layout, overwrite=False)
    return journal


def finish(layout: Layout, journal: Journal) -> None:
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
                _join(file, shards, layout.form)
        write_bytes(layout.finished_manifest, layout.manifest.read_bytes())
        sync_folder(layout.output.parent)
    layout.manifest.unlink()
    shutil.rmtree(layout.parts, ignore_errors=True)


def drop(layout: Layout) -> None:
    """Remove the shards, and all that a run left beside them; a file that is joined stays."""
    # The manifest first: without it the rest is swept up, whenever this is interrupted.
    layout.manifest.unlink(missing_ok=True)
    if not layout.is_folder:
        shutil.rmtree(layout.parts, ignore_errors=True)
        return
    for path in _ours(layout):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others have files there
        layout.parts.rmdir()


def _check_shards(layout: Layout, journal: Journal) -> None:
    with_rows = [shard for shard in journal.shards if shard.rows]
    for shard in with_rows:
        path = layout.shard(shard.index)
        # Where joining was interrupted, the only shard may have become the output already.
        joined = [layout.output] if journal.complete and len(with_rows) == 1 else []
        if not any(_has_size(one, shard.bytes) for one in (path, *joined)):
            raise IntegrityError(
                f"{path} should have {shard.bytes} bytes by {layout.manifest}, and "
                f"{'has not' if path.exists() else 'is not there'}; --overwrite begins again"
            )


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _sweep(layout: Layout, journal: Journal) -> None:
    """Remove what no line of the manifest stands for: a run was killed while it wrote that."""
    if not layout.manifest.exists():
        return  # all is joined
    listed = {layout.manifest, layout.errors}
    for shard in journal.shards:
        listed |= {layout.shard(shard.index), layout.shard_errors(shard.index)}
    for path in _ours(layout):
        if path not in listed:
            path.unlink()


def _ours(layout: Layout) -> Iterator[Path]:
    for pattern in OURS:
        yield from layout.parts.glob(pattern)


def _refuse_occupied(layout: Layout, *, overwrite: bool) -> None:
    if layout.output.is_dir() and not layout.is_folder:
        raise OutputError(f"{layout.output} is a folder; name a file")
    if layout.output.is_dir():
        others = next(layout.output.iterdir(), None)
        if others is not None:
            raise OutputError(
                f"{layout.output} is a folder with other files ({others.name}); name a new one"
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
            _append_all(file, lists)
    if layout.is_folder:
        for path in lists:
            path.unlink(missing_ok=True)


def _join(file: IO[bytes], shards: list[Path], form: str) -> None:
    if form in ("csv", "jsonl"):
        _append_all(file, shards)
    else:
        join_arrow(file, shards, form)


def _append_all(file: IO[bytes], paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as part:
            shutil.copyfileobj(part, file)
