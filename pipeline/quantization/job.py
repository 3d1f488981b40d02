"""Search every variant of one model, an experiment's or anybody's, and tell what came of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from pipeline.config.experiment import Variant
from pipeline.proof.rows import Rows
from pipeline.quantization import recipes
from pipeline.quantization.apply import Source
from pipeline.quantization.quality import best_of, reason_of
from pipeline.quantization.recipes import Recipe
from pipeline.quantization.search import Judge, Settings, search
from pipeline.records.quantize import Budget, QuantizeReport, Search, Try, VariantFile
from serving.files import sha256_of_bytes, write_bytes
from serving.machine.environment import describe

VARIANTS: tuple[Variant, ...] = ("fp16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The last resort: the model after training with a recipe's rounding."""

    epochs: int
    model: Callable[[Recipe], onnx.ModelProto]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A model, the rows it is calibrated and judged on, and what its variants may cost."""

    name: str
    model: onnx.ModelProto
    calibration: Rows
    rows: Rows
    settings: Settings
    budgets: Mapping[Variant, Budget]
    """Of the variants to search, and of no others."""
    skip: Mapping[str, str]
    """Why the others are not made."""
    batch: int | None = None
    """The one batch size that the model takes, or None where any will do."""
    training: Training | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job came to: its record, and the files that were kept."""

    report: QuantizeReport
    contents: Mapping[str, bytes]
    """By variant; nothing is written yet."""


def run(job: Job) -> Outcome:
    """Search all variants of a job.

    Raises UnknownNameError for a recipe that does not exist, before anything is measured.
    """
    start = time.perf_counter()
    for name in job.settings.only:
        recipes.parse(name)
    searches: dict[str, Search] = {}
    contents: dict[str, bytes] = {}
    size = len(job.model.SerializeToString(deterministic=True))
    if job.budgets:
        judge = Judge(Source(job.model, job.calibration, job.batch), job.rows, job.settings)
        for variant in [one for one in VARIANTS if one in job.budgets]:
            searches[variant], content = search(judge, variant, job.budgets[variant])
            if variant == "int8" and not content and job.training:
                searches[variant], content = _trained(judge, searches[variant], job.training)
            if content:
                contents[variant] = content
    refused = {name: one.reason for name, one in searches.items() if name not in contents}
    report = QuantizeReport(
        experiment=job.name,
        model_sha256=sha256_of_bytes(job.model.SerializeToString(deterministic=True)),
        goal=job.settings.goal,
        judged_on=job.rows.name,
        rows=len(job.rows) if job.budgets else 0,
        calibration_rows=len(job.calibration) if "int8" in job.budgets else 0,
        machine=describe().processor,
        threads=1,
        seconds=time.perf_counter() - start,
        variants={name: _file(searches[name], contents[name], size) for name in contents},
        skipped={**job.skip, **refused},
        searches=searches,
    )
    return Outcome(report=report, contents=contents)


def write_variants(outcome: Outcome, folder: Path, stem: str = "model") -> None:
    """Write the files that were kept as STEM.int8.onnx and so on, and remove those of before."""
    folder.mkdir(parents=True, exist_ok=True)
    for variant in VARIANTS:
        path = folder / f"{stem}.{variant}.onnx"
        if variant in outcome.contents:
            write_bytes(path, outcome.contents[variant])
        else:
            path.unlink(missing_ok=True)  # of an earlier run that kept more


def chosen_rows(rows: Rows, count: int, seed: int, name: str) -> Rows:
    """Some rows, drawn with the seed and in their own order."""
    generator = np.random.default_rng(seed)
    indices = np.sort(generator.choice(len(rows), count, replace=False))
    labels = None if rows.labels is None else rows.labels[indices]
    return Rows(name=name, inputs=rows.take(indices), labels=labels)


def _file(found: Search, content: bytes, size: int) -> VariantFile:
    return VariantFile(
        recipe=found.chosen or "",
        bytes=len(content),
        sha256=sha256_of_bytes(content),
        size_ratio=len(content) / size,
    )


def _trained(judge: Judge, found: Search, training: Training) -> tuple[Search, bytes]:
    """Train with the recipe that comes nearest and try it again, if accuracy alone kept it out."""
    losses = {
        one.recipe: one.quality.loss
        for one in found.tries
        if one.fast and not one.accurate and one.quality and one.quality.loss is not None
    }
    if not losses:
        return found, b""
    recipe = recipes.parse(min(losses, key=lambda name: losses[name]))
    source = Source(training.model(recipe), judge.source.calibration, judge.source.batch)
    tried, content = judge.attempt(recipe, found.budget, source, training.epochs)
    tries: tuple[Try, ...] = (*found.tries, tried)
    goal = judge.settings.goal
    best = best_of(tries, goal)
    return replace(
        found,
        tries=tries,
        chosen=best.recipe if best else None,
        qat_epochs=training.epochs if best else 0,
        reason=reason_of(best, tries, goal),
    ), content if best else b""
