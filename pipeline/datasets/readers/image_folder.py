"""Images in a folder for each class, or in the rows of a CSV or Parquet file with their labels.

`flowers: {reader: image_folder, path: data/flowers, size: [64, 64], color: rgb}`. Each image is
turned as its Exif says, laid on white where it is transparent, and resized.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.config.experiment import Count, OwnDatasetConfig
from pipeline.datasets.readers import Part, class_folder, listed, require_memory
from pipeline.datasets.readers._columns import is_table, text_columns
from serving.errors import InputError, on_one_line
from serving.inputs.names import IMAGE_SUFFIXES, NO_DATA
from serving.runtime.cores import allowed_cores, ordered_map

CHANNELS = {"grey": 1, "rgb": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(OwnDatasetConfig):
    """`path` is a folder of folders, one for each class, or a table of paths and labels."""

    color: Literal["rgb", "grey"]
    size: tuple[Count, Count] | None = None
    """Height and width, in pixels, that images are resized to; without it all have one size."""
    image: str | None = None
    """Column of a table with the path of the image, relative to the folder of the table."""
    label: str | None = None
    """Column of a table with the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The images of one place, in order, with the class of each, and what is no image."""

    files: Mapping[str, Path]
    """By their names."""
    labels: Sequence[str]
    others: Sequence[str]


def files(root: Path, settings: Settings) -> Mapping[str, Path]:
    """The images, and the table that names them."""
    found = dict(_find(root, settings).files)
    return found | {root.name: root} if is_table(root) else found


def read(root: Path, settings: Settings, like: Part | None) -> Part:
    """Read images as uint8 [rows, height, width, channels]; those of a test have the same size."""
    found = _find(root, settings)
    size = settings.size or (like.inputs.shape[1:3] if like else None)
    images = _read_all(root, found.files, size, settings)
    others = f"left out what is no image of a class: {listed(found.others)}"
    return Part(
        kind="image",
        inputs=images,
        answers=found.labels,
        names=list(found.files),
        notes=(others,) if found.others else (),
    )


def _find(root: Path, settings: Settings) -> _Found:
    if is_table(root):
        return _listed(root, settings)
    if not root.is_dir():
        raise InputError(f"{root} must be a folder of class folders, or a table of images")
    folders: list[str] = []
    others: list[str] = []
    for entry in sorted(root.iterdir()):
        if not NO_DATA.match(entry.name):
            (folders if entry.is_dir() else others).append(entry.name)
    found: dict[str, Path] = {}
    labels: list[str] = []
    for label in class_folder(root, folders, "folders of images"):
        images, no_images = _images(root, label)
        if not images:
            raise InputError(f"{root / label} holds no images; fill the folder, or take it away")
        found |= images
        labels += [label] * len(images)
        others += no_images
    return _Found(files=found, labels=labels, others=others)


def _images(root: Path, label: str) -> tuple[dict[str, Path], list[str]]:
    """The images below a class folder by their names below `root`, and the other files."""
    images: dict[str, Path] = {}
    others: list[str] = []
    for folder, below, names in os.walk(root / label, onerror=_refuse):
        below[:] = sorted(name for name in below if not NO_DATA.match(name))
        for name in sorted(name for name in names if not NO_DATA.match(name)):
            path = Path(folder) / name
            key = path.relative_to(root).as_posix()
            if name.lower().endswith(IMAGE_SUFFIXES):
                images[key] = path
            else:
                others.append(key)
    return images, others


def _refuse(error: OSError) -> None:
    """What `os.walk` would pass over: a folder that may not be looked into."""
    raise error


def _listed(root: Path, settings: Settings) -> _Found:
    names, labels = text_columns(root, image=settings.image, label=settings.label)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{root} names {twice[0]} {names.count(twice[0])} times")
    found = {name: root.parent / Path(name).expanduser() for name in names}
    for row, (name, path) in enumerate(found.items(), 1):
        if not path.is_file():
            raise InputError(f"{root}: row {row} names {name}, and {path} is not there, or no file")
    return _Found(files=found, labels=labels, others=())


def _read_all(
    root: Path, found: Mapping[str, Path], size: Sequence[int] | None, settings: Settings
) -> npt.NDArray[np.uint8]:
    """All images in one array, decoded as `ferry predict --resize` decodes them."""
    from tqdm import tqdm

    from serving.inputs.decoding import ImageDecoder

    height, width = size or _common_size(root, found)
    decoder = ImageDecoder(shape=(height, width, CHANNELS[settings.color]), resize=True)
    what = f"{len(found):,} images of {height} x {width}"
    require_memory(root, len(found) * prod(decoder.shape), what, "say a smaller size:")
    rows = np.empty((len(found), *decoder.shape), np.uint8)

    def decode(path: Path) -> npt.NDArray[np.uint8]:
        try:
            return decoder.decode_file(path)
        except ValueError as error:
            raise InputError(f"{path} cannot be read: {error}") from error

    decoded = ordered_map(decode, found.values(), parallel=allowed_cores())
    bar = tqdm(decoded, on_one_line(root.name), len(found), leave=False, disable=None)
    for row, pixels in enumerate(bar):
        rows[row] = pixels
    return rows


def _common_size(root: Path, found: Mapping[str, Path]) -> tuple[int, int]:
    """Height and width of all images; InputError where they are not the same."""
    first, size = "", (0, 0)
    for name, path in found.items():
        height, width = _upright_size(path)
        if not first:
            first, size = name, (height, width)
        if (height, width) != size:
            raise InputError(
                f"{root}: {first} is {size[0]} x {size[1]} pixels and {name} {height} x {width}, "
                f"high and wide; say size:, what all are resized to, for instance "
                f"size: [{size[0]}, {size[1]}]"
            )
    return size


def _upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as a person sees it; InputError for one that is broken."""
    from PIL import Image

    from serving.inputs.decoding import DECODING_ERRORS, image_formats, upright
    from serving.inputs.sources import reason_of

    try:
        with Image.open(path, formats=image_formats()) as image:
            turned = upright(image)
    except DECODING_ERRORS as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from error
    return turned.height, turned.width
