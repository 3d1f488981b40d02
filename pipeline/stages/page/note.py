"""What a run's own page in MLflow says: the verdict, how to use it, and the results.

The page shows two short paragraphs, and the rest when it is asked for; its tables have no padding.
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline.stages.page.results import COLUMNS, ExperimentResults, ResultRow, rows_of
from pipeline.stages.page.verdicts import verdict_of

SHOWN = ("variant", "accuracy", "largest diff", "flips", "p50 ms", "rows/s", "size", "shipped")
PADDING = "&nbsp;" * 3


def note_of(measured: ExperimentResults, bundle: Path) -> str:
    """The note in Markdown; `bundle` is the folder that ships."""
    return "\n\n".join(filter(None, _paragraphs(measured, bundle)))


def _paragraphs(measured: ExperimentResults, bundle: Path) -> Iterator[str]:
    training, verdict = measured.training, verdict_of(measured)
    why = f": {verdict.why}" if verdict.why else ""
    yield (
        f"**{verdict.quality}** on the test rows of {training.dataset} with {verdict.ships}, which "
        f"ships{why}."
    )
    digest = f" (bundle `{measured.shipped.digest[:10]}`)" if measured.shipped else ""
    yield f"`ferry predict {bundle} ROWS --output answers.csv`{digest}"
    yield "\n".join(_table(rows_of(measured)))
    skipped = measured.quantized.skipped if measured.quantized else {}
    yield "\n".join(f"- {name} was not made: {reason}" for name, reason in skipped.items())
    yield (
        f"Weights `{training.weights_sha256[:12]}` of revision `{training.git_revision[:12]}`, "
        f"data `{training.data_sha256[:12]}`."
    )


def _table(rows: tuple[ResultRow, ...]) -> Iterator[str]:
    yield f"| {' | '.join(name + PADDING for name in SHOWN)} |"
    yield f"|{'---|' * len(SHOWN)}"
    for row in rows:
        yield f"| {' | '.join(COLUMNS[name](row) for name in SHOWN)} |"
