"""What a search may change: keys and values that are refused, and settings that come back."""

from pathlib import Path

import pytest
import yaml
from project import REPOSITORY
from training import searching

from pipeline.config.experiment import Interval, Params, SearchSpace
from pipeline.config.params import load
from pipeline.errors import ConfigError
from pipeline.records.tune import Setting
from pipeline.training.tuning import search
from serving.errors import FerryError

LR = Interval(low=1e-4, high=1e-1, log=True)
WRONG: list[tuple[str, SearchSpace, str]] = [
    ("train.lrr", LR, r"search\.train\.lrr is no setting of the training; did you mean 'train.lr'"),
    ("lr", LR, r"search\.lr is no setting"),
    ("train", (1,), r"search\.train is no setting"),
    ("train.augment", (1,), r"search\.train\.augment is no setting"),
    ("parity.fp32.flips", (1, 2), r"search\.parity\.fp32\.flips is no setting of the training"),
    ("model.settings.dropout", (0.1,), r"did you mean 'model.dropout'"),
    ("train.lr", Interval(low=0.1, high=0.1, log=False), r"train\.lr\.low must be below high"),
    ("train.lr", Interval(low=0, high=0.1, log=True), r"train\.lr\.low must be above 0 where log"),
    ("train.lr", (0.1, -0.1), r"experiments\.digits-mlp\.search\.train\.lr must be .* got -0\.1"),
    ("train.lr", (0.1, 0.1), r"search\.train\.lr\.1: 0\.1 is there twice"),
    ("train.optimizer", ("sgd", "sdg"), r"search\.train\.optimizer must be 'sgd'.* got 'sdg'"),
    ("train.optimizer", LR, r"search\.train\.optimizer must be .* got 0\.0001"),
    ("train.batch_size", Interval(low=8, high=64.0, log=False), "must be an integer, got 64.0"),
    ("train.batch_size", (8, True), r"search\.train\.batch_size must be an integer, got True"),
    ("model.dropout", (0.1, 1.5), r"experiments\.digits-mlp\.search\.model\.dropout must be less"),
    ("model.hidden", (8, 16), r"search\.model\.hidden must be a list, got 8"),
    ("model.name", ("cnn",), r"experiments\.digits-mlp\.search\.model\."),
    ("epochs", (0, 1), r"experiments\.digits-mlp\.search\.epochs must be greater than"),
    (
        "train.loss",
        ("mean_squared_error",),
        "mean_squared_error will not do: .*does not fit digits",
    ),
]


@pytest.mark.parametrize(("key", "space", "message"), WRONG, ids=[f"{k}-{s}" for k, s, _ in WRONG])
def test_what_params_would_refuse_is_refused_by_its_path(
    params: Params, key: str, space: SearchSpace, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        search.check(searching(params, {key: space}))
    assert "\n" not in str(refused.value)


def test_without_a_section_an_example_is_shown(params: Params) -> None:
    with pytest.raises(ConfigError, match=r"search is missing: .*search: \{train\.lr: \{low: 1"):
        search.check(searching(params, {}))


def test_an_interval_has_no_grid(params: Params) -> None:
    experiment = searching(params, {"epochs": (1, 2), "train.lr": LR})
    search.check(experiment)
    with pytest.raises(ConfigError, match=r"search\.train\.lr is an interval.*--sampler random"):
        search.check_grid(experiment)


def test_the_searches_of_params_yaml_can_be_followed(params: Params) -> None:
    searched = [one for one in params.experiments.values() if one.search]
    assert searched
    for experiment in searched:
        search.check(experiment)


def test_settings_are_put_in_their_places(params: Params) -> None:
    experiment = searching(params, {"train.lr": LR})
    settings: dict[str, Setting] = {
        "train.lr": 0.25,
        "model.hidden": (4, 2),
        "train.augment.translate": 1,
        "epochs": 7,
    }
    changed = search.apply(experiment, settings)
    assert (changed.train.lr, changed.epochs, changed.train.augment.translate) == (0.25, 7, 1)
    assert changed.model.settings["hidden"] == [4, 2]
    assert changed.model.settings["dropout"] == experiment.model.settings["dropout"]
    assert changed.parity == experiment.parity
    assert experiment.train.lr != 0.25
    with pytest.raises(ConfigError, match=r"experiments\.digits-mlp\.train\.lr must be"):
        search.apply(experiment, {"train.lr": -1.0})


def test_settings_of_a_command_are_read_as_in_params_yaml(params: Params) -> None:
    experiment = searching(params, {})
    given = ["train.lr=0.25", "model.hidden=[4, 2]", "train.init_from=digits-cnn", "epochs=7"]
    changed, recorded = search.with_settings(experiment, given)
    assert changed.train.batch_size == experiment.train.batch_size
    assert (changed.train.lr, changed.train.init_from, changed.epochs) == (0.25, "digits-cnn", 7)
    assert changed.model.settings["hidden"] == [4, 2]
    assert recorded == dict(one.split("=") for one in given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["train.lrr=1"],
            r"^--set train\.lrr is no setting of the training; did you mean 'train\.l",
        ),
        (["parity.fp32.flips=1"], r"^--set parity\.fp32\.flips is no setting of the training; "),
        (["train.lr=1e-3"], r"train\.lr must be a number, got the text '1e-3'; write 1\.0e-3$"),
        (["train.lr=-1"], r"^experiments\.digits-mlp\.train\.lr must be greater than 0, got -1$"),
        (["model.hidden=[4"], r"^--set model\.hidden: '\[4' is not YAML: "),
        (["model.hidden=2026-01-01"], r"^--set model\.hidden must be a plain value, got timestamp"),
        (["epochs="], r"^--set epochs has no value$"),
        (["epochs"], r"^--set takes KEY=VALUE, each key once, got 'epochs'$"),
        (["epochs=1", "epochs=2"], r"each key once, got 'epochs=2'$"),
        (["train.loss=mean_squared_error"], r"train\.loss: mean_squared_error does not fit digits"),
    ],
)
def test_a_wrong_setting_of_a_command_is_one_line(
    params: Params, given: list[str], message: str
) -> None:
    with pytest.raises(FerryError, match=message) as refused:
        search.with_settings(searching(params, {}), given)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


def test_every_combination_comes_once(params: Params) -> None:
    spaces: dict[str, SearchSpace] = {"model.hidden": ((4,), (8, 8)), "train.batch_size": (16, 32)}
    found = list(search.combinations(searching(params, spaces)))
    assert found[0] == {"model.hidden": (4,), "train.batch_size": 16}
    assert found[1] == {"model.hidden": (4,), "train.batch_size": 32}
    assert len(found) == len({str(one) for one in found}) == 4


def test_a_study_is_its_space_its_settings_and_its_data(params: Params) -> None:
    one = searching(params, {"train.lr": LR})
    name = search.identity(one, "data")
    assert name == search.identity(search.apply(one, {"train.lr": 0.5}), "data")
    assert name != search.identity(one, "other data")
    assert name != search.identity(search.apply(one, {"epochs": 2}), "data")
    assert name != search.identity(search.apply(one, {"model.hidden": (9,)}), "data")
    assert name != search.identity(searching(params, {"train.lr": (0.1, 0.2)}), "data")


SETTINGS: dict[str, Setting] = {
    "train.lr": 1e-05,
    "model.hidden": (10, 10),
    "train.batch_size": 32,
    "train.augment.flip": True,
    "train.optimizer": "sgd",
    "train.weight_decay": 2.5e-06,
}


def test_the_fragment_can_be_put_into_params_yaml(tmp_path: Path) -> None:
    """Each value of the text takes the place of the old one, as a person would do it."""
    part = yaml.safe_load(search.fragment("digits-mlp", SETTINGS))
    whole = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    section = whole["experiments"]["digits-mlp"]
    for name, values in part["experiments"]["digits-mlp"].items():
        for key, value in values.items():
            section[name][key] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(whole))
    loaded = load(tmp_path / "params.yaml").experiment("digits-mlp")
    assert (loaded.train.lr, loaded.train.weight_decay) == (1e-05, 2.5e-06)
    assert loaded.model.settings["hidden"] == [10, 10]
    assert loaded.train.augment.flip is True


def test_numbers_with_an_exponent_have_their_point() -> None:
    text = search.fragment("e", {"train.lr": 1e-05})
    assert "1.0e-05" in text


def test_the_options_of_dvc_are_quoted_for_a_shell() -> None:
    text = search.overrides("e", {"train.lr": 0.01, "model.hidden": (10, 4), "train.ema": True})
    assert text == (
        "-S ++experiments.e.train.lr=0.01 -S '++experiments.e.model.hidden=[10,4]' "
        "-S ++experiments.e.train.ema=true"
    )


def test_a_number_that_dvc_would_write_without_its_point_is_not_offered() -> None:
    assert search.overrides("e", {"train.lr": 1e-05, "epochs": 3}) == ""
    assert search.overrides("e", {"train.lr": 1.25e-05}) == "-S ++experiments.e.train.lr=1.25e-05"
