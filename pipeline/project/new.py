"""`ferry new experiment NAME --dataset D --model M`: a section of params.yaml that runs.

The settings of the model are those of the first experiment with it, here or in ferry's own
params.yaml, cut down where the images are too small for them. All else is left to the defaults.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import datasets, models
from pipeline.config import fitting, layout, params
from pipeline.config.experiment import ModelConfig, OwnSection, Params
from pipeline.config.layout import DVC_YAML, PARAMS
from pipeline.config.yamlfile import dump_value, parse_yaml, text_of, with_entry
from pipeline.errors import ConfigError
from pipeline.models import Shape
from pipeline.project.data import bring_up_to_date
from pipeline.records.ready import MANIFEST, DatasetManifest, open_manifest
from pipeline.training.tuning.search import given_settings
from serving.errors import UnknownNameError, UsageError
from serving.files import blaming, write_text

MODEL = "model."
"""How the settings of the model begin."""
FEWEST_STEPS, SMALLEST_BATCH = 10, 8
"""Of an epoch, and the rows of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewExperiment:
    """What was written."""

    name: str
    params: Path
    section: str
    """The lines of it."""


def new_experiment(
    name: str, *, dataset: str, model: str, given: Sequence[str] = (), path: Path = PARAMS
) -> NewExperiment:
    """Write the section of an experiment into params.yaml, whose other lines stay as they are.

    `given` are settings, each as `train.lr=0.01`. A data set of the user's own is read first, for
    what its rows are. Raises UsageError for a name that is there already or is none,
    UnknownNameError for a data set or a model that does not exist, and ConfigError for a
    params.yaml that cannot be read, for settings that are missing or wrong, and for a model that
    does not fit the data set; nothing is written then.
    """
    own = given_settings(given)
    ferrys = params.load(params.brought_along(PARAMS))
    known = params.load(path)  # the last one: the registries look into its package
    _refuse_name(name, known.experiments.keys() | known.broken.keys())
    config = params.dataset(known, dataset)
    if model not in models.names():
        raise UnknownNameError("model", model, models.names())
    ready = path.parent / layout.ready(dataset)
    if isinstance(config, OwnSection):
        bring_up_to_date(path.parent / layout.raw(dataset), ready, name=dataset, config=config)
    manifest = _manifest(ready)
    settings = _settings(model, own, known, ferrys)
    if manifest:
        settings = _fitted(name, ModelConfig(name=model, settings=settings), manifest)
    defaults = params.defaults(path)
    body: dict[str, object] = {
        "dataset": dataset,
        "epochs": defaults["epochs"],
        "model": {"name": model, **settings},
        "train": _loss(dataset, model, manifest) | _batch_size(defaults["train"], manifest),
        **{section: {} for section in params.SECTIONS[2:]},
    }
    for key, value in own.items():
        _put(body, key, value)
    lines = [f"{key}: {dump_value(value)}" for key, value in body.items()]
    section = "\n".join([f"  {name}:", *(f"    {line}" for line in lines)])
    text = with_entry(path, "experiments", section)
    _check(text, name, path, manifest)
    stages = path.with_name(DVC_YAML.name)
    fetched = _with_artifact(stages, name, artifact(name, dataset, model))
    write_text(path, text)
    if fetched:
        write_text(stages, fetched)
    return NewExperiment(name=name, params=path, section=section)


def artifact(name: str, dataset: str, model: str) -> str:
    """The lines of dvc.yaml, below `artifacts`, by which others fetch an experiment's bundle.

    DVC has no `foreach` there.
    """
    labels = dump_value(["onnx", dataset, model])
    return (
        f"  {name}: {{path: {layout.bundle(name)}, type: model, labels: {labels},\n"
        f"    desc: The bundle of {model} on {dataset}.}}"
    )


def _with_artifact(path: Path, name: str, lines: str) -> str:
    """The text of dvc.yaml with one more bundle to fetch; "" where there is no such file."""
    text = text_of(path) if path.exists() else ""
    document = parse_yaml(text, str(path)) or {}
    known = document.get("artifacts") or {} if isinstance(document, dict) else None
    if not isinstance(known, dict):
        raise ConfigError(f"{path} and its section artifacts must be mappings")
    if known:
        # One that is left of an earlier experiment stays.
        return text if name in known else with_entry(path, "artifacts", lines)
    return f"{text.rstrip()}\n\nartifacts:\n{lines}\n" if text else ""


def _refuse_name(name: str, taken: set[str]) -> None:
    if not params.NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name of letters, digits, '-' and '_'")
    if name in taken:
        raise UsageError(f"experiments.{name} is there already; choose another name, or change it")


def _manifest(folder: Path) -> DatasetManifest | None:
    """What is known of a data set once it is preprocessed."""
    return open_manifest(folder) if (folder / MANIFEST).exists() else None


def _settings(model: str, own: Mapping[str, Any], *places: Params) -> Mapping[str, object]:
    """Those of the first experiment with this model, changed by one's own `model.KEY`.

    Raises ConfigError where settings are left that neither gives.
    """
    found = (
        experiment.model.settings
        for place in places
        for experiment in place.experiments.values()
        if experiment.model.name == model
    )
    changed = {
        key.removeprefix(MODEL): value for key, value in own.items() if key.startswith(MODEL)
    }
    settings = {**next(found, {}), **changed}
    missing = [key for key in models.needed_settings(model) if key not in settings]
    if missing:
        options = " ".join(f"--set {MODEL}{key}=VALUE" for key in missing)
        raise ConfigError(f"no experiment has model {model} yet; give its settings: {options}")
    return settings


def _put(body: dict[str, Any], key: str, value: object) -> None:
    """Write a setting at its path; ConfigError for what another option says."""
    if key in ("dataset", "model", f"{MODEL}name"):
        raise ConfigError(f"--set {key}: --dataset and --model say which there are")
    *sections, last = key.split(".")
    node: Any = body
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {section} is no section")
    node[last] = value


def _fitted(experiment: str, model: ModelConfig, manifest: DatasetManifest) -> Mapping[str, object]:
    """Cut settings down until the network can be made for rows of this shape.

    Raises ConfigError for what no smaller one can be made of.
    """
    shape = Shape.of(manifest, max(1, len(manifest.labels)))
    while manifest.kind == "image":
        try:
            models.build(model, shape, where=f"experiments.{experiment}.model")
        except ConfigError:
            smaller = _smaller(model.settings)
            if smaller is None:
                raise
            model = replace(model, settings=smaller)
        else:
            break
    return model.settings


def _smaller(settings: Mapping[str, Any]) -> dict[str, object] | None:
    """The same with one halving of the planes less; None where there is none to leave out."""
    pools, widths = settings.get("pools"), settings.get("widths", ())
    if pools is not None:
        if True not in pools:
            return None
        first = pools.index(True)
        return {**settings, "pools": [*pools[:first], False, *pools[first + 1 :]]}
    return {**settings, "widths": widths[:-1]} if len(widths) > 1 else None


def _loss(dataset: str, model: str, manifest: DatasetManifest | None) -> dict[str, object]:
    """The loss, where it is not the default one for the data set."""
    known = datasets.get(dataset) if dataset in datasets.names() else manifest
    own_targets = known is manifest and manifest is not None and manifest.targets
    if models.gives(model) == "reconstruction" or own_targets:
        return {"loss": "mean_squared_error"}
    return {"loss": "binary_cross_entropy"} if known and len(known.labels) == 2 else {}


def _batch_size(defaults: Mapping[str, Any], manifest: DatasetManifest | None) -> dict[str, object]:
    """A smaller one than the default where it would be too few steps an epoch to learn from."""
    default = size = defaults["batch_size"]
    rows = manifest.arrays["train_inputs.npy"].shape[0] if manifest else None
    while rows is not None and rows // size < FEWEST_STEPS and size > SMALLEST_BATCH:
        size //= 2
    return {} if size == default else {"batch_size": size}


def _check(text: str, name: str, path: Path, manifest: DatasetManifest | None) -> None:
    """Refuse a file in which the new experiment cannot be read or does not fit its data set."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with blaming(path):
            write_text(beside, text)
        fitting.check(params.load(beside).experiment(name), manifest)
    finally:
        beside.unlink(missing_ok=True)
