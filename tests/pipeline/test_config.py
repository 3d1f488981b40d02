"""params.yaml: what is right in it is read, and what is wrong is told in one line."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import datasets, models
from pipeline.config.experiment import Experiment, Params
from pipeline.config.params import load
from pipeline.config.reading import read_section
from pipeline.errors import ConfigError
from serving.errors import MissingInputError, UnknownNameError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
FIRST = "experiments.digits-mlp"
"""Where the first occurrence of every key of an experiment lies."""

Refused = Callable[[str], str]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Load a text as params.yaml and return the one line of its ConfigError."""

    def message(text: str) -> str:
        path = tmp_path / "params.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert caught.value.exit_code == 2
        line = str(caught.value)
        assert len(line.splitlines()) == 1, line
        return line

    return message


def edited(old: str, new: str) -> str:
    """params.yaml with its first `old`, whatever the numbers in it are, replaced by `new`."""
    parts = re.split(r"\d[\d.e-]*", old)
    pattern = r"[-+.\de]+".join(re.escape(part) for part in parts)
    text, count = re.subn(pattern, lambda _: new, TEXT, count=1)
    assert count, f"params.yaml no longer holds the like of {old!r}"
    return text


def test_the_file_of_the_repository_is_read() -> None:
    params = load(ROOT / "params.yaml")
    raw = yaml.safe_load(TEXT)
    assert list(params.experiments) == list(raw["experiments"])
    assert {e.dataset for e in params.experiments.values()} <= set(params.datasets)
    experiment = params.experiment("digits-cnn")
    body = raw["experiments"]["digits-cnn"]
    assert experiment.name == "digits-cnn"
    assert experiment.train.lr == body["train"]["lr"]
    assert experiment.parity.batch_sizes == tuple(body["parity"]["batch_sizes"])
    assert experiment.model.name == body["model"].pop("name")
    assert experiment.model.settings == body["model"]


def test_every_value_of_the_file_arrives_unchanged() -> None:
    params = load(ROOT / "params.yaml")
    raw = yaml.safe_load(TEXT)
    for path, value in leaves(raw):
        found: Any = params
        for part in path:
            if isinstance(found, dict):
                found = found[part]
            elif isinstance(found, list | tuple):
                found = found[int(part)]
            else:
                settings_of = getattr(found, "settings", {})
                found = settings_of[part] if part in settings_of else getattr(found, part)
        assert found == value, path


def test_the_gate_of_each_variant() -> None:
    parity = load(ROOT / "params.yaml").experiment("digits-mlp").parity
    assert [parity.gate(name) for name in ("fp32", "fp16", "int8")] == [
        parity.fp32,
        parity.fp16,
        parity.int8,
    ]


def test_every_record_is_frozen() -> None:
    params = load(ROOT / "params.yaml")
    records = list(records_below(params))
    assert len({type(record) for record in records}) >= 11
    for record in records:
        field = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field, None)
        assert not hasattr(record, "__dict__")


def records_below(record: Any) -> Iterator[Any]:
    yield record
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        values = value.values() if isinstance(value, dict) else [value]
        for item in values:
            if dataclasses.is_dataclass(item):
                yield from records_below(item)


EDITS = [
    # Keys
    ("epochs: 60", "epoch: 60", f"{FIRST}.epoch is not a key; did you mean 'epochs'?"),
    ("epochs: 60", "", f"{FIRST}.epochs is missing"),
    ("mirrors: []", "", "mirrors is missing"),
    ("mirrors:", "mirror:", "mirror is not a key; did you mean 'mirrors'?"),
    (
        "validation_rows: 180",
        "validation_row: 180",
        "datasets.digits.validation_row is not a key; did you mean 'validation_rows'?",
    ),
    (
        "{translate: 0",
        "{transalte: 0",
        f"{FIRST}.train.augment.transalte is not a key; did you mean 'translate'?",
    ),
    (
        "fp32: {max_abs_diff",
        "fp32: {zzz",
        f"{FIRST}.parity.fp32.zzz is not a key; there are accuracy_loss, batch_diff, flips, max_",
    ),
    ("{name: mlp, ", "{", f"{FIRST}.model.name is missing"),
    (
        "dataset: digits",
        "name: mine\n    dataset: digits",
        f"{FIRST}.name is not a key: the section is named already",
    ),
    # Types
    ("epochs: 60", "epochs: sixty", f"{FIRST}.epochs must be an integer, got 'sixty'"),
    ("epochs: 60", "epochs: 6.5", f"{FIRST}.epochs must be an integer, got 6.5"),
    ("epochs: 60", "epochs: 60.0", f"{FIRST}.epochs must be an integer, got 60.0"),
    ("epochs: 60", "epochs: true", f"{FIRST}.epochs must be an integer, got True"),
    ("epochs: 60", "epochs:", f"{FIRST}.epochs must be an integer, got None"),
    ("epochs: 60", "epochs: '60'", f"{FIRST}.epochs must be an integer, got '60'"),
    ("lr: 4.0e-3", "lr: fast", f"{FIRST}.train.lr must be a number, got 'fast'"),
    ("lr: 4.0e-3", "lr: yes", f"{FIRST}.train.lr must be a number, got True"),
    ("dataset: digits", "dataset: 3", f"{FIRST}.dataset must be a string, got 3"),
    ("dataset: digits", "dataset: [digits]", f"{FIRST}.dataset must be a string, got ['digits']"),
    ("mirrors: []", "mirrors: /mnt", "mirrors must be a list, got '/mnt'"),
    ("mirrors: []", "mirrors: [/mnt, 3]", "mirrors.1 must be a string, got 3"),
    ("export: {opset: 20}", "export: 20", f"{FIRST}.export must be a mapping, got 20"),
    (
        "model: {name: mlp, hidden: [128], activation: relu, dropout: 0.1}",
        "model: mlp",
        f"{FIRST}.model must be a mapping, got 'mlp'",
    ),
    # Exponents, which YAML 1.1 takes for text
    (
        "lr: 4.0e-3",
        "lr: 4e-3",
        f"{FIRST}.train.lr must be a number, got the text '4e-3'; write 4.0e-3",
    ),
    (
        "lr: 4.0e-3",
        "lr: 1E3",
        f"{FIRST}.train.lr must be a number, got the text '1E3'; write 1.0e+3",
    ),
    (
        "lr: 4.0e-3",
        "lr: 2.5e3",
        f"{FIRST}.train.lr must be a number, got the text '2.5e3'; write 2.5e+3",
    ),
    # Ranges
    ("epochs: 60", "epochs: 0", f"{FIRST}.epochs must be greater than or equal to 1, got 0"),
    ("lr: 4.0e-3", "lr: 0", f"{FIRST}.train.lr must be greater than 0, got 0"),
    ("lr: 4.0e-3", "lr: -1.0", f"{FIRST}.train.lr must be greater than 0, got -1.0"),
    ("lr: 4.0e-3", "lr: .nan", f"{FIRST}.train.lr must be a finite number, got nan"),
    ("lr: 4.0e-3", "lr: .inf", f"{FIRST}.train.lr must be a finite number, got inf"),
    ("momentum: 0.7", "momentum: 1", f"{FIRST}.train.momentum must be less than 1, got 1"),
    ("momentum: 0.7", "momentum: .nan", f"{FIRST}.train.momentum must be a finite number, got nan"),
    (
        "min_gain: 1.1",
        "min_gain: .nan",
        f"{FIRST}.bundle.min_gain must be a finite number, got nan",
    ),
    ("rotate: 0", "rotate: 181", "augment.rotate must be less than or equal to 180, got 181"),
    ("opset: 20", "opset: 17", "export.opset must be greater than or equal to 18, got 17"),
    ("opset: 20", "opset: 24", "export.opset must be less than or equal to 23, got 24"),
    ("seed: 1}", "seed: 4294967296}", "datasets.digits.seed must be less than or equal to 429496"),
    ("seed: 1}", "seed: -1}", "datasets.digits.seed must be greater than or equal to 0, got -1"),
    (
        "optimizer: adamw",
        "optimizer: lion",
        f"{FIRST}.train.optimizer must be 'sgd', 'adam', 'adamw', 'rmsprop' or 'lbfgs', got 'lion'",
    ),
    (
        "loss: cross_entropy",
        "loss: hinge",
        f"{FIRST}.train.loss must be 'cross_entropy', 'binary_cross_entropy' or 'mean_squared_err",
    ),
    # Lists
    ("[1, 7, 256]", "7", f"{FIRST}.parity.batch_sizes must be a list, got 7"),
    ("[1, 7, 256]", "[]", f"{FIRST}.parity.batch_sizes must not be empty"),
    ("[1, 7, 256]", "[1, x]", f"{FIRST}.parity.batch_sizes.1 must be an integer, got 'x'"),
    ("[1, 7, 256]", "[7, 0]", f"{FIRST}.parity.batch_sizes.1 must be greater than or equal to 1"),
    ("beside: [eager]", "beside: []", f"{FIRST}.benchmark.beside must be a list with eager, over"),
    (
        "beside: [eager]",
        "beside: [pyfunc]",
        f"{FIRST}.benchmark.beside must be a list with eager, over which all speedups are, got",
    ),
    (
        "beside: [eager]",
        "beside: [eager, pyfunc, eager]",
        f"{FIRST}.benchmark.beside must be a list that has nothing twice, got ['eager', 'pyfunc'",
    ),
    (
        "beside: [eager]",
        "beside: [eager, jit]",
        f"{FIRST}.benchmark.beside.1 must be 'eager', 'channels_last', 'compile' or 'pyfunc', got",
    ),
    (
        "[1, 64], threads",
        "[64, 64], threads",
        f"{FIRST}.benchmark.batch_sizes must be a list that has nothing twice, got [64, 64]",
    ),
    ("threads: [1, 0]", "threads: []", f"{FIRST}.benchmark.threads must not be empty"),
    ("threads: [1, 0]", "threads: [-1]", f"{FIRST}.benchmark.threads.0 must be greater than or eq"),
    ("rounds: 10", "rounds: 0", f"{FIRST}.benchmark.rounds must be greater than or equal to 1"),
    ("cold_starts: 0,", "", f"{FIRST}.benchmark.cold_starts is missing"),
    # Names
    (
        "  digits: {",
        "  digit: {",
        "datasets.digit: no such data set; did you mean 'digits'?",
    ),
    (
        "dataset: digits",
        "dataset: digit",
        f"{FIRST}.dataset: no data set named 'digit'; did you mean 'digits'?",
    ),
    (
        "name: mlp",
        "name: mpl",
        f"{FIRST}.model.name: no model named 'mpl'; did you mean 'mlp'?",
    ),
    ("- digits-mlp", "- digits-mpl", "short.0: no experiment named 'digits-mpl'; did you mean"),
    (
        "against: digits",
        "against: digit",
        f"{FIRST}.evaluate.against: no data set named 'digit'; did you mean 'digits'?",
    ),
    (
        "init_from: null",
        "init_from: digits-cn",
        f"{FIRST}.train.init_from: no other experiment named 'digits-cn'; did you mean 'digits-c",
    ),
    (
        "init_from: null",
        "init_from: digits-mlp",
        f"{FIRST}.train.init_from: no other experiment named 'digits-mlp'",
    ),
    ("skip: {}", "skip: {int4: large}", f"{FIRST}.quantize.skip.int4"),
    ("goal: speed", "goal: beauty", f"{FIRST}.quantize.goal must be 'speed' or 'size'"),
    ("error_increase: 5", "error_increase: -5", f"{FIRST}.quantize.error_increase must be"),
    ("{fp16: 0.7, int8: 1}", "{fp16: 0.7}", f"{FIRST}.quantize.min_speedup.int8 is missing"),
    ("{fp16: 0.7, int8: 1}", "{fp16: 0.7, int8: 0}", f"{FIRST}.quantize.min_speedup.int8 must"),
    ("recipes: []", "recipes: ['']", f"{FIRST}.quantize.recipes.0 must"),
    ("recipes: []", "recipes: half", f"{FIRST}.quantize.recipes must be a list"),
    ("qat_epochs: 0", "qat_epochs: -1", f"{FIRST}.quantize.qat_epochs must be"),
    ("qat_epochs: 0", "method: minmax", f"{FIRST}.quantize.method is not a key"),
    ("skip: {}", "skip: {int8: ''}", f"{FIRST}.quantize.skip.int8 must"),
    ("  digits-mlp:", "  ../../mine:", "experiments.../../mine is not a name of letters"),
    ("  digits-mlp:", "  a.b:", "experiments.a.b is not a name of letters"),
    # What YAML would change or lose without a word
    ("epochs: 60", "epochs: 6\n    epochs: 60", f"{FIRST}.epochs is there twice, the second time"),
    ("  digits-cnn:", "  digits-mlp:", f"{FIRST} is there twice, the second time in line"),
    ("{name: mlp,", "{name: mlp, name: cnn,", f"{FIRST}.model.name is there twice"),
    ("  digits-mlp:", "  7:", "experiments.'7' is not a key: keys are text"),
    ("  digits-mlp:", "  ? [a, b]\n  :", "experiments.a list or mapping is not a key"),
    ("  digits-mlp:", '  "a\\nb":', r"experiments.'a\nb' is not a key: keys are text"),
    (
        "dataset: digits",
        "dataset: 2026-11-20",
        f"{FIRST}.dataset must be a plain value, got timestamp '2026-11-20'; a text of that form",
    ),
    ("epochs: 60", "epochs: 2026-13-45", f"{FIRST}.epochs must be a plain value, got timestamp"),
    ("epochs: 60", "epochs: &a [*a]", f"{FIRST}.epochs.0 holds itself"),
    ("epochs: 60", f"epochs: {'9' * 5000}", f"{FIRST}.epochs must be a number of fewer than 100"),
    (
        "optimizer: adamw",
        'optimizer: "a\\nb"',
        rf"{FIRST}.train.optimizer must be printable text, got 'a\nb'",
    ),
    ("epochs: 60", 'epochs: "\\uD800"', rf"{FIRST}.epochs must be printable text, got '\ud800'"),
    (
        "epochs: 60",
        "epochs: !!python/object/apply:os.system [date]",
        f"{FIRST}.epochs must be a plain value, got python/object/apply:os.system",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), EDITS, ids=[edit[1][:40] for edit in EDITS])
def test_what_is_wrong_is_told_by_path_and_value(
    old: str, new: str, expected: str, refused: Refused
) -> None:
    assert expected in refused(edited(old, new))


def test_a_mistake_in_a_later_experiment_is_told_by_that_experiment(refused: Refused) -> None:
    head, tail = TEXT.split("  mnist-mlp:")
    tail = re.sub(r"epochs: \d+", "epochs: five", tail, count=1)
    message = refused(f"{head}  mnist-mlp:{tail}")
    assert message == "experiments.mnist-mlp.epochs must be an integer, got 'five'"


LISTS = "mirrors: []\nshort: []\n"
WHOLE_FILES = {
    "": "params.yaml is empty",
    "# nothing but this\n": "params.yaml is empty",
    "- mirrors\n- datasets\n": "params.yaml must be a mapping, got ['mirrors', 'datasets']",
    "hello": "params.yaml must be a mapping, got 'hello'",
    "2026-11-20": "the file must be a plain value, got timestamp '2026-11-20'",
    "mirrors: [": "is not YAML: while parsing",
    "a: b: c": "is not YAML: mapping values are not allowed",
    "\tmirrors: []": "is not YAML: while scanning",
    "mirrors: []\n---\nmirrors: []\n": "is not YAML: expected a single document",
    "mirrors: \x00": "is not YAML: unacceptable character",
    "mirrors: " + "[" * 5000: "params.yaml is nested too deeply",
    "{}": "mirrors is missing",
    f"{LISTS}datasets: []\nexperiments: {{}}\n": "datasets must be a mapping, got []",
    f"{LISTS}datasets: {{}}\nexperiments: 3\n": "experiments must be a mapping, got 3",
    f"{LISTS}datasets: {{}}\nexperiments: {{a: 3}}\n": "experiments.a must be a mapping, got 3",
}


@pytest.mark.parametrize(("text", "expected"), WHOLE_FILES.items(), ids=lambda text: text[:20])
def test_a_file_that_is_no_params_file(text: str, expected: str, refused: Refused) -> None:
    assert expected in refused(text)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"mirrors: \xff\xfe")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(path)


def test_a_long_value_is_cut(refused: Refused) -> None:
    message = refused(edited("epochs: 60", f"epochs: {['x' * 50] * 50}"))
    assert message.startswith(f"{FIRST}.epochs must be an integer, got ['xxx")
    assert len(message) < 160


def test_no_file_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(
        MissingInputError, match=r"nowhere\.yaml is not there; .* with -C"
    ) as caught:
        load(tmp_path / "nowhere.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_params_yaml_of_the_working_directory_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInputError, match=r"^params\.yaml is not there"):
        load()
    Path("params.yaml").write_text("mirrors: [/mnt]\nshort: []\ndatasets: {}\nexperiments: {}\n")
    assert load() == Params(mirrors=("/mnt",), short=(), datasets={}, experiments={})


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    params = load(ROOT / "params.yaml")
    with pytest.raises(
        UnknownNameError, match=r"no experiment named 'mnist-cn'; did .* 'mnist-cnn'"
    ):
        params.experiment("mnist-cn")
    with pytest.raises(UnknownNameError, match="no data set named 'mnits'; did you mean 'mnist'"):
        params.dataset("mnits")
    assert params.dataset("mnist") is params.datasets["mnist"]


def test_anchors_and_merges_are_read(tmp_path: Path) -> None:
    text = edited(
        "digits: {validation_rows: 180, seed: 1}", "digits: &d {validation_rows: 9, seed: 1}"
    )
    text = re.sub(r"mnist: \{validation_rows: .*\}", "mnist: {<<: *d, seed: 7}", text)
    (tmp_path / "params.yaml").write_text(text)
    settings_of = load(tmp_path / "params.yaml").dataset("mnist")
    assert (settings_of.validation_rows, settings_of.seed) == (9, 7)


def test_every_file_of_a_registry_can_be_named() -> None:
    params = load(ROOT / "params.yaml")
    assert set(params.datasets) <= set(datasets.names())
    assert {e.model.name for e in params.experiments.values()} <= set(models.names())


def test_a_section_is_read_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"^here\.there\.dataset must be a string, got 3$"):
        read_section(Experiment, _body() | {"dataset": 3}, "here.there")
    assert read_section(Experiment, _body(), "here").epochs == _body()["epochs"]


def _body() -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load(TEXT)["experiments"]["digits-mlp"]
    model = {"name": "mlp", "settings": {}}
    return body | {"name": "digits-mlp", "model": model}


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


SMALL = re.sub(r"(?m)^  - (?!digits-mlp$).*\n", "", TEXT[: TEXT.index("  digits-cnn:")])
"""With one experiment: faster to read, a hundred times over."""
LEAVES = [path for path, _ in leaves(yaml.safe_load(SMALL))]
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from(LEAVES), value=SCALARS)
def test_any_value_anywhere_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: object
) -> None:
    raw = yaml.safe_load(SMALL)
    node = raw
    for part in path[:-1]:
        node = node[part]
    node[int(path[-1]) if isinstance(node, list) else path[-1]] = value
    file = tmp_path_factory.getbasetemp() / f"params-{os.getpid()}.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    _read_or_one_line(file, ".".join(path[:2]))


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
        load(file)
    except ConfigError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        assert part in message, message
        message.encode()
