"""`ferry predict --dry-run`: what would be read and where it would go; nothing is run."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.batch.outputs import Layout
from serving.batch.resume import found
from serving.batch.run import Run
from serving.inputs.items import Row, Unreadable

FIRST_ROWS = 5
MOST_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRow:
    """One of the first rows."""

    id: str
    readable: bool
    message: str
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
    """Of the input, None where only reading it all would tell."""
    first: Sequence[FirstRow]
    output: Path | None
    format: str
    done_rows: int
    """Written by an earlier run that this one would go on from."""


def preview(run: Run, output: Path | None) -> Preview:
    """Look at the first rows of a run, and at what its output holds.

    Raises OutputError as the run itself would, and InputError for an input that breaks off.
    """
    model = run.model
    journal = None
    if output is not None:
        layout = Layout(output=output, form=run.form)
        journal = None if run.options.overwrite else found(layout, run.provenance())
    return Preview(
        model=model.path,
        model_sha256=model.session.sha256,
        takes=model.takes(),
        provider=model.session.provider,
        threads=model.session.threads,
        workers=run.workers,
        batch_rows=run.batch_rows,
        rows=run.count(0),
        first=[_describe(item) for item in itertools.islice(run.inputs, FIRST_ROWS)],
        output=output,
        format=run.form,
        done_rows=journal.rows if journal else 0,
    )


def as_text(shown: Preview) -> str:
    """Some lines for a person."""
    rows = "rows" if shown.rows is None else f"{shown.rows:,} rows"
    how = f"in batches of {shown.batch_rows}, {shown.workers} at a time, on {shown.provider}"
    lines = [
        f"{shown.model} takes {shown.takes}; {rows} {how}",
        *(
            f"  {row.id}  {row.message if row.readable else f'not read: {row.message}'}"
            for row in shown.first
        ),
        f"to {shown.output or 'stdout'} as {shown.format}",
    ]
    if shown.done_rows:
        lines.append(f"{shown.done_rows:,} rows are there already; the run would go on after them")
    return "\n".join(lines)


def _describe(item: Row | Unreadable) -> FirstRow:
    if isinstance(item, Unreadable):
        return FirstRow(id=item.id, readable=False, message=item.reason)
    return FirstRow(id=item.id, readable=True, message=_shown(item.value))


def _shown(value: npt.NDArray[Any]) -> str:
    if value.dtype.kind in "OUT":
        text = repr(str(value.reshape(-1)[0])) if value.size else "no text"
        return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
    if not value.size:
        return f"{value.dtype} {list(value.shape)}"
    return f"{value.dtype} {list(value.shape)}, {np.min(value):.4g} to {np.max(value):.4g}"
