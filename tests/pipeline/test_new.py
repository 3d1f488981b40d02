import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.config import reading
from pipeline.config.experiment import Experiment
from pipeline.config.fitting import check
from pipeline.config.params import load
from pipeline.errors import ConfigError
from pipeline.project.new import new_experiment
from pipeline.stages.check import check as check_stage
from serving.errors import FerryError, UnknownNameError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A params.yaml whose experiments stand before its defaults, as in a project of one's own."""
    text = (ROOT / "params.yaml").read_text()
    text = re.sub(r"^students: .*$", "students: {}", text, flags=re.MULTILINE)
    head, experiments = text.split("experiments:\n")
    first, _, _ = experiments.partition("\n  digits-cnn:")
    top, middle = head.split("# What an experiment takes")
    middle = f"# What an experiment takes{middle.rstrip()}\n"
    short = top[: top.index("# The experiments that a laptop")] + "short: []\n\n"
    made = tmp_path / "params.yaml"
    made.write_text(f"{short}experiments:\n{first.rstrip()}\n\n{middle}")
    return made


def made(path: Path, dataset: str, model: str, name: str = "mine") -> Experiment:
    new_experiment(name, dataset=dataset, model=model, path=path)
    experiment = load(path).experiment(name)
    check(experiment)
    return experiment


@pytest.mark.parametrize("text", ["- stages\n", "artifacts: [mine]\n"])
def test_nothing_is_written_beside_a_dvc_yaml_that_is_none(text: str, path: Path) -> None:
    before = path.read_text()
    path.with_name("dvc.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"dvc\.yaml and its section artifacts must be mappings"):
        new_experiment("mine", dataset="digits", model="mlp", path=path)
    assert path.read_text() == before


def test_all_other_lines_stay_and_the_section_is_the_last_experiment(path: Path) -> None:
    before = path.read_text().splitlines()
    written = new_experiment("mine", dataset="digits", model="mlp", path=path)
    after = path.read_text().splitlines()
    assert written.section.splitlines()[0] == "  mine:"
    section = written.section.splitlines()
    start = after.index("  mine:")
    assert after[start : start + len(section)] == section
    assert after[: start - 1] + after[start + len(section) :] == before
    assert list(yaml.safe_load(path.read_text())["experiments"]) == ["digits-mlp", "mine"]
    assert after[start + len(section) + 1].startswith("# What an experiment takes")


def test_its_bundle_becomes_an_artifact_of_dvc_once(path: Path) -> None:
    stages = path.with_name("dvc.yaml")
    stages.write_text("stages: {}\n")
    for name in ("first", "second"):
        new_experiment(name, dataset="digits", model="mlp", path=path)
    bundle = {"type": "model", "labels": ["onnx", "digits", "mlp"]}
    bundle["desc"] = "The bundle of mlp on digits."
    expected = {name: {"path": f"bundles/{name}", **bundle} for name in ("first", "second")}
    assert yaml.safe_load(stages.read_text()) == {"stages": {}, "artifacts": expected}
    before = path.read_text()
    path.write_text(before.replace("  second:", "  third:"))
    new_experiment("second", dataset="digits", model="mlp", path=path)
    assert yaml.safe_load(stages.read_text())["artifacts"] == expected


@pytest.mark.parametrize(
    ("dataset", "model", "loss"),
    [
        ("digits", "mlp", "cross_entropy"),
        ("moons", "mlp", "binary_cross_entropy"),
        ("diabetes", "mlp", "mean_squared_error"),
        ("mnist", "autoencoder", "mean_squared_error"),
        ("rt_polarity", "text_lstm", "binary_cross_entropy"),
    ],
)
def test_the_loss_fits_and_dvc_finds_each_section(
    path: Path, dataset: str, model: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = made(path, dataset, model)
    assert experiment.train.loss == loss
    monkeypatch.chdir(path.parent)
    Path("dvc.yaml").touch()
    check_stage(Path("mark"), name="mine")
    assert Path("mark").exists()


def test_a_network_is_cut_down_to_small_images(path: Path, ready: Path) -> None:
    shutil.copytree(ready / "data/ready/digits", path.parent / "data/ready/digits")
    cnn = "name: cnn, widths: [8, 8, 8, 8], kernels: [3, 3, 3, 3], dropout: 0"
    cnn += ", head: flatten, pools: [true, true, true, true], activation: relu}"
    mlp = "name: mlp, hidden: [128], activation: relu, dropout: 0.1}"
    path.write_text(path.read_text().replace(mlp, cnn))
    source = load(path).experiment("digits-mlp")
    assert source.model.settings["pools"] == [True] * 4
    assert made(path, "digits", "cnn").model.settings["pools"] == [False, True, True, True]


@pytest.mark.parametrize(
    ("name", "dataset", "model", "error", "message"),
    [
        ("digits-mlp", "digits", "mlp", UsageError, "experiments.digits-mlp is there already"),
        ("my.own", "digits", "mlp", UsageError, "'my.own' is not a name of letters"),
        ("mine", "digts", "mlp", UnknownNameError, "no data set named 'digts'; did you mean 'dig"),
        ("mine", "digits", "mpl", UnknownNameError, "no model named 'mpl'; did you mean 'mlp'?"),
        ("mine", "fashion_mnist", "mlp", UsageError, "write a line for it below `datasets`"),
        ("mine", "moons", "cnn", ConfigError, "experiments.mine.model.name: cnn takes image rows"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    path: Path, name: str, dataset: str, model: str, error: type[FerryError], message: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(error) as caught:
        new_experiment(name, dataset=dataset, model=model, path=path)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_bytes() == before


def test_no_experiment_yet_and_experiments_in_braces(path: Path) -> None:
    text = path.read_text()
    begin, end = text.index("experiments:"), text.index("# What an experiment takes")
    path.write_text(f"{text[:begin]}experiments: {{}}\n\n{text[end:]}")
    assert made(path, "digits", "mlp").model.settings["hidden"] == [128], "as ferry's own has it"
    path.write_text(f"{text[:begin]}experiments: {{a: {{dataset: digits}}}}\n\n{text[end:]}")
    with pytest.raises(ConfigError, match="stands in braces"):
        new_experiment("mine", dataset="digits", model="mlp", path=path)


def test_dvc_is_told_all_sections_that_are_missing_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    text = path.read_text()
    end = text.index("# What an experiment takes")
    model = "model: {name: mlp, hidden: [4], activation: relu, dropout: 0}"
    path.write_text(f"{text[:end]}  two:\n    dataset: digits\n    {model}\n\n{text[end:]}")
    check_stage(Path("mark"), name="two")
    Path("dvc.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        check_stage(Path("mark"), name="two")
    assert str(caught.value) == (
        "experiments.two leaves out sections without which DVC stops; write `epochs: 20`, "
        "`train: {}`, `evaluate: {}`, `export: {}`, `quantize: {}`, `parity: {}`, "
        "`benchmark: {}`, `bundle: {}`"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("parity: {fp16", "parity: {fp32: {flips: null}, fp16", "parity.fp32.flips must be a num"),
        (
            "calibration_rows: 512",
            "recipes: [halff]",
            "quantize.recipes.0: no recipe named 'halff'",
        ),
        ("train: {", "train: {loss: mean_squared_error, ", "train.loss: mean_squared_error does "),
    ],
)
def test_what_a_later_stage_would_refuse_is_told_before_training(
    path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    monkeypatch.chdir(path.parent)
    begin, section = path.read_text().split("  digits-mlp:")
    assert old in section
    path.write_text(f"{begin}  digits-mlp:{section.replace(old, new, 1)}")
    with pytest.raises(ConfigError) as caught:
        check_stage(Path("mark"), name="digits-mlp")
    assert f"experiments.digits-mlp.{message}" in str(caught.value)
    assert not Path("mark").exists()


def test_few_rows_of_numbers_to_be_predicted_get_their_loss_and_small_batches(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    random = np.random.default_rng(1)
    inputs, labels = (random.normal(size=size).astype(np.float32) for size in ((200, 3), 200))
    np.savez("mine.npz", x=inputs, y=labels)
    text = path.read_text().replace(
        "  digits: {",
        "  few: {reader: arrays, path: mine.npz, inputs: x, labels: y}\n  digits: {",
        1,
    )
    path.write_text(text)
    new_experiment("mine", dataset="few", model="mlp", path=path)
    experiment = load(path).experiment("mine")
    assert (experiment.train.loss, experiment.train.batch_size) == ("mean_squared_error", 16)
    assert experiment.parity.fp32.max_abs_diff is None, "the gates are those of a regression"


def test_settings_are_given_where_no_experiment_has_the_model(
    path: Path, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ready / "data/ready/digits", path.parent / "data/ready/digits")
    own = path.parent / "own_layers" / "models"
    own.mkdir(parents=True)
    shutil.copy(ROOT / "pipeline" / "models" / "mlp.py", own / "layers.py")
    path.write_text(f"package: own_layers\n{path.read_text()}")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(reading.OWN_PACKAGE, "")
    monkeypatch.chdir(path.parent)
    before = path.read_bytes()

    def add(*given: str) -> Experiment:
        new_experiment("mine", dataset="digits", model="layers", given=given, path=path)
        return load(path).experiment("mine")

    needed = ["model.hidden=[3]", "model.activation=relu", "model.dropout=0"]
    for given, message in (
        ([], "no experiment has model layers yet; give its settings: --set model.hidden=VALUE "),
        ([*needed, "model.hiden=3"], "experiments.mine.model.hiden is not a key; did you mean "),
        ([*needed, "epochs.few=3"], "--set epochs.few: epochs is no section"),
        ([*needed, "dataset=moons"], "--set dataset: --dataset and --model say which there are"),
    ):
        with pytest.raises(ConfigError) as caught:
            add(*given)
        assert message in str(caught.value)
        assert path.read_bytes() == before
    added = add(*needed, "epochs=2", "train.lr=0.5")
    assert (added.model.settings["hidden"], added.epochs, added.train.lr) == ([3], 2, 0.5)
