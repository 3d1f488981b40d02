"""What a run's own page in MLflow says: the verdict, the results, and how to use them."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.stages.page.results import COLUMNS, ExperimentResults, ResultRow, rows_of
from pipeline.stages.page.verdicts import verdict_of

SHOWN = ("variant", "accuracy", "largest diff", "flips", "p50 ms", "rows/s", "size", "shipped")


def note_of(measured: ExperimentResults, bundle: Path) -> str:
    """The note in Markdown; `bundle` is the folder that ships."""
    return "\n\n".join(_parts(measured, bundle))


def _parts(measured: ExperimentResults, bundle: Path) -> Iterator[str]:
    training, verdict = measured.training, verdict_of(measured)
    ships = f"**{verdict.ships} ships**" if verdict.ships else "**Nothing ships yet**"
    yield f"{ships}: {verdict.quality} on the test set{verdict.why and f'; {verdict.why}'}."
    yield "\n".join(_table(rows_of(measured)))
    if measured.parity:
        yield "\n".join(
            f"- {name} was not made: {reason}" for name, reason in measured.parity.skipped.items()
        )
    if measured.shipped:
        yield (
            f"Use it: `ferry predict {bundle} ROWS -o answers.csv`. The bundle of digest "
            f"{measured.shipped.digest[:12]} lies in `{bundle}`; `ferry verify {bundle}` checks it."
        )
    yield (
        f"Weights {training.weights_sha256[:12]}, trained on {training.dataset} "
        f"{training.data_sha256[:12]} at revision {training.git_revision[:12]}."
    )


def _table(rows: tuple[ResultRow, ...]) -> Iterator[str]:
    yield f"| {' | '.join(SHOWN)} |"
    yield f"|{' --- |' * len(SHOWN)}"
    for row in rows:
        yield f"| {' | '.join(COLUMNS[name](row) for name in SHOWN)} |"
