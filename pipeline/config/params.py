"""Read params.yaml, the one place of every default of ferry, into `pipeline.config.experiment`.

An experiment is its own section and, for what that does not say, the section `defaults`. Whatever
is wrong is refused with the full path of the key where it stands, the value and what was expected.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from pipeline import datasets, models
from pipeline.config import layout
from pipeline.config.experiment import (
    Counts,
    DatasetConfig,
    Defaults,
    Experiment,
    OwnSection,
    Params,
    PositiveNumber,
    StrictSettings,
)
from pipeline.config.fitting import check_teacher
from pipeline.config.layout import PARAMS
from pipeline.config.reading import check_defaults, read_section, use_package
from pipeline.config.yamlfile import read_yaml
from pipeline.errors import ConfigError
from serving.errors import UsageError, nearest

BROUGHT_ALONG = (Path(__file__).parents[1], Path(__file__).parents[2])
"""Where params.yaml and dvc.yaml of ferry are: in an installed package, and in its repository."""
SECTIONS = tuple(
    field.name for field in fields(Defaults) if field.name not in ("preprocess", "regression")
)
"""What an experiment may leave to the defaults."""
HAS_DEFAULTS = re.compile(r"^defaults:", re.MULTILINE)
Record = TypeVar("Record")
# A name is a folder, an item of a DVC stage and a part of a key's path, all at once.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def load(path: Path = PARAMS) -> Params:
    """Read and check params.yaml; what is wrong with one experiment is kept in `broken`.

    Raises MissingInputError when there is no such file and ConfigError for what else is wrong.
    """
    document, wrong = _read_document(path)
    splits = {name: _read_dataset(name, document) for name in document.datasets}
    experiments: dict[str, Experiment] = {}
    broken = dict(wrong)
    for name in [name for name in document.experiments if name not in wrong]:
        try:
            experiments[name] = _read_experiment(name, document)
        except ConfigError as error:
            broken[name] = str(error)
    for name in [*experiments]:
        try:
            check_teacher(experiments[name], experiments, document.students)
        except ConfigError as error:
            broken[name] = str(error)
            del experiments[name]
    return Params(
        mirrors=document.mirrors,
        short=document.short,
        datasets=splits,
        experiments=experiments,
        broken=broken,
    )


def dataset(known: Params, name: str) -> DatasetConfig | OwnSection:
    """The settings of a data set.

    Raises UsageError with the line to write for a data set without a section, and UnknownNameError
    with the nearest one for a name that is none.
    """
    if name in datasets.names() and name not in known.datasets:
        raise UsageError(
            f"{PARAMS} has no data set {name} yet; write a line for it below `datasets`, such as "
            f"`{name}: {{validation_rows: 1000}}`"
        )
    return known.dataset(name)


def stage_defaults(stage: str, record: type[Record]) -> Record:
    """The settings of a stage for what is no experiment: the section `defaults` alone.

    Outside of a project those are ferry's own. A params.yaml without `defaults` is no project's,
    for DVC gives the settings of any program this name. Raises ConfigError as `load` does, and for
    a key that the section leaves to the experiments.
    """
    path = layout.project() / PARAMS
    if not (path.exists() and HAS_DEFAULTS.search(path.read_text(encoding="utf-8"))):
        path = brought_along(PARAMS)
    return read_section(record, defaults(path)[stage], f"defaults.{stage}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig(StrictSettings):
    """What a challenger must hold to become the champion."""

    significance: Annotated[float, Field(gt=0, lt=1)]
    """The p-value of a loss below which it is more than noise."""
    max_slowdown: PositiveNumber
    """Most times as long as the champion that it may take, at each batch size."""
    batch_sizes: Counts
    seconds: PositiveNumber
    """For each of the two at each batch size, after warm-up."""


def registry(path: Path = PARAMS) -> RegistryConfig:
    """The section `registry`, and what it lacks of ferry's own; raises as `load` does."""
    own, ferrys = {}, _read_document(brought_along(PARAMS))[0].registry
    if path.exists():
        own = dict(_read_document(path)[0].registry)
    return read_section(RegistryConfig, _filled(own, ferrys), "registry")


def defaults(path: Path = PARAMS) -> Mapping[str, Any]:
    """The section `defaults`, as it stands there; raises as `load` does."""
    document, _ = _read_document(path)
    return document.defaults


def brought_along(file: Path) -> Path:
    """The params.yaml or dvc.yaml of ferry itself."""
    return next(folder / file for folder in BROUGHT_ALONG if (folder / file).exists())


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSetting:
    """One value of an experiment, and the section of params.yaml in which it stands."""

    value: object
    source: str
    """"experiments.NAME", "defaults.regression" or "defaults"."""


def resolve(name: str, path: Path = PARAMS) -> dict[str, ResolvedSetting]:
    """The settings of an experiment, each by its path below the experiment.

    Raises as `load` does, and for the name as `Params.experiment` does.
    """
    load(path).experiment(name)
    document, _ = _read_document(path)
    return {
        ".".join(keys): ResolvedSetting(value=value, source=_source(name, keys, document))
        for keys, value in leaves(_with_defaults(document.experiments[name], document))
    }


def lacking(name: str, path: Path = PARAMS) -> dict[str, object]:
    """The sections that an experiment leaves to the defaults, and what to write for DVC.

    DVC stops at a stage that depends on a key which is not there. Raises as `resolve` does.
    """
    document, _ = _read_document(path)
    defaults = {key: document.defaults[key] for key in SECTIONS}
    return {
        key: {} if isinstance(value, Mapping) else value
        for key, value in defaults.items()
        if key not in document.experiments[name]
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document(StrictSettings):
    """What stands in the file, before the defaults are put into it."""

    ferry: Annotated[str, Field(pattern=r"^\d+(\.\d+)+")] | None = None
    """The version of ferry whose stages the project's dvc.yaml has; none in ferry's repository."""
    package: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None = None
    """The folder of the project's own `datasets` and `models`, beside params.yaml."""
    mirrors: tuple[str, ...]
    short: tuple[str, ...] = ()
    students: Mapping[str, str] = field(default_factory=dict)
    """The teacher of each experiment that has one, for DVC."""
    registry: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any]
    datasets: Mapping[str, Any]
    experiments: Mapping[str, Any]


def _read_document(path: Path) -> tuple[_Document, dict[str, str]]:
    """Read what is there, and what is wrong with the YAML of single experiments."""
    raw, wrong = read_yaml(path, "experiments")
    document = read_section(_Document, raw, "")
    _check_version(document.ferry, path)
    _use_package(document.package, path)
    check_defaults(Defaults, document.defaults, "defaults")
    for index, name in enumerate(document.short):
        _refuse_unknown(f"short.{index}", "experiment", name, document.experiments)
    for name in document.students:
        _refuse_unknown("students", "experiment", name, document.experiments)
    return document, wrong


def _check_version(wanted: str | None, path: Path) -> None:
    """Refuse a project of another version, whose stages would not be those that ran."""
    if wanted is None or wanted == (installed := metadata.version("onnx-ferry")):
        return
    newer = _numbers(wanted) > _numbers(installed)
    remedy = (
        "pip install --upgrade onnx-ferry"
        if newer
        else f"write `ferry: {installed}` there and its stages run again, or "
        f"pip install onnx-ferry=={wanted}"
    )
    raise ConfigError(f"{path} is of ferry {wanted}, this is {installed}: {remedy}")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _use_package(package: str | None, path: Path) -> None:
    folder = path.parent / package if package else None
    if folder and not folder.is_dir():
        raise ConfigError(f"package: {package} is no folder beside {path}")
    use_package(folder)


def _read_dataset(name: str, document: _Document) -> DatasetConfig | OwnSection:
    defaults = dict(document.defaults["preprocess"])
    where, built_in = f"datasets.{name}", name in datasets.names()
    section = document.datasets[name]
    reader = section.get("reader") if isinstance(section, Mapping) else None
    if reader is None and not built_in:
        raise ConfigError(
            f"{where}: no such data set, and no reader for one of your own"
            f"{nearest(name, datasets.names())}"
        )
    if reader is None:
        defaults.pop("test_rows", None)
        return read_section(DatasetConfig, _filled(section, defaults), where)
    if built_in:
        raise ConfigError(f"{where} is a data set of ferry's; choose another name for your own")
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where} is not a name of letters, digits, '-' and '_'")
    return OwnSection(reader=str(reader), settings={**defaults, **section})


def _read_experiment(name: str, document: _Document) -> Experiment:
    own = document.experiments[name]
    body = _with_name(name, _with_defaults(own, document))
    experiment = read_section(Experiment, body, f"experiments.{name}")
    _refuse_unknown_names(experiment, document)
    return experiment


def _with_defaults(own: object, document: _Document) -> object:
    """An experiment with all that it lacks of the defaults, those of its kind first."""
    inherited = {key: document.defaults[key] for key in SECTIONS}
    if _is_regression(own, document):
        inherited = _filled(document.defaults["regression"], inherited)
    return _filled(own, inherited)


def _is_regression(own: Any, document: _Document) -> bool:
    """Whether the data set of an experiment has targets in place of classes.

    That is known of ferry's own; of others their section may say it, or else the loss.
    """
    name = own.get("dataset") if isinstance(own, Mapping) else None
    if not isinstance(name, str) or name not in document.datasets:
        return False
    if name in datasets.names():
        return bool(datasets.get(name).targets)
    named = _stands_in(document.datasets[name], ["target"])
    return named or (
        _stands_in(own, ["train", "loss"]) and own["train"]["loss"] == "mean_squared_error"
    )


def _filled(own: Any, defaults: Any) -> Any:
    """A mapping with what it lacks of the defaults, at every depth; any other value as it is."""
    if not isinstance(own, Mapping) or not isinstance(defaults, Mapping):
        return own
    inherited = {key: value for key, value in defaults.items() if key not in own}
    return {key: _filled(value, defaults.get(key)) for key, value in own.items()} | inherited


def _source(name: str, keys: Sequence[str], document: _Document) -> str:
    """The section in which a setting of an experiment stands."""
    own = document.experiments[name]
    if _stands_in(own, keys):
        return f"experiments.{name}"
    special = _is_regression(own, document) and _stands_in(document.defaults["regression"], keys)
    return "defaults.regression" if special else "defaults"


def _stands_in(section: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(section, Mapping) or key not in section:
            return False
        section = section[key]
    return True


def training_settings(experiment: Experiment) -> dict[str, object]:
    """Every setting that changes what is trained, by its path below the experiment."""
    raw = asdict(experiment)
    model = {"name": experiment.model.name, **experiment.model.settings}
    searched = {"epochs": raw["epochs"], "model": model, "train": raw["train"]}
    return {".".join(keys): value for keys, value in leaves(searched)}


def leaves(node: object, *keys: str) -> Iterator[tuple[tuple[str, ...], object]]:
    """All that is no mapping, or an empty one, with the keys that lead to it."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, *keys, key)
    else:
        yield keys, node


def _with_name(name: str, body: object) -> object:
    """Give an experiment its name, and gather the settings of its model below `settings`."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"experiments.{name} is not a name of letters, digits, '-' and '_'")
    if not isinstance(body, dict):
        return body
    if "name" in body:
        raise ConfigError(f"experiments.{name}.name is not a key: the section is named already")
    model = body.get("model")
    if isinstance(model, dict):
        settings = {key: value for key, value in model.items() if key != "name"}
        named = {"name": model["name"]} if "name" in model else {}
        body = body | {"model": named | {"settings": settings}}
    return body | {"name": name}


def _refuse_unknown_names(experiment: Experiment, document: _Document) -> None:
    name = experiment.name
    others = sorted(document.experiments.keys() - {name})
    teacher = experiment.train.teacher
    taught_by = teacher.experiment if teacher else None
    named: list[tuple[tuple[str, ...], str, str | None, Collection[str]]] = [
        (("dataset",), "data set", experiment.dataset, document.datasets),
        (("evaluate", "against"), "data set", experiment.evaluate.against, document.datasets),
        (("model", "name"), "model", experiment.model.name, models.names()),
        (("train", "init_from"), "other experiment", experiment.train.init_from, others),
        (("train", "teacher", "experiment"), "other experiment", taught_by, others),
    ]
    for keys, what, value, known in named:
        if value is not None:
            _refuse_unknown(".".join((_source(name, keys, document), *keys)), what, value, known)


def _refuse_unknown(where: str, what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ConfigError(f"{where}: no {what} named {name!r}{nearest(name, known)}")
