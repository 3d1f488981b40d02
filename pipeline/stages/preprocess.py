"""`ferry preprocess mnist`: raw files in, arrays and their manifest out, in `data/ready/D`.

A fixed, seeded validation split, stratified by class, is taken from the training part, unless these
are all the rows there can be; the official test set stays as it is, and every value stays raw.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import datasets
from pipeline.config.experiment import DatasetConfig, OwnSection
from pipeline.datasets import Dataset, Indices, RawRows, readers, row_count, stratified
from pipeline.datasets._own import open_dataset
from pipeline.errors import ConfigError
from pipeline.records.ready import (
    MANIFEST,
    SPLITS,
    ArrayInfo,
    DatasetManifest,
    Split,
    words,
    write_array,
    write_manifest,
)
from serving.console import note
from serving.errors import InputError, IntegrityError
from serving.files import require, sha256_of_file

BLOCK_VALUES = 1 << 20
"""Values that are turned to float64 at once: 8 MiB of them."""


def preprocess(
    raw: Path, ready: Path, *, name: str, config: DatasetConfig | OwnSection
) -> DatasetManifest:
    """Write the splits of the data set `name` and their manifest to the folder `ready`.

    `{train,validation,test}_inputs.npy` keep the raw dtype: uint8 [rows, H, W, C] for images,
    float32 [rows, features] for tables, str [rows] for text; `_labels.npy` are int64 [rows], or
    float32 [rows, targets]. The manifest comes last, and the same files and settings give the same
    bytes.

    Raises MissingInputError and IntegrityError for a raw file that is not the official one,
    InputError for rows that cannot be used, and ConfigError for a `validation_rows` that does not
    fit.
    """
    if isinstance(config, OwnSection):
        dataset = open_dataset(raw, name, config)
        config = readers.settings(config, f"datasets.{name}")
    else:
        dataset = datasets.get(name)
    check_raw(raw, dataset, name)
    splits = _split(dataset.read(raw), dataset, name, config)
    mean, std = _statistics(splits["train"], dataset, name)
    target_mean, target_std = _target_statistics(splits, dataset, name)
    known = vocabulary(splits["train"].inputs) if dataset.kind == "text" else ()
    # An interrupted run must not leave new arrays under an old manifest.
    (ready / MANIFEST).unlink(missing_ok=True)
    manifest = DatasetManifest(
        dataset=name,
        kind=dataset.kind,
        labels=dataset.labels,
        targets=dataset.targets,
        class_counts={part: _class_counts(split, dataset) for part, split in splits.items()},
        mean=mean,
        std=std,
        target_mean=target_mean,
        target_std=target_std,
        vocabulary=known,
        seed=config.seed,
        arrays=_write_arrays(ready, splits),
        features=dataset.features,
        source=dataset.source,
        homepage=dataset.homepage,
        citation=dataset.citation,
        licence=dataset.licence,
    )
    write_manifest(ready, manifest)
    return manifest


def check_raw(raw: Path, dataset: Dataset, name: str) -> None:
    """Hold every raw file to the sha256 on record.

    Raises MissingInputError for a file that is not there and IntegrityError for another one.
    """
    again = f"ferry pull {name}"
    for file in dataset.raw_files():
        found = sha256_of_file(require(raw / file.name, again))
        if found != file.sha256:
            raise IntegrityError(
                f"{raw / file.name} has sha256 {found[:12]}…, the official one is "
                f"{file.sha256[:12]}…; `{again}` replaces it"
            )


def channel_statistics(
    inputs: npt.NDArray[Any],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel or feature, the last axis, in raw units.

    `inputs` has any numeric dtype and the shape [rows, ..., channels]. Computed in float64, in two
    passes over blocks of rows, so that no float copy of the whole is made.
    """
    count = inputs.size // inputs.shape[-1]
    mean = sum(block.sum(axis=0) for block in _blocks(inputs)) / count
    squares = sum(np.square(block - mean).sum(axis=0) for block in _blocks(inputs))
    std = np.sqrt(squares / count)
    return tuple(mean.tolist()), tuple(std.tolist())


def vocabulary(texts: npt.NDArray[np.str_]) -> tuple[str, ...]:
    """Every word of the texts, str [rows], the most frequent first, ties in alphabetical order."""
    counts = Counter(word for text in texts.tolist() for word in words(text))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word)))


def _statistics(
    train: Split, dataset: Dataset, name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the graph standardizes with: mean and standard deviation, 0 and 1 to leave all as is."""
    if dataset.kind == "text":
        return (), ()
    if not dataset.standardized:
        count = train.inputs.shape[-1]
        return (0.0,) * count, (1.0,) * count
    mean, std = channel_statistics(train.inputs)
    values = train.inputs.reshape(-1, len(std))
    # By the values: the sums of the statistics are rounded, and no deviation may be exactly 0.
    constant = np.flatnonzero(values.min(axis=0) == values.max(axis=0)).tolist()
    axis = "channel" if dataset.kind == "image" else "column"
    for index in constant:
        message = (
            f"{name}: {axis} {(dataset.features or range(len(std)))[index]} has the same value in "
            f"every training row, so there is nothing to learn from it"
        )
        if dataset.kind == "image" or len(constant) == len(std):
            raise InputError(message)
        note(f"Warning: {message}")
    return mean, tuple(1.0 if index in constant else value for index, value in enumerate(std))


def _target_statistics(
    splits: Mapping[str, Split], dataset: Dataset, name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each target of a regression, over the training rows alone."""
    if not dataset.targets:
        return (), ()
    for part, split in splits.items():
        wrong = np.argwhere(~np.isfinite(split.labels))
        if len(wrong):
            row, column = wrong[0]
            raise InputError(
                f"{name}: target {dataset.targets[column]!r} is {split.labels[row, column]} in row "
                f"{row} of the {part} split"
            )
    mean, std = channel_statistics(splits["train"].labels)
    if min(std) == 0:
        raise InputError(
            f"{name}: target {dataset.targets[std.index(0)]!r} has the same value in every "
            f"training row, so there is nothing to learn"
        )
    return mean, std


def _blocks(inputs: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float64]]:
    """Go through the inputs as float64 [values, channels], some rows at a time."""
    step = max(1, BLOCK_VALUES * len(inputs) // inputs.size)
    for start in range(0, len(inputs), step):
        yield inputs[start : start + step].reshape(-1, inputs.shape[-1]).astype(np.float64)


def _split(
    rows: RawRows, dataset: Dataset, name: str, config: DatasetConfig
) -> Mapping[str, Split]:
    where = f"datasets.{name}.validation_rows"
    if dataset.complete:
        return _complete_splits(rows, where, config)
    if missing := _missing_class(rows.test, dataset):
        raise InputError(f"the test part of {name} has no row of class {missing!r}")
    train, validation = _validation_split(rows.train.labels, dataset, where, config)
    return {
        "train": rows.train.take(train),
        "validation": rows.train.take(validation),
        "test": rows.test,
    }


def _complete_splits(rows: RawRows, where: str, config: DatasetConfig) -> Mapping[str, Split]:
    """Every row in every split, for a data set of all the rows there can be."""
    if config.validation_rows:
        raise ConfigError(
            f"{where} must be 0, for its {len(rows.train.labels)} rows are all there can be and "
            f"each is validated on, got {config.validation_rows:g}"
        )
    return dict.fromkeys(SPLITS, rows.train)


def _validation_split(
    labels: npt.NDArray[Any], dataset: Dataset, where: str, config: DatasetConfig
) -> tuple[Indices, Indices]:
    if dataset.targets:
        most, rows = len(labels) - 2, row_count(config.validation_rows, len(labels), 1)
        if not 1 <= rows <= most:
            raise ConfigError(
                f"{where} must be from 1 to {most}, which leaves two rows to train on, got {rows}"
            )
        return stratified(labels, rows, config.seed)
    classes = len(dataset.labels)
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < 2:
        raise InputError(
            f"{dataset.title}: class {dataset.labels[counts.argmin()]!r} has {counts.min()} "
            f"training rows, and must have one for training and one for validation"
        )
    most = len(labels) - classes
    rows = row_count(config.validation_rows, len(labels), classes)
    if not classes <= rows <= most:
        raise ConfigError(
            f"{where} must be from {classes} to {most}, a row of each class or more on either "
            f"side, got {rows}"
        )
    return stratified(labels, rows, config.seed)


def _missing_class(split: Split, dataset: Dataset) -> str | None:
    counts = _class_counts(split, dataset)
    return dataset.labels[counts.index(0)] if 0 in counts else None


def _class_counts(split: Split, dataset: Dataset) -> tuple[int, ...]:
    if dataset.targets:
        return ()
    return tuple(np.bincount(split.labels, minlength=len(dataset.labels)).tolist())


def _write_arrays(ready: Path, splits: Mapping[str, Split]) -> Mapping[str, ArrayInfo]:
    arrays = {
        f"{part}_{field.name}.npy": array
        for part in SPLITS
        for field in fields(Split)
        if (array := getattr(splits[part], field.name)) is not None
    }
    return {name: write_array(ready / name, array) for name, array in arrays.items()}
