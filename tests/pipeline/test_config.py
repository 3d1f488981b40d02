"""params.yaml: what is right in it is read, and what is wrong is told in one line."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import datasets, models
from pipeline.cli import ferry
from pipeline.config import reading
from pipeline.config.experiment import BundleConfig, Experiment, ModelConfig, Params
from pipeline.config.fitting import check
from pipeline.config.params import lacking, load, resolve, stage_defaults
from pipeline.errors import ConfigError
from pipeline.stages.train import train
from serving.errors import MissingInputError, UnknownNameError

ROOT = Path(__file__).parents[2]
TEXT = """\
mirrors: []
datasets:
  digits: {validation_rows: 180}
  moons: {validation_rows: 300, seed: 7}
short: [one]
defaults:
  epochs: 30
  regression: {train: {loss: mean_squared_error}, parity: {fp32: {max_abs_diff: null}}}
  preprocess: {seed: 1}
  train: {loss: cross_entropy, batch_size: 64, optimizer: adamw, momentum: 0.9, weight_decay: 0,
    schedule: onecycle, label_smoothing: 0, clip: 0, ema: 0, early_stop: 0, init_from: null,
    augment: {translate: 0, rotate: 0, scale: 0, flip: false, cutout: 0}, compile: false, seed: 1,
    sides: [], teacher: null, device: auto}
  evaluate: {strengths: [0.1], rows: 500, steps: 10, against: null}
  export: {opset: 20}
  quantize: {goal: speed, accuracy_loss: 0.3, error_increase: 5, batch_sizes: [1, 32],
    min_speedup: {fp16: 0.7, int8: 1}, seconds: 0.4, calibration_rows: 512, recipes: [],
    needs: [], qat_epochs: 0, seed: 1, skip: {}}
  parity:
    batch_sizes: [1, 7, 256]
    levels: [all]
    exporters: [dynamo]
    sample_rows: 512
    reference_rows: 4
    seed: 1
    fp32: &gate {max_abs_diff: 1.0e-4, max_scaled_diff: null, max_probability_diff: null,
      min_snr_db: 110, min_kernel_snr_db: 110, flips: 0, accuracy_loss: 0, batch_diff: 1.0e-4,
      error_increase: null}
    fp16: {<<: *gate, flips: 1}
    int8: *gate
  benchmark: {batch_sizes: [1, 64], threads: [1, 0], seconds: 0.2, rounds: 10, baselines: [eager],
    growth_calls: 10000, cold_starts: 0, seed: 1}
  bundle: {goal: latency, min_gain: 1.1, golden_rows: 16, budgets: {}}
experiments:
  one:
    dataset: digits
    epochs: 60
    model: {name: mlp, hidden: [128], activation: relu, dropout: 0.1}
    train: {lr: 4.0e-3, augment: {rotate: 5}}
    evaluate: {against: digits}
    export: {}
    quantize: {skip: {}}
    parity: {int8: {flips: 4}}
    benchmark: {batch_sizes: [1, 8]}
    bundle: {}
  two:
    dataset: moons
    epochs: 40
    model: {name: mlp, hidden: [10], activation: relu, dropout: 0}
    train: {lr: 1.0e-2, batch_size: 10}
    evaluate: {against: moons}
    export: {}
    quantize: {}
    parity: {}
    benchmark: {}
    bundle: {}
"""
ONE = "experiments.one"

Refused = Callable[[str], str]


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Params]:
    """Load a text as params.yaml."""

    def read(text: str) -> Params:
        path = tmp_path / "params.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path)

    return read


@pytest.fixture
def refused(read: Callable[[str], Params]) -> Refused:
    """The one line that refuses a text, or an experiment of it."""

    def refused(text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            raise ConfigError(next(iter(read(text).broken.values())))
        assert caught.value.exit_code == 2
        line = str(caught.value)
        assert len(line.splitlines()) == 1, line
        return line

    return refused


def edited(old: str, new: str) -> str:
    """The text with its first `old` replaced by `new`."""
    assert old in TEXT
    return TEXT.replace(old, new, 1)


def test_the_file_of_the_repository_is_read_and_its_experiments_fit() -> None:
    params = load(ROOT / "params.yaml")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert list(params.experiments) == list(raw["experiments"])
    assert not params.broken
    for experiment in params.experiments.values():
        check(experiment)


@pytest.mark.parametrize("name", ["one", "two"])
def test_every_value_arrives_from_the_experiment_or_from_the_defaults(
    name: str, read: Callable[[str], Params]
) -> None:
    experiment = read(TEXT).experiment(name)
    raw = yaml.safe_load(TEXT)
    own = {path: value for path, value in leaves(raw["experiments"][name]) if value != {}}
    inherited = {
        path: value
        for path, value in leaves(raw["defaults"])
        if path[0] not in ("preprocess", "regression") and path not in own and value != {}
    }
    for path, value in [*own.items(), *inherited.items()]:
        assert value_at(experiment, path) == value, path
    read_values = [value for _, value in leaves(without_name(experiment)) if value != {}]
    assert len(own) + len(inherited) == len(read_values)


def value_at(experiment: Experiment, path: tuple[str, ...]) -> Any:
    found: Any = experiment
    for part in path:
        if isinstance(found, ModelConfig):
            found = found.name if part == "name" else found.settings[part]
        else:
            found = found[part] if isinstance(found, dict) else getattr(found, part)
    return list(found) if isinstance(found, tuple) else found


def without_name(experiment: Experiment) -> dict[str, Any]:
    raw = dataclasses.asdict(experiment)
    del raw["name"], raw["search"]
    return raw | {"model": {"name": raw["model"]["name"], **raw["model"]["settings"]}}


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*path, str(key)))
    else:
        yield path, node


def test_a_data_set_takes_the_seed_that_it_does_not_say(read: Callable[[str], Params]) -> None:
    params = read(TEXT)
    assert (params.dataset("digits").seed, params.dataset("moons").seed) == (1, 7)


def test_each_setting_is_resolved_with_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    found = {key: (setting.value, setting.source) for key, setting in resolve("one", path).items()}
    assert found["train.lr"] == (0.004, ONE)
    assert found["train.batch_size"] == (64, "defaults")
    assert found["train.augment.rotate"] == (5, ONE)
    assert found["train.augment.scale"] == (0, "defaults")
    assert found["parity.int8.flips"] == (4, ONE)
    assert found["parity.int8.min_snr_db"] == (110, "defaults")
    assert found["benchmark.batch_sizes"] == ([1, 8], ONE)
    assert found["quantize.skip"] == ({}, ONE)
    assert len(found) == len(dict(leaves(without_name(load(path).experiment("one")))))


def test_a_data_set_and_a_model_are_enough(read: Callable[[str], Params], tmp_path: Path) -> None:
    start = TEXT.index("experiments:")
    model = "model: {name: mlp, hidden: [4], activation: relu, dropout: 0}"
    text = TEXT[:start].replace("short: [one]", "short: []").replace("lr: 1.0e-2, ", "")
    text = text.replace("{loss: cross_entropy,", "{loss: cross_entropy, lr: 5.0e-3,")
    text = text.replace("  moons:", "  diabetes: {validation_rows: 70}\n  moons:")
    text += "experiments:\n"
    text += f"  of_digits:\n    dataset: digits\n    {model}\n"
    text += f"  of_diabetes:\n    dataset: diabetes\n    {model}\n"
    params = read(text)
    digits, diabetes = params.experiment("of_digits"), params.experiment("of_diabetes")
    assert (digits.epochs, digits.train.lr, digits.evaluate.against) == (30, 0.005, None)
    losses = digits.train.loss, diabetes.train.loss
    assert losses == ("cross_entropy", "mean_squared_error")
    assert digits.parity.fp32.max_abs_diff == 1e-4
    assert diabetes.parity.fp32.max_abs_diff is None
    for experiment in (digits, diabetes):
        check(experiment)
    path = tmp_path / "params.yaml"
    assert resolve("of_diabetes", path)["train.loss"].source == "defaults.regression"
    assert resolve("of_digits", path)["train.loss"].source == "defaults"
    sections = ("train", "evaluate", "export", "quantize", "parity", "benchmark", "bundle")
    assert lacking("of_digits", path) == {"epochs": 30} | {name: {} for name in sections}


def test_every_record_is_frozen(read: Callable[[str], Params]) -> None:
    records = list(records_below(read(TEXT)))
    assert len({type(record) for record in records}) >= 11
    for record in records:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, dataclasses.fields(record)[0].name, None)


def records_below(record: Any) -> Iterator[Any]:
    yield record
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        for item in value.values() if isinstance(value, dict) else [value]:
            if dataclasses.is_dataclass(item):
                yield from records_below(item)


TEACHER = "{experiment: %s, temperature: 2, weight: 0.5, views: %d}"
BASELINES = "'eager', 'channels_last', 'compile' or 'pyfunc'"
EDITS = [
    # Keys
    ("epochs: 60", "epoch: 60", f"{ONE}.epoch is not a key; did you mean 'epochs'?"),
    ("dataset: digits", "", f"{ONE}.dataset is missing"),
    ("  epochs: 30\n", "", "defaults.epochs is missing"),
    ("mirrors: []", "", "mirrors is missing"),
    ("mirrors:", "mirror:", "mirror is not a key; did you mean 'mirrors'?"),
    ("validation_rows: 180", "validation_row: 180", "datasets.digits.validation_row is not a key"),
    ("{rotate: 5}", "{rotat: 5}", f"{ONE}.train.augment.rotat is not a key; did you mean 'rotate'"),
    ("{flips: 4}", "{zzz: 4}", f"{ONE}.parity.int8.zzz is not a key; there are accuracy_loss, "),
    ("{name: mlp, ", "{", f"{ONE}.model.name is missing"),
    ("dataset: digits", "name: mine", f"{ONE}.name is not a key: the section is named already"),
    # Sections and defaults
    ("    export: {}\n", "    exports: {}\n", f"{ONE}.exports is not a key; did you mean 'export'"),
    ("{lr: 4.0e-3, ", "{", f"{ONE}.train.lr is missing"),
    ("batch_size: 64", "batch_size: 0", "defaults.train.batch_size must be greater than or equal"),
    ("{opset: 20}", "{opset: '20'}", "defaults.export.opset must be an integer, got '20'"),
    ("{opset: 20}", "{opsett: 20}", "defaults.export.opsett is not a key; did you mean 'opset'?"),
    ("{opset: 20}", "20", "defaults.export must be a mapping, got 20"),
    ("  export: {opset: 20}\n", "", "defaults.export is missing"),
    ("opset: 20", "", f"{ONE}.export.opset is missing"),
    ("{seed: 1}", "{seed: -1}", "defaults.preprocess.seed must be greater than or equal to 0"),
    ("init_from: null", "init_from: one", "defaults.train.init_from: no other experiment named"),
    ("min_snr_db: 110", "min_snr_db: high", "defaults.parity.fp32.min_snr_db must be a number"),
    # Types
    ("epochs: 60", "epochs: sixty", f"{ONE}.epochs must be an integer, got 'sixty'"),
    ("epochs: 60", "epochs: 60.0", f"{ONE}.epochs must be an integer, got 60.0"),
    ("epochs: 60", "epochs: true", f"{ONE}.epochs must be an integer, got True"),
    ("lr: 4.0e-3", "lr: fast", f"{ONE}.train.lr must be a number, got 'fast'"),
    ("dataset: digits", "dataset: [digits]", f"{ONE}.dataset must be a string, got ['digits']"),
    ("mirrors: []", "mirrors: /mnt", "mirrors must be a list, got '/mnt'"),
    ("mirrors: []", "mirrors: [/mnt, 3]", "mirrors.1 must be a string, got 3"),
    ("export: {}", "export: 20", f"{ONE}.export must be a mapping, got 20"),
    # Exponents, which YAML 1.1 takes for text
    ("4.0e-3", "4e-3", f"{ONE}.train.lr must be a number, got the text '4e-3'; write 4.0e-3"),
    ("4.0e-3", "1E3", f"{ONE}.train.lr must be a number, got the text '1E3'; write 1.0e+3"),
    ("4.0e-3", "2.5e3", f"{ONE}.train.lr must be a number, got the text '2.5e3'; write 2.5e+3"),
    # Ranges
    ("epochs: 60", "epochs: 0", f"{ONE}.epochs must be greater than or equal to 1, got 0"),
    ("lr: 4.0e-3", "lr: -1.0", f"{ONE}.train.lr must be greater than 0, got -1.0"),
    ("lr: 4.0e-3", "lr: .nan", f"{ONE}.train.lr must be a finite number, got nan"),
    ("momentum: 0.9", "momentum: 1", "defaults.train.momentum must be less than 1, got 1"),
    ("min_gain: 1.1", "min_gain: .nan", "defaults.bundle.min_gain must be a finite number, got n"),
    ("rotate: 5", "rotate: 181", "augment.rotate must be less than or equal to 180, got 181"),
    ("export: {}", "export: {opset: 17}", "export.opset must be greater than or equal to 18, got"),
    ("export: {}", "export: {opset: 24}", "export.opset must be less than or equal to 23, got 24"),
    ("seed: 7", "seed: 4294967296", "datasets.moons.seed must be less than or equal to 429496"),
    ("optimizer: adamw", "optimizer: lion", "'adam', 'adamw', 'rmsprop', 'muon' or 'lbfgs'"),
    # Lists
    ("[1, 7, 256]", "[]", "defaults.parity.batch_sizes must not be empty"),
    ("[1, 7, 256]", "[7, 0]", "defaults.parity.batch_sizes.1 must be greater than or equal to 1"),
    ("[1, 8]", "[8, 1, 8]", f"{ONE}.benchmark.batch_sizes must be a list that has nothing twice, "),
    ("threads: [1, 0]", "threads: [1, -2]", "benchmark.threads.1 must be greater than or equal"),
    ("[eager]", "[pyfunc]", "defaults.benchmark.baselines must be a list with eager, over which "),
    ("[eager]", "[eager, eager]", "benchmark.baselines must be a list that has nothing twice, got"),
    ("[eager]", "[eager, jit]", f"benchmark.baselines.1 must be {BASELINES}, got 'jit'"),
    ("skip: {}}\n  parity", "skip: {int8: ''}}\n  parity", "defaults.quantize.skip.int8 must"),
    ("quantize: {skip: {}}", "quantize: {skip: {int4: large}}", f"{ONE}.quantize.skip.int4"),
    ("{fp16: 0.7, int8: 1}", "{fp16: 0.7}", f"{ONE}.quantize.min_speedup.int8 is missing"),
    # Names
    (
        "  digits: {",
        "  digit: {",
        "datasets.digit: no such data set, and no reader for one of your",
    ),
    ("dataset: digits", "dataset: digit", f"{ONE}.dataset: no data set named 'digit'; did you "),
    ("name: mlp", "name: mpl", f"{ONE}.model.name: no model named 'mpl'; did you mean 'mlp'?"),
    ("short: [one]", "students: {onee: two}", "students: no experiment named 'onee'; did you mean"),
    ("short: [one]", "short: [onee]", "short.0: no experiment named 'onee'; did you mean 'one'?"),
    ("against: digits", "against: digit", f"{ONE}.evaluate.against: no data set named 'digit'; "),
    ("lr: 4.0e-3", "lr: 4.0e-3, init_from: one", f"{ONE}.train.init_from: no other experiment"),
    (
        "teacher: null",
        "teacher: {experiment: one}",
        f"{ONE}.train.teacher.temperature is m",
    ),
    (
        "lr: 4.0e-3",
        f"lr: 4.0e-3, teacher: {TEACHER % ('onee', 1)}",
        f"{ONE}.train.teacher.experiment: no",
    ),
    (
        "lr: 4.0e-3",
        f"lr: 4.0e-3, teacher: {TEACHER % ('one', 1)}",
        f"{ONE}.train.teacher.experiment: no",
    ),
    ("lr: 4.0e-3", f"lr: 4.0e-3, teacher: {TEACHER % ('two', 1)}", "students.one is not there, "),
    (
        "short: [one]",
        "short: [one]\nstudents: {one: two}",
        "students.one is two, experiments.one.tr",
    ),
    ("  two:", "  ../../mine:", "experiments.../../mine is not a name of letters"),
    # What YAML would change or lose without a word
    ("epochs: 60", "epochs: 6\n    epochs: 60", f"{ONE}.epochs is there twice, the second time"),
    ("  two:", "  one:", f"{ONE} is there twice, the second time in line"),
    ("  two:", "  7:", "experiments.'7' is not a key: keys are text"),
    ("  two:", "  ? [a, b]\n  :", "experiments.a list or mapping is not a key"),
    ("  two:", '  "a\\nb":', r"experiments.'a\nb' is not a key: keys are text"),
    ("dataset: digits", "dataset: 2026-11-20", f"{ONE}.dataset must be a plain value, got times"),
    ("opset: 20", "opset: 2026-13-45", "defaults.export.opset must be a plain value, got timest"),
    ("epochs: 60", f"epochs: {'9' * 5000}", f"{ONE}.epochs must be a number of at most 100 dig"),
    ("epochs: 60", f"epochs: {['x' * 50] * 50}", f"{ONE}.epochs must be an integer, got ['xxx"),
    ("epochs: 60", 'epochs: "\\uD800"', rf"{ONE}.epochs must be printable text, got '\ud800'"),
    ("epochs: 60", "epochs: !!python/name:os.system", f"{ONE}.epochs must be a plain value, got "),
]


@pytest.mark.parametrize(
    ("data", "loss", "expected"),
    [
        ("moons", "cross_entropy", "teacher.experiment: two learns moons, one digits; both must"),
        ("digits", "binary_cross_entropy", "two is trained with binary_cross_entropy, one cross"),
    ],
)
def test_a_teacher_learns_the_same_rows_with_the_same_loss(
    data: str, loss: str, expected: str, read: Callable[[str], Params]
) -> None:
    text = TEXT.replace("short: [one]", "students: {one: two}")
    text = text.replace("lr: 4.0e-3", f"lr: 4.0e-3, teacher: {TEACHER % ('two', 1)}")
    text = text.replace("dataset: moons", f"dataset: {data}")
    found = read(text.replace("lr: 1.0e-2", f"lr: 1.0e-2, loss: {loss}"))
    assert expected in found.broken["one"]
    assert [*found.experiments] == ["two"]


def test_a_teacher_answers_one_view_where_nothing_changes(read: Callable[[str], Params]) -> None:
    text = TEXT.replace("short: [one]", "students: {one: two}").replace(
        "dataset: moons", "dataset: digits"
    )
    text = text.replace("lr: 4.0e-3", f"lr: 4.0e-3, teacher: {TEACHER % ('two', 3)}")
    check(read(text).experiment("one"))
    with pytest.raises(ConfigError, match=r"one\.train\.teacher\.views must be 1 where .* got 3"):
        check(read(text.replace("{rotate: 5}", "{rotate: 0}")).experiment("one"))


@pytest.mark.parametrize(("old", "new", "expected"), EDITS, ids=[edit[1][:40] for edit in EDITS])
def test_what_is_wrong_is_told_by_path_and_value(
    old: str, new: str, expected: str, refused: Refused
) -> None:
    message = refused(edited(old, new))
    assert expected in message
    assert len(message) < 200


def test_one_broken_experiment_does_not_stop_the_others(read: Callable[[str], Params]) -> None:
    for old, new in [("lr: 4.0e-3", "lr: fast"), ("epochs: 60", "epochs: 2026-11-20")]:
        params = read(edited(old, new))
        assert list(params.experiments) == ["two"]
        assert params.experiment("two") == read(TEXT).experiment("two")
        with pytest.raises(ConfigError, match=rf"^{ONE}\."):
            params.experiment("one")
        with pytest.raises(UnknownNameError, match="did you mean 'one'"):
            params.experiment("onee")


EMPTY = "mirrors: []\nshort: []\n"
WHOLE_FILES = {
    "# nothing but this\n": "params.yaml is empty",
    "- mirrors\n- datasets\n": "params.yaml must be a mapping, got ['mirrors', 'datasets']",
    "2026-11-20": "the file must be a plain value, got timestamp '2026-11-20'",
    "mirrors: [": "is not YAML: while parsing",
    "mirrors: []\n---\nmirrors: []\n": "is not YAML: expected a single document",
    "mirrors: \x00": "is not YAML: unacceptable character",
    "mirrors: " + "[" * 5000: "params.yaml is nested too deeply",
    "{}": "mirrors is missing",
    f"{EMPTY}datasets: {{}}\nexperiments: {{}}\n": "defaults is missing",
    f"{EMPTY}defaults: {{}}\ndatasets: {{}}\nexperiments: 3\n": "experiments must be a mapping, go",
    f"{TEXT}  three: 3\n": "experiments.three must be a mapping, got 3",
}


@pytest.mark.parametrize(("text", "expected"), WHOLE_FILES.items(), ids=lambda text: text[:20])
def test_a_file_that_is_no_params_file(text: str, expected: str, refused: Refused) -> None:
    assert expected in refused(text)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"mirrors: \xff\xfe")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(path)


def test_params_yaml_of_the_working_directory_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInputError, match=r"^params\.yaml is not there; .* with -C"):
        load()
    Path("params.yaml").write_text(TEXT)
    assert list(load().experiments) == ["one", "two"]


def test_an_unknown_data_set_is_answered_with_the_nearest(read: Callable[[str], Params]) -> None:
    with pytest.raises(UnknownNameError, match="no data set named 'digts'; did you mean 'digits'"):
        read(TEXT).dataset("digts")


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.dates(),
    st.datetimes(),
    st.binary(),
    st.lists(st.integers()),
    st.dictionaries(st.one_of(st.text(), st.integers(), st.none()), st.integers()),
    st.from_regex(r"[-+0-9.eE:_x]{1,8}", fullmatch=True),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from([path for path, _ in leaves(yaml.safe_load(TEXT))]), value=SCALARS)
def test_any_value_anywhere_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: object
) -> None:
    raw = yaml.safe_load(TEXT)
    node = raw
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    file = tmp_path_factory.getbasetemp() / f"params-{os.getpid()}.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    _read_or_one_line(file, path[-1])


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / f"text-{os.getpid()}.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    _read_or_one_line(file, "")


def _read_or_one_line(file: Path, part: str) -> None:
    try:
        messages = list(load(file).broken.values())
    except ConfigError as error:
        messages = [str(error)]
    for message in messages:
        assert len(message.splitlines()) == 1, message
        assert part in message, message
        message.encode()


# ferry config


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with params.yaml."""
    (tmp_path / "params.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("project")
def test_the_command_prints_each_setting_with_where_it_stands() -> None:
    lines = [line.split() for line in invoke("config", "one").stdout.splitlines()]
    assert ["train.lr", "0.004", ONE] in lines
    assert ["train.batch_size", "64", "defaults"] in lines
    assert ["quantize.batch_sizes", "[1,", "32]", "defaults"] in lines
    shown = json.loads(invoke("config", "one", "--json").stdout)
    assert shown["train.lr"] == {"value": 0.004, "source": ONE}
    assert len(shown) == len(lines) == len(resolve("one"))


@pytest.mark.usefixtures("project")
def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    result = invoke("config", "tow")
    assert result.exit_code == 2
    assert result.stderr == "Error: no experiment named 'tow'; did you mean 'two'?\n"


def test_the_command_loads_no_training_package() -> None:
    code = (
        "import sys\nfrom pipeline.cli import ferry\n"
        "ferry(['config', 'mnist-cnn'], standalone_mode=False)\n"
        "assert not {'torch', 'sklearn', 'mlflow', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(ferry, arguments, prog_name="ferry")


# Settings that do not fit together are refused before any data is read.


@pytest.fixture
def one(read: Callable[[str], Params]) -> Experiment:
    return with_train(read(TEXT).experiment("one"), rotate=0)


def with_train(experiment: Experiment, **changes: Any) -> Experiment:
    """The experiment with other settings of its training, or of its images' changes."""
    augment = {key: changes.pop(key) for key in ("rotate", "translate") if key in changes}
    changes["augment"] = replace(experiment.train.augment, **augment)
    return replace(experiment, train=replace(experiment.train, **changes))


CNN = ModelConfig(
    name="cnn",
    settings={"widths": [8], "kernels": [3], "pools": [True], "activation": "relu"}
    | {"head": "flatten", "dropout": 0},
)
AUTOENCODER = ModelConfig(
    name="autoencoder", settings={"widths": [8], "code": 0, "activation": "relu"}
)
UNFIT: dict[str, tuple[Callable[[Experiment], Experiment], str]] = {
    "a loss of another task": (
        lambda one: with_train(one, loss="mean_squared_error"),
        (
            "train.loss: mean_squared_error does not fit digits, which has classes; choose "
            "cross_entropy or binary_cross_entropy"
        ),
    ),
    "a loss of two classes for ten": (
        lambda one: with_train(one, loss="binary_cross_entropy"),
        (
            "train.loss: binary_cross_entropy tells two classes apart, digits has 10; choose "
            "cross_entropy"
        ),
    ),
    "a model for other rows": (
        lambda one: replace(one, dataset="moons", model=CNN),
        "model.name: cnn takes image rows, moons has table rows",
    ),
    "rows that cannot be turned": (
        lambda one: replace(with_train(one, rotate=10.0), dataset="moons"),
        (
            "train.augment: moons has table rows, and only images can be changed; set each of its "
            "keys to 0 or false"
        ),
    ),
    "random changes under lbfgs": (
        lambda one: with_train(one, optimizer="lbfgs", translate=1),
        (
            "train.augment: lbfgs asks for the same loss several times a step, and random changes "
            "would make it another; set each of its keys to 0 or false"
        ),
    ),
    "smoothing where there are no labels": (
        lambda one: replace(
            with_train(one, loss="mean_squared_error", label_smoothing=0.1), model=AUTOENCODER
        ),
        "train.label_smoothing must be 0 for mean_squared_error, which has no labels, got 0.1",
    ),
    "what lbfgs does not have": (
        lambda one: with_train(one, optimizer="lbfgs", momentum=0.0, clip=1.0),
        "train.clip must be 0 for lbfgs, which has none, got 1.0",
    ),
}


@pytest.mark.parametrize(("change", "expected"), UNFIT.values(), ids=UNFIT)
def test_settings_that_do_not_fit_together(
    one: Experiment, change: Callable[[Experiment], Experiment], expected: str
) -> None:
    check(one)
    with pytest.raises(ConfigError) as caught:
        check(change(one))
    assert str(caught.value) == f"{ONE}.{expected}"


def test_it_is_asked_before_any_data_is_read(one: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    paths = [folder / name for name in ("no-data", "weights", "metrics", "plots")]
    with pytest.raises(ConfigError, match="does not fit digits"):
        train(*paths, experiment=with_train(one, loss="mean_squared_error"), track=False)
    assert not list(folder.iterdir())


# A folder of modules is a registry, and the file name is the key.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `boats_for_test` with two public modules, a private one and other files."""
    package = tmp_path / "boats_for_test"
    (package / "sub").mkdir(parents=True)
    for name in ("__init__", "raft", "canoe", "_shared"):
        (package / f"{name}.py").write_text(f"NAME = {name!r}\n")
    (package / "notes.txt").write_text("no module")
    (package / "sub" / "dinghy.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_the_public_files_are_the_names_and_none_is_imported(folder: Path) -> None:
    (folder / "kayak.py").write_text("raise RuntimeError('imported')")
    assert reading.names(folder) == ("canoe", "kayak", "raft")
    assert reading.load("boat", "boats_for_test", folder, "raft").NAME == "raft"


@pytest.mark.parametrize("name", ["rafft", "_shared", "__init__", "", "sub.dinghy", "../raft"])
def test_what_is_no_public_file_is_unknown(folder: Path, name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"^no boat named {name!r}; "):
        reading.load("boat", "boats_for_test", folder, name)


def test_the_registries_of_ferry() -> None:
    params = load(ROOT / "params.yaml")
    assert set(params.datasets) <= set(datasets.names())
    assert {e.model.name for e in params.experiments.values()} <= set(models.names())


# Models that are no experiment's


def golden_rows_of_a_file(text: str | None) -> int:
    """Of the bundle of a file, in a working directory with this params.yaml."""
    if text is not None:
        Path("params.yaml").write_text(text)
    return stage_defaults("bundle", BundleConfig).golden_rows


def test_a_file_takes_the_defaults_of_the_project_or_else_those_of_ferry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert golden_rows_of_a_file(None) == 64
    assert golden_rows_of_a_file("epochs: 1e-3\nlayers: &a [1]\nmore: *a\n") == 64
    assert golden_rows_of_a_file(edited("golden_rows: 16", "golden_rows: 7")) == 7
    # A default that is left to the experiments is missed by its name.
    with pytest.raises(ConfigError, match=r"defaults\.bundle\.golden_rows is missing"):
        golden_rows_of_a_file(edited(", golden_rows: 16", ""))
