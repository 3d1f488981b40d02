"""Read params.yaml, the one place of every default of ferry, into `pipeline.config.experiment`.

Whatever is wrong in the file is refused with the key's full path, the value and what was expected.

Whether the settings of an experiment fit together: its data set, its model and its loss.

It is asked before any data is read, so that a wrong setting costs no time.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from pipeline import datasets, models
from pipeline.config.experiment import AugmentConfig, Experiment, Params
from pipeline.config.reading import read_section, read_yaml
from pipeline.datasets import Dataset
from pipeline.errors import ConfigError
from serving.errors import nearest

# A name is a folder, an item of a DVC stage and a part of a key's path, all at once.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises MissingInputError when there is no such file and ConfigError for what is wrong in it.
    """
    raw = read_yaml(path)
    params = read_section(Params, _with_names(raw), "")
    _refuse_unknown_names(params)
    return params


def _with_names(raw: object) -> object:
    """Give each experiment its name, and gather the settings of its model below `settings`."""
    if not isinstance(raw, dict) or not isinstance(raw.get("experiments"), dict):
        return raw
    experiments = {name: _with_name(name, body) for name, body in raw["experiments"].items()}
    return raw | {"experiments": experiments}


def _with_name(name: str, body: object) -> object:
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


def _refuse_unknown_names(params: Params) -> None:
    for name in params.datasets:
        if name not in datasets.names():
            raise ConfigError(f"datasets.{name}: no such data set{nearest(name, datasets.names())}")
    for index, name in enumerate(params.short):
        _refuse_unknown(f"short.{index}", "experiment", name, params.experiments)
    for experiment in params.experiments.values():
        where = f"experiments.{experiment.name}"
        against, source = experiment.evaluate.against, experiment.train.init_from
        _refuse_unknown(f"{where}.dataset", "data set", experiment.dataset, params.datasets)
        _refuse_unknown(f"{where}.evaluate.against", "data set", against, params.datasets)
        _refuse_unknown(f"{where}.model.name", "model", experiment.model.name, models.names())
        if source is not None:
            others = params.experiments.keys() - {experiment.name}
            _refuse_unknown(f"{where}.train.init_from", "other experiment", source, sorted(others))


def _refuse_unknown(where: str, what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ConfigError(f"{where}: no {what} named {name!r}{nearest(name, known)}")


def check(experiment: Experiment) -> None:
    """Refuse an experiment whose parts do not fit.

    Raises ConfigError with the key's path, the value and what would do.
    """
    where = f"experiments.{experiment.name}"
    dataset = datasets.get(experiment.dataset)
    models.settings(experiment.model, where=f"{where}.model")
    _check_kind(experiment, dataset, where)
    _check_loss(experiment, dataset, where)
    _check_optimizer(experiment, where)


def _check_kind(experiment: Experiment, dataset: Dataset, where: str) -> None:
    name = experiment.model.name
    kinds = models.takes(name)
    if dataset.kind not in kinds:
        raise ConfigError(
            f"{where}.model.name: {name} takes {' or '.join(kinds)} rows, {experiment.dataset} has "
            f"{dataset.kind} rows"
        )
    augment = experiment.train.augment
    if dataset.kind != "image" and augment != _no_change(augment):
        raise ConfigError(
            f"{where}.train.augment: {experiment.dataset} has {dataset.kind} rows, and only images "
            f"can be changed; set each of its keys to 0 or false"
        )


def _no_change(augment: AugmentConfig) -> AugmentConfig:
    return replace(augment, translate=0, rotate=0, scale=0, flip=False, cutout=0)


def _check_loss(experiment: Experiment, dataset: Dataset, where: str) -> None:
    name, loss, classes = experiment.model.name, experiment.train.loss, len(dataset.labels)
    reconstructs = models.gives(name) == "reconstruction"
    fitting = "mean_squared_error" if reconstructs else "cross_entropy or binary_cross_entropy"
    if reconstructs != (loss == "mean_squared_error"):
        raise ConfigError(
            f"{where}.train.loss: {loss} does not fit {name}, which gives "
            f"{'pictures' if reconstructs else 'classes'}; choose {fitting}"
        )
    if loss == "binary_cross_entropy" and classes != 2:
        raise ConfigError(
            f"{where}.train.loss: {loss} tells two classes apart, {experiment.dataset} has "
            f"{classes}; choose cross_entropy"
        )
    if reconstructs and experiment.train.label_smoothing:
        raise ConfigError(
            f"{where}.train.label_smoothing must be 0 for {loss}, which has no labels, got "
            f"{experiment.train.label_smoothing}"
        )


def _check_optimizer(experiment: Experiment, where: str) -> None:
    """Newton's steps are taken over all rows: what changes from step to step misleads them."""
    config = experiment.train
    if config.optimizer == "lbfgs" and config.augment != _no_change(config.augment):
        raise ConfigError(
            f"{where}.train.augment: lbfgs asks for the same loss several times a step, and random "
            f"changes would make it another; set each of its keys to 0 or false"
        )
    unused = {"momentum": config.momentum, "weight_decay": config.weight_decay, "clip": config.clip}
    for key, value in unused.items():
        if config.optimizer == "lbfgs" and value:
            raise ConfigError(
                f"{where}.train.{key} must be 0 for lbfgs, which has none, got {value}"
            )
