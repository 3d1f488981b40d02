"""Settings that do not fit together are refused, by the key's path, before any data is read."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.experiment import Experiment, ModelConfig, Params
from pipeline.config.params import check
from pipeline.errors import ConfigError
from pipeline.stages.train import train


@pytest.fixture
def digits(params: Params) -> Experiment:
    return params.experiment("digits-mlp")


def test_every_experiment_of_the_file_fits(params: Params) -> None:
    assert params.experiments
    for experiment in params.experiments.values():
        check(experiment)


def with_train(experiment: Experiment, **changes: object) -> Experiment:
    return replace(experiment, train=replace(experiment.train, **changes))  # type: ignore[arg-type]


def refused(experiment: Experiment) -> str:
    with pytest.raises(ConfigError) as caught:
        check(experiment)
    return str(caught.value)


def test_a_loss_of_another_task(digits: Experiment) -> None:
    assert refused(with_train(digits, loss="mean_squared_error")) == (
        "experiments.digits-mlp.train.loss: mean_squared_error does not fit mlp, which gives "
        "classes; choose cross_entropy or binary_cross_entropy"
    )


def test_a_loss_of_two_classes_for_ten(digits: Experiment) -> None:
    assert refused(with_train(digits, loss="binary_cross_entropy")) == (
        "experiments.digits-mlp.train.loss: binary_cross_entropy tells two classes apart, digits "
        "has 10; choose cross_entropy"
    )


def test_a_model_for_other_rows(digits: Experiment) -> None:
    message = refused(replace(digits, dataset="moons", model=CNN))
    assert (
        message == "experiments.digits-mlp.model.name: cnn takes image rows, moons has table rows"
    )


CNN = ModelConfig(
    name="cnn",
    settings={
        "widths": [8],
        "kernels": [3],
        "pools": [True],
        "activation": "relu",
        "head": "flatten",
        "dropout": 0,
    },
)


def test_rows_that_cannot_be_turned(params: Params) -> None:
    moons = params.experiment("moons-mlp")
    augment = replace(moons.train.augment, rotate=10.0)
    message = refused(with_train(moons, augment=augment))
    assert message.startswith("experiments.moons-mlp.train.augment: moons has table rows, and only")


def test_random_changes_under_lbfgs(digits: Experiment) -> None:
    augment = replace(digits.train.augment, translate=1)
    message = refused(with_train(digits, optimizer="lbfgs", augment=augment))
    assert message.startswith("experiments.digits-mlp.train.augment: lbfgs asks for the same loss")


def test_smoothing_where_there_are_no_labels(params: Params) -> None:
    message = refused(with_train(params.experiment("mnist-autoencoder"), label_smoothing=0.1))
    assert "train.label_smoothing must be 0 for mean_squared_error" in message


def test_what_lbfgs_does_not_have(digits: Experiment) -> None:
    message = refused(
        with_train(digits, optimizer="lbfgs", momentum=0.0, clip=1.0, weight_decay=0.0)
    )
    assert (
        message == "experiments.digits-mlp.train.clip must be 0 for lbfgs, which has none, got 1.0"
    )


def test_it_is_asked_before_any_data_is_read(digits: Experiment, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("no-data", "weights", "metrics", "plots")]
    with pytest.raises(ConfigError, match="does not fit mlp"):
        train(*paths, experiment=with_train(digits, loss="mean_squared_error"), track=False)
    assert not list(tmp_path.iterdir())
