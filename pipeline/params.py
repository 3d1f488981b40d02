"""Read params.yaml, the one place of every default of ferry, into the records of `pipeline.config`.

Whatever is wrong in the file is refused with the key's full path, the value and what was expected.
"""

import re
from collections.abc import Collection
from pathlib import Path

from pipeline import datasets, models
from pipeline.config import Params
from pipeline.errors import ConfigError
from pipeline.sections import read_section
from pipeline.yamlfile import read_yaml
from serving.errors import nearest

__all__ = ["load"]

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
