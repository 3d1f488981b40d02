"""`ferry quantize MODEL.onnx`: the search under two budgets, for a model that ferry did not make.

Its inputs and outputs stay as they are. Where no row has a class, agreement with fp32's decisions
takes the place of accuracy, and where the model decides on no class its values do.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.experiment import Variant
from pipeline.exporting.onnxfile_checks import load_foreign
from pipeline.proof.rows import Rows, open_rows
from pipeline.quantization.job import Job, Outcome, run, write_variants
from pipeline.quantization.quality import Goal
from pipeline.quantization.search import Settings
from pipeline.records.quantize import Budget, QuantizeReport
from serving.errors import InputError, UsageError
from serving.files import write_json
from serving.measuring.feeds import fixed_batch
from serving.runtime.session import open_session

MOST_CALIBRATION_ROWS = 512
FEWEST_ROWS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    """What is to be made of a file, and what it may cost."""

    budgets: dict[Variant, Budget]
    """Of each variant that is wanted."""
    goal: Goal
    batch_sizes: tuple[int, ...]
    recipes: tuple[str, ...]
    """The recipes to try, and no others; () for the usual ones."""
    seconds: float = 0.4
    """Spent on each paired measurement, after warm-up."""
    seed: int = 1


def quantize_file(
    model: Path, rows: str, folder: Path, *, settings: FileSettings
) -> QuantizeReport:
    """Write the variants of an ONNX file that are inside both budgets to `folder`.

    They are called as the file, with the variant before `.onnx`, beside `quantize.json`, the trace.
    `rows` is what `open_rows` takes: up to 512 of them, at most half, are calibrated on, and the
    others judged on.

    Raises MissingInputError, InputError for rows that the model does not take and for fewer than
    two, ModelError for a file that ferry cannot run, UnknownNameError for a recipe that does not
    exist, and UsageError for a folder in which a variant would replace the model itself.
    """
    original = load_foreign(model)
    session = open_session(model, threads=1)
    for variant in settings.budgets:
        if (folder / f"{model.stem}.{variant}.onnx").resolve() == model.resolve():
            raise UsageError(f"{model} would be replaced by its own variant; name another --output")
    batch = fixed_batch(session.inputs)
    calibration, judging = _shared(open_rows(rows, session.inputs), settings.seed, batch or 1)
    outcome: Outcome = run(
        Job(
            name=model.name,
            model=original,
            calibration=calibration,
            rows=judging,
            settings=Settings(
                goal=settings.goal,
                batch_sizes=settings.batch_sizes,
                seconds=settings.seconds,
                seed=settings.seed,
                only=settings.recipes,
            ),
            budgets=settings.budgets,
            skip={},
            batch=batch,
        )
    )
    write_variants(outcome, folder, model.stem)
    write_json(folder / "quantize.json", outcome.report)
    return outcome.report


def _shared(rows: Rows, seed: int, batch: int) -> tuple[Rows, Rows]:
    """Rows to calibrate on, and the others, to judge on; of a fixed batch at least one each."""
    if len(rows) < max(FEWEST_ROWS, 2 * batch):
        raise InputError(
            f"{rows.name} holds {len(rows)} rows; quantization needs {max(FEWEST_ROWS, 2 * batch)} "
            f"or more, half to calibrate on and half to judge on"
        )
    count = min(MOST_CALIBRATION_ROWS, len(rows) // 2)
    count = max(count - count % batch, batch)
    order = np.random.default_rng(seed).permutation(len(rows))
    return (
        _taken(rows, np.sort(order[:count]), "to calibrate on"),
        _taken(rows, np.sort(order[count:]), "to judge on"),
    )


def _taken(rows: Rows, indices: np.ndarray[tuple[int], np.dtype[np.int64]], part: str) -> Rows:
    labels = None if rows.labels is None else rows.labels[indices]
    return Rows(name=f"{rows.name}, {part}", inputs=rows.take(indices), labels=labels)
