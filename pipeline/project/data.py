"""`ferry data NAME`: what a preprocessed data set holds, and what may be wrong with it.

Rows of each split and class, ranges of the values, examples, and warnings: each is what a person
would look for before training, and says which rows to look at.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import datasets
from pipeline.config.experiment import DatasetConfig, OwnSection
from pipeline.datasets import readers
from pipeline.datasets._own import hash_files, source_of
from pipeline.datasets.readers import listed
from pipeline.records import ready as arrays
from pipeline.records.ready import MANIFEST, SPLITS, DatasetManifest, Split, words
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import pull
from serving.console import note
from serving.files import write_bytes

FEW_ROWS = 20
"""Training rows of a class below which a model learns little of it."""
UNEVEN = 10
"""Times that the largest class may have the rows of the smallest."""
NEARLY_EMPTY = 2.0
"""Standard deviation of the pixels of an image, from 0 to 255, below which one sees nothing."""
CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}
PER_CLASS, MOST_CLASSES, THUMB, MARGIN = 8, 20, 64, 4
"""Of the contact sheet: images of a class, classes, and pixels of an image and between two."""
NAME_WIDTH, TEXT_SIZE = 160, 14


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRange:
    """What the training rows hold of one channel, column or target."""

    name: str
    lowest: float
    highest: float
    mean: float
    std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training row as text."""

    label: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What lies in `data/ready/D`."""

    dataset: str
    kind: str
    dtype: str
    row: tuple[int, ...]
    """Shape of one row."""
    rows: Mapping[str, int]
    """Of each split."""
    classes: Mapping[str, Mapping[str, int]]
    """Rows of each class, per split; empty where numbers are predicted."""
    values: tuple[ValueRange, ...]
    examples: tuple[Example, ...]
    """None of images, which are in `contact_sheet`."""
    contact_sheet: Path | None
    warnings: tuple[str, ...]


def bring_up_to_date(
    raw: Path, ready: Path, *, name: str, config: DatasetConfig | OwnSection
) -> None:
    """Preprocess a data set that is not, or one of the user's own that has changed since.

    What comes inside a package is pulled first. Raises as `preprocess` does and, for a data set of
    the user's own, as `pull_own`.
    """
    there = (ready / MANIFEST).is_file()
    if isinstance(config, OwnSection):
        gone = readers.missing(readers.settings(config, f"datasets.{name}"))
        if gone and there:
            note(f"Warning: {name}: {gone} is not there; this is what was read of it before")
            return
        source = source_of(hash_files(raw, name, config), config)
        there = there and arrays.open_manifest(ready).source == source
    elif not there and all(file.embedded for file in datasets.get(name).raw_files()):
        pull(raw, name=name, mirrors=())
    if not there:
        preprocess(raw, ready, name=name, config=config)


def describe(ready: Path, contact_sheet: Path) -> DataReport:
    """Look at a preprocessed data set; of images, write examples of each class to `contact_sheet`.

    Raises MissingInputError when it is not preprocessed, and IntegrityError as `open_split` does.
    """
    manifest = arrays.open_manifest(ready)
    splits = {split: arrays.open_split(ready, split) for split in SPLITS}
    train = splits["train"]
    if manifest.kind == "image":
        write_bytes(contact_sheet, _sheet(train, manifest.labels))
    values = tuple(_values(train, manifest))
    return DataReport(
        dataset=manifest.dataset,
        kind=manifest.kind,
        dtype=str(train.inputs.dtype) if manifest.kind != "text" else "str",
        row=train.inputs.shape[1:],
        rows=manifest.rows,
        classes={
            label: {split: counts[index] for split, counts in manifest.class_counts.items()}
            for index, label in enumerate(manifest.labels)
        },
        values=values,
        examples=tuple(_examples(train, manifest)),
        contact_sheet=contact_sheet if manifest.kind == "image" else None,
        warnings=(
            *_class_warnings(manifest),
            *_column_warnings(train, manifest),
            *_row_warnings(splits, manifest),
        ),
    )


def _values(train: Split, manifest: DatasetManifest) -> Iterator[ValueRange]:
    if manifest.kind == "text":
        yield _range("words of a text", np.array([len(words(text)) for text in train.inputs]))
    else:
        columns = train.inputs.reshape(-1, train.inputs.shape[-1])
        for index, name in enumerate(_column_names(train, manifest)):
            yield _range(name, columns[:, index])
    for index, name in enumerate(manifest.targets):
        yield _range(name, train.labels[:, index])


def _range(name: str, values: npt.NDArray[Any]) -> ValueRange:
    return ValueRange(
        name=name,
        lowest=float(values.min()),
        highest=float(values.max()),
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
    )


def _column_names(train: Split, manifest: DatasetManifest) -> Sequence[str]:
    count = train.inputs.shape[-1]
    if manifest.kind == "image":
        return CHANNELS.get(count) or [f"channel {index}" for index in range(count)]
    return manifest.features or [f"column {index}" for index in range(count)]


def _examples(train: Split, manifest: DatasetManifest) -> Iterator[Example]:
    """Two rows of each of the first classes, or the first rows where there are no classes."""
    if manifest.kind == "image":
        return
    for label, rows in _by_class(train, manifest.labels, 2):
        for row in rows:
            value = train.inputs[row]
            shown = " ".join(value.split()) if manifest.kind == "text" else _numbers(value)
            yield Example(label=label or _numbers(train.labels[row]), text=shown)


def _numbers(values: npt.NDArray[Any]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _by_class(
    split: Split, labels: Sequence[str], count: int
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Some rows of each of the first classes, from all over it."""
    every = np.arange(len(split.labels))
    for index, label in enumerate(labels[:MOST_CLASSES] or ("",)):
        rows = np.flatnonzero(split.labels == index) if labels else every
        yield label, rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


# Warnings


def _class_warnings(manifest: DatasetManifest) -> Iterator[str]:
    counts = dict(zip(manifest.labels, manifest.class_counts["train"], strict=True))
    few = [f"{label} ({count})" for label, count in counts.items() if count < FEW_ROWS]
    if few:
        yield f"classes of fewer than {FEW_ROWS} training rows: {listed(few)}"
    if counts and max(counts.values()) > UNEVEN * min(counts.values()):
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        yield (
            f"class {most} has {counts[most] / counts[least]:.0f} times the training rows of "
            f"{least}; accuracy alone says little"
        )


def _column_warnings(train: Split, manifest: DatasetManifest) -> Iterator[str]:
    if manifest.kind != "table":
        return
    for index, name in enumerate(_column_names(train, manifest)):
        column = train.inputs[:, index]
        if column.min() == column.max():
            yield f"{name} is {column[0]:g} in every training row; nothing can be learned from it"
        elif len(column) > 2 and (column == np.trunc(column)).all() and (np.diff(column) > 0).all():
            yield f"{name} seems to count the rows; `features` can leave it out"


def _row_warnings(splits: Mapping[str, Split], manifest: DatasetManifest) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for what, row in _row_findings(splits, manifest):
        found.setdefault(what, []).append(row)
    yield from (f"{what}: {listed(rows)}" for what, rows in found.items())


def _row_findings(
    splits: Mapping[str, Split], manifest: DatasetManifest
) -> Iterator[tuple[str, str]]:
    """Rows that are there twice, in two splits or with two answers, and images of nothing."""
    seen: dict[bytes, tuple[str, int]] = {}
    for part, split in splits.items():
        for index, row in enumerate(split.inputs):
            content = row.encode() if manifest.kind == "text" else row.tobytes()
            before, there = seen.setdefault(
                blake2b(content, digest_size=16).digest(), (part, index)
            )
            pair = f"{_name(split, index)} is {_name(splits[before], there)}"
            if before != part:
                yield f"rows of {part} that are in {before} as well", pair
            if not np.array_equal(split.labels[index], splits[before].labels[there]):
                yield "same rows with different answers", pair
            if manifest.kind == "image" and _is_nearly_empty(row):
                yield "images of nearly one colour", f"{_name(split, index)} of {part}"


def _is_nearly_empty(image: npt.NDArray[np.uint8]) -> bool:
    """Whether one sees nothing; some 32 x 32 of the pixels of a large image tell."""
    step = max(1, min(image.shape[:2]) // 32)
    return bool(image[::step, ::step].std() < NEARLY_EMPTY)


def _name(split: Split, row: int) -> str:
    return f"row {row}" if split.names is None else str(split.names[row])


# The contact sheet


def _sheet(train: Split, labels: Sequence[str]) -> bytes:
    """A PNG with a line of training images for each class."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    step, classes = THUMB + MARGIN, list(_by_class(train, labels, PER_CLASS))
    brightest = max(1, train.inputs.max())  # which is 16 for the digits
    sheet = Image.new("RGB", (NAME_WIDTH + PER_CLASS * step, len(classes) * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    for line, (label, rows) in enumerate(classes):
        top = line * step
        draw.text((MARGIN, top + THUMB // 2), _fitting(label, font), "black", font, anchor="lm")
        for place, row in enumerate(rows):
            image = Image.fromarray(
                (train.inputs[row].squeeze() * (255 / brightest)).astype(np.uint8)
            )
            small = max(image.size) < THUMB
            # The pixels of a small image are shown as they are.
            method = Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR
            shown = ImageOps.contain(image, (THUMB, THUMB), method)
            sheet.paste(shown, (NAME_WIDTH + place * step, top))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _fitting(label: str, font: Any) -> str:
    """A label as long as there is room for it."""
    while len(label) > 1 and font.getlength(label) > NAME_WIDTH - 2 * MARGIN:
        label = f"{label[:-2]}…" if label.endswith("…") else f"{label[:-1]}…"
    return label
