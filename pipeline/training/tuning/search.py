"""What may change of an experiment: by its `search` section for `ferry tune`, or by `--set`.

A key is the path of a setting below the experiment, and every value is read as that setting of
params.yaml is, before anything is trained.
"""

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline import models
from pipeline.config import fitting, params
from pipeline.config.experiment import Experiment, Interval
from pipeline.config.reading import read_section
from pipeline.config.yamlfile import dump_value, dump_yaml, read_value
from pipeline.errors import ConfigError
from pipeline.records.tune import Setting
from serving.errors import UnknownNameError, UsageError, nearest
from serving.files import dump_json, sha256_of_bytes

SEARCHED = ("epochs", "model", "train")
"""The parts of an experiment that change what is trained."""
ASKED = ("train.augment.", "train.teacher.experiment", "train.teacher.views")
"""How the keys begin for which a teacher would have to be asked anew."""


def check(experiment: Experiment, rows: fitting.KnownRows | None = None) -> None:
    """Refuse a search section that cannot be followed.

    Each value is tried beside the experiment's other settings and, as in `fitting.check`, with what
    is known of its rows. Raises ConfigError with the key's path, the value and what was expected.
    """
    where = f"experiments.{experiment.name}.search"
    if not experiment.search:
        raise ConfigError(
            f"{where} is missing: it says what may change, for instance "
            f"search: {{train.lr: {{low: 1.0e-4, high: 1.0e-1, log: true}}, "
            f"train.batch_size: [32, 64]}}"
        )
    known = params.training_settings(experiment)
    for key, space in experiment.search.items():
        if key not in known:
            raise ConfigError(f"{where}.{key} is no setting of the training{nearest(key, known)}")
        if experiment.train.teacher and key.startswith(ASKED):
            raise ConfigError(
                f"{where}.{key}: the teacher's logits, which all trials share, are for one value; "
                f"remove it, or set train.teacher to null"
            )
        if isinstance(space, Interval):
            _check_interval(space, f"{where}.{key}")
            values: tuple[Setting, ...] = (space.low, space.high)
        else:
            _check_choices(space, f"{where}.{key}")
            values = space
        for value in values:
            changed = _read(experiment, {key: value}, where)
            try:
                fitting.check(changed, rows)
            except (ConfigError, UnknownNameError) as error:
                raise ConfigError(f"{where}.{key}: {value} will not do: {error}") from error


def check_grid(experiment: Experiment) -> None:
    """Refuse an interval, of which there are endless values; ConfigError."""
    for key, space in experiment.search.items():
        if isinstance(space, Interval):
            raise ConfigError(
                f"experiments.{experiment.name}.search.{key} is an interval, which has no grid; "
                f"list its values, as in [{space.low}, {space.high}], or search with "
                f"--sampler random or tpe"
            )


def apply(
    experiment: Experiment,
    settings: Mapping[str, Setting],
    rows: fitting.KnownRows | None = None,
) -> Experiment:
    """The experiment with some of its settings changed.

    Raises ConfigError for settings that do not fit together or, as `fitting.check`, the rows.
    """
    changed = _read(experiment, settings, f"experiments.{experiment.name}")
    fitting.check(changed, rows)
    return changed


def with_settings(
    experiment: Experiment, given: Sequence[str]
) -> tuple[Experiment, dict[str, str]]:
    """The experiment as `KEY=VALUE` change it, each value written as in params.yaml; and those.

    Raises UsageError for what is no such pair, and ConfigError for a key that is no setting of the
    training and for a value that will not do.
    """
    known = params.training_settings(experiment)
    values = given_settings(given)
    for key, value in values.items():
        # A section such as train.teacher may be switched off as a whole.
        section = value is None and any(one.startswith(f"{key}.") for one in known)
        if key not in known and not section:
            raise ConfigError(f"--set {key} is no setting of the training{nearest(key, known)}")
    return apply(experiment, values), {key: dump_value(value) for key, value in values.items()}


def given_settings(given: Sequence[str]) -> dict[str, Any]:
    """What `KEY=VALUE` set, each value as params.yaml has it; UsageError for what is no such pair.

    Raises ConfigError for a value that cannot stand in params.yaml.
    """
    values: dict[str, Any] = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or key in values:
            raise UsageError(f"--set takes KEY=VALUE, each key once, got {one!r}")
        values[key] = read_value(text, f"--set {key}")
    return values


def combinations(experiment: Experiment) -> Iterator[dict[str, Setting]]:
    """Every combination of the listed values, the last key's changing fastest.

    There must be no interval.
    """
    spaces = experiment.search.values()
    lists = [() if isinstance(space, Interval) else space for space in spaces]
    for values in itertools.product(*lists):
        yield dict(zip(experiment.search, values, strict=True))


def identity(experiment: Experiment, data_sha256: str) -> str:
    """The sha256 of all that trials of one study share.

    The search space, the data and the settings of the training but those that are searched, so
    that a study goes on after its best settings were put into params.yaml.
    """
    raw = asdict(experiment)
    for key in experiment.search:
        _put(raw, key, None)
    shared = {name: raw[name] for name in (*SEARCHED, "search")}
    return sha256_of_bytes(dump_json(shared | {"data": data_sha256}).encode())


def fragment(experiment: str, settings: Mapping[str, Setting]) -> str:
    """Settings as a part of params.yaml."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = list(value) if isinstance(value, tuple) else value
    return dump_yaml({"experiments": {experiment: nested}})


def overrides(experiment: str, settings: Mapping[str, Setting]) -> str:
    """Settings as options of `dvc exp run`, quoted for a shell; none where it would spoil one.

    The ++ also sets what the experiment inherits. DVC writes 0.00001 as 1e-05 into params.yaml,
    whatever is typed, which YAML 1.1 reads as text.
    """
    floats = [repr(value) for value in settings.values() if isinstance(value, float)]
    if any("e" in text and "." not in text for text in floats):
        return ""
    texts = [
        f"++experiments.{experiment}.{key}={value if isinstance(value, str) else _compact(value)}"
        for key, value in settings.items()
    ]
    return " ".join(f"-S {shlex.quote(text)}" for text in texts)


def _compact(value: Setting) -> str:
    return json.dumps(value, separators=(",", ":"))


def _check_interval(space: Interval, where: str) -> None:
    if not space.low < space.high:
        raise ConfigError(f"{where}.low must be below high, got {space.low} and {space.high}")
    if space.log and space.low <= 0:
        raise ConfigError(f"{where}.low must be above 0 where log is true, got {space.low}")


def _check_choices(choices: tuple[Setting, ...], where: str) -> None:
    seen = [(type(choice), choice) for choice in choices]
    for index, choice in enumerate(seen):
        if choice in seen[:index]:
            raise ConfigError(f"{where}.{index}: {choices[index]} is there twice")


def _read(experiment: Experiment, settings: Mapping[str, Setting], where: str) -> Experiment:
    """Change settings as if they were written in params.yaml, below `where`."""
    raw = asdict(experiment)
    for key, value in settings.items():
        _put(raw, key, value)
    changed = read_section(Experiment, raw, where)
    models.settings(changed.model, where=f"{where}.model")
    return changed


def _put(raw: dict[str, Any], key: str, value: Setting | None) -> None:
    *sections, last = key.split(".")
    if sections[:1] == ["model"] and key != "model.name":
        sections.insert(1, "settings")
    node = raw
    for section in sections:
        node = node[section]
    node[last] = value
