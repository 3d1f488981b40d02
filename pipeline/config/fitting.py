"""Whether the parts of an experiment fit: its data, its model, its loss, its teacher.

What is wrong is refused with the path of the key, the value and what would do.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from pipeline import datasets, models
from pipeline.config.experiment import AugmentConfig, Experiment, TeacherConfig
from pipeline.errors import ConfigError
from pipeline.records.ready import Kind


class KnownRows(Protocol):
    """What a model must fit, of a data set or of the manifest of its arrays."""

    @property
    def kind(self) -> Kind:
        """Images, a table or texts."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The numbers that are predicted, where there are no classes."""


def check(experiment: Experiment, rows: KnownRows | None = None) -> None:
    """Refuse an experiment whose parts do not fit.

    `rows` says what is in the data set; without it that is known of ferry's own data sets alone.
    Raises ConfigError with the key's path, the value and what would do.
    """
    where = f"experiments.{experiment.name}"
    models.settings(experiment.model, where=f"{where}.model")
    if rows is None and experiment.dataset in datasets.names():
        rows = datasets.get(experiment.dataset)
    if rows is not None:
        _check_kind(experiment, rows, where)
        _check_loss(experiment, rows, where)
    _check_optimizer(experiment, where)


def _check_kind(experiment: Experiment, dataset: KnownRows, where: str) -> None:
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
    if dataset.kind != "image" and experiment.train.sides:
        raise ConfigError(
            f"{where}.train.sides: {experiment.dataset} has {dataset.kind} rows, and only images "
            f"have sides; set it to []"
        )
    teacher = experiment.train.teacher
    if teacher and teacher.views > 1 and augment == _no_change(augment):
        raise ConfigError(
            f"{where}.train.teacher.views must be 1 where train.augment changes nothing, got "
            f"{teacher.views}"
        )


def _no_change(augment: AugmentConfig) -> AugmentConfig:
    return replace(augment, translate=0, rotate=0, scale=0, flip=False, cutout=0)


def _check_loss(experiment: Experiment, dataset: KnownRows, where: str) -> None:
    name, loss, classes = experiment.model.name, experiment.train.loss, len(dataset.labels)
    reconstructs = models.gives(name) == "reconstruction"
    if reconstructs and dataset.targets:
        raise ConfigError(
            f"{where}.model.name: {name} gives pictures, {experiment.dataset} has targets: "
            f"{', '.join(dataset.targets)}"
        )
    no_class = bool(reconstructs or dataset.targets)
    if no_class != (loss == "mean_squared_error"):
        asks = f"{experiment.dataset}, which has {'targets' if dataset.targets else 'classes'}"
        asks = f"{name}, which gives pictures" if reconstructs else asks
        fitting = "mean_squared_error" if no_class else "cross_entropy or binary_cross_entropy"
        raise ConfigError(f"{where}.train.loss: {loss} does not fit {asks}; choose {fitting}")
    if loss == "binary_cross_entropy" and classes != 2:
        raise ConfigError(
            f"{where}.train.loss: {loss} tells two classes apart, {experiment.dataset} has "
            f"{classes}; choose cross_entropy"
        )
    if no_class and experiment.train.label_smoothing:
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


def teacher_of(experiment: Experiment) -> TeacherConfig:
    """The experiment's teacher; ConfigError where it has none."""
    teacher = experiment.train.teacher
    if teacher is None:
        raise ConfigError(
            f"experiments.{experiment.name}.train.teacher is null: it learns from labels alone"
        )
    return teacher


def check_teacher(
    experiment: Experiment, experiments: Mapping[str, Experiment], students: Mapping[str, str]
) -> None:
    """Hold an experiment to its teacher's data and loss, and to what DVC is told of `students`."""
    name, said = experiment.name, students.get(experiment.name)
    config = experiment.train.teacher
    wanted = config.experiment if config else None
    if said != wanted:
        cure = f"write `{name}: {wanted}` there" if wanted else "remove it"
        raise ConfigError(
            f"students.{name} is {said or 'not there'}, experiments.{name}.train.teacher names "
            f"{wanted or 'none'}: {cure}"
        )
    teacher = experiments.get(wanted) if wanted else None
    if teacher is None:
        return
    where = f"experiments.{name}.train.teacher.experiment"
    pairs = [
        ("learns", teacher.dataset, experiment.dataset),
        ("is trained with", teacher.train.loss, experiment.train.loss),
    ]
    for verb, its, own in pairs:
        if its != own:
            raise ConfigError(
                f"{where}: {wanted} {verb} {its}, {name} {own}; both must be the same"
            )
    if experiment.train.loss == "mean_squared_error":
        raise ConfigError(f"{where}: a teacher answers with classes, {name} predicts none")
