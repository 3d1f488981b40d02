"""`ferry list`: the experiments of the project and how far they are, its data sets and models."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipeline import datasets, models
from pipeline.config import layout
from pipeline.config.experiment import Params
from pipeline.quantization.recipes import BASIC, describe_recipe, parse, variant_of
from pipeline.records import ready
from pipeline.stages.page.results import read_results
from serving.console import DASH, columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedExperiment:
    """An experiment of params.yaml and what has run of it, on the files that are there."""

    experiment: str
    dataset: str
    model: str
    epochs: int
    has_run: tuple[str, ...]
    """Stages, of those that measure something."""
    parity: str | None
    """"passed" or "failed"; None before it ran."""
    ships: str | None
    """The variant in the bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedDataset:
    """A data set that an experiment may name, or that only needs a section to be one."""

    dataset: str
    state: str
    """"ready", "pulled", "not pulled" or "not in params.yaml"."""
    kind: str | None
    """Of its rows; None before it is ready, as are the numbers."""
    rows: int | None
    classes: int | None
    """None also where numbers are predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """An architecture, of ferry or of the project."""

    model: str
    takes: tuple[str, ...]
    gives: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRecipe:
    """A usual way to make a model smaller."""

    recipe: str
    variant: str
    does: str


Listed = ListedExperiment | ListedDataset | ListedModel | ListedRecipe


def listed(kind: str, params: Params) -> tuple[Listed, ...]:
    """What there is of one kind, as `overview` names them; models are imported."""
    if kind == "experiments":
        return tuple(_experiment(name, params) for name in params.experiments)
    if kind == "datasets":
        names = dict.fromkeys((*params.datasets, *datasets.names()))
        return tuple(_dataset(name, params) for name in names)
    if kind == "models":
        return tuple(
            ListedModel(model=name, takes=models.takes(name), gives=models.gives(name))
            for name in models.names()
        )
    return tuple(
        ListedRecipe(recipe=one.name, variant=variant_of(one), does=describe_recipe(one))
        for one in map(parse, BASIC)
    )


def overview(params: Params) -> Mapping[str, Sequence[Listed] | Sequence[str]]:
    """All kinds: experiments and data sets in full, models and recipes by name."""
    return {
        "experiments": listed("experiments", params),
        "datasets": listed("datasets", params),
        "models": models.names(),
        "recipes": BASIC,
    }


def as_text(kind: str, found: Sequence[Listed] | Sequence[str]) -> str:
    """Lay what was found out for a terminal."""
    rows = [asdict(one) for one in found if not isinstance(one, str)]
    if not rows:
        return f"{kind}: {', '.join(map(str, found)) or 'none'}"
    header = [name.replace("_", " ") for name in rows[0]]
    return columns([header, *([_cell(value) for value in row.values()] for row in rows)])


def _experiment(name: str, params: Params) -> ListedExperiment:
    found, _ = read_results(name)
    experiment = params.experiment(name)
    stages = {
        "train": found,
        "evaluate": found and found.inside,
        "quantize": found and found.quantized,
        "parity": found and found.parity,
        "benchmark": found and found.benchmark,
        "bundle": found and found.shipped,
    }
    variants = found.parity.variants.values() if found and found.parity else ()
    passed = all(one.passed for one in variants) if variants else None
    return ListedExperiment(
        experiment=name,
        dataset=experiment.dataset,
        model=experiment.model.name,
        epochs=experiment.epochs,
        has_run=tuple(stage for stage, report in stages.items() if report),
        parity=None if passed is None else "passed" if passed else "failed",
        ships=found.shipped.variant if found and found.shipped else None,
    )


def _dataset(name: str, params: Params) -> ListedDataset:
    if (layout.ready(name) / ready.MANIFEST).is_file():
        manifest = ready.open_manifest(layout.ready(name))
        return ListedDataset(
            dataset=name,
            state="ready",
            kind=manifest.kind,
            rows=sum(manifest.rows.values()),
            classes=len(manifest.labels) or None,
        )
    state = "pulled" if layout.raw(name).is_dir() else "not pulled"
    known = name in params.datasets
    state = state if known else "not in params.yaml"
    return ListedDataset(dataset=name, state=state, kind=None, rows=None, classes=None)


def _cell(value: object) -> str:
    if value in (None, ()):
        return DASH
    if isinstance(value, tuple):
        return " ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
