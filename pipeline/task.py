"""Whether the settings of an experiment fit together: its data set, its model and its loss.

It is asked before any data is read, so that a wrong setting costs no time.
"""

from dataclasses import replace

from pipeline import datasets, models
from pipeline.config import AugmentConfig, Experiment
from pipeline.datasets import Dataset
from pipeline.errors import ConfigError

__all__ = ["check"]


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
