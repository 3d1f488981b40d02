"""Turn the inputs of `ferry predict` into an ordered stream of rows, one at a time.

Image folders, single images, `.npy` and `.npz`; what cannot be read is an item of the stream as
well, so that one broken image does not stop a run of a million.
"""

import logging
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from serving.errors import InputError, MissingInputError
from serving.model import Model

__all__ = ["IMAGE_SUFFIXES", "Inputs", "Row", "Unreadable", "open_inputs"]

Array = npt.NDArray[Any]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ARRAY_SUFFIXES = (".npy", ".npz")
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
ARRAY_NAMES = ("images", "input", "inputs")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
# What Pillow's decoders raise on broken files, beside the OSError they should.
DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
# Pillow logs some of what it raises; without a handler that would go to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Row:
    """One row that can be fed to the model."""

    id: str
    """An image's path, or `rows.npy:12`."""
    value: Array
    """Of the model's dtype and shape, without the batch axis."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One row that cannot."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of a run, in order."""

    sources: "tuple[Images | Rows, ...]"

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __iter__(self) -> Iterator[Row | Unreadable]:
        for source in self.sources:
            yield from source


@dataclass(frozen=True, slots=True)
class Images:
    """A single image, or all images of a folder and the folders in it, sorted by name."""

    path: Path
    count: int
    shape: tuple[int, int, int]
    """Height, width and channels that the model takes."""
    resize: bool

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row | Unreadable]:
        for path in _image_files(self.path):
            yield _read_image(path, self.shape, resize=self.resize)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of an array."""

    path: Path
    array: Array

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[Row | Unreadable]:
        name = _printable(self.path)
        for index in range(len(self.array)):
            yield Row(f"{name}:{index}", self.array[index])


def open_inputs(
    paths: Sequence[Path], model: Model, *, array: str | None = None, resize: bool = False
) -> Inputs:
    """Look at every input, and return the stream of their rows.

    `array` names the array of `.npz` files, `resize` fits images to the model in size and mode.
    Raises MissingInputError for a path that is not there and InputError for one that holds nothing
    the model takes.
    """
    return Inputs(tuple(_source(path, model, array, resize=resize) for path in paths))


def _source(path: Path, model: Model, array: str | None, *, resize: bool) -> Images | Rows:
    if not path.exists():
        raise MissingInputError(f"{path} is not there")
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in IMAGE_SUFFIXES:
        shape = _image_shape(path, model)
        Image.init()  # else Pillow raises KeyError for all but the commonest formats
        count = sum(1 for _ in _image_files(path))
        if not count:
            raise InputError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        return Images(path, count, shape, resize)
    if suffix not in ARRAY_SUFFIXES:
        takes = ", ".join((*ARRAY_SUFFIXES, *IMAGE_SUFFIXES))
        raise InputError(f"{path}: unknown suffix {suffix!r}; give a folder of images, or {takes}")
    rows = _load_npy(path) if suffix == ".npy" else _load_npz(path, array)
    if not rows.ndim or not model.accepts(rows.dtype, rows.shape[1:]):
        raise InputError(
            f"{path} holds {rows.dtype} {list(rows.shape)}; {model.path} takes {model.takes()}"
        )
    if not len(rows):
        raise InputError(f"{path} holds no rows")
    return Rows(path, rows)


def _image_shape(path: Path, model: Model) -> tuple[int, int, int]:
    """Height, width and channels of the images that the model takes."""
    axes = model.input.shape[1:]
    if model.input.dtype == "uint8" and len(axes) == 3 and axes[2] in MODES:
        height, width, channels = axes
        if isinstance(height, int) and isinstance(width, int) and isinstance(channels, int):
            return height, width, channels
    raise InputError(
        f"{path}: {model.path} takes {model.takes()}, which no image is; give such rows as .npy"
    )


def _image_files(path: Path) -> Iterator[Path]:
    """The image itself, or those of a folder and the folders in it; hidden ones are left out."""
    if not path.is_dir():
        yield path
        return
    with os.scandir(path) as entries:
        found = sorted((entry for entry in entries if entry.name[0] != "."), key=_by_name)
    for entry in found:
        # A link to a folder is not followed: it may lead back here.
        if entry.is_dir(follow_symlinks=False):
            yield from _image_files(Path(entry.path))
        elif entry.is_file() and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            yield Path(entry.path)


def _by_name(entry: "os.DirEntry[str]") -> str:
    return entry.name


def _read_image(path: Path, shape: tuple[int, int, int], *, resize: bool) -> Row | Unreadable:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags: the picture is there or it is not
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                return Row(_printable(path), _pixels(image, shape, resize=resize))
    except DECODING_ERRORS as error:
        return Unreadable(_printable(path), _reason(error))


def _pixels(image: Image.Image, shape: tuple[int, int, int], *, resize: bool) -> Array:
    """The image as uint8 [H, W, C]; ValueError when that is not what it is."""
    height, width, channels = shape
    mode = MODES[channels]
    frames = getattr(image, "n_frames", 1)
    # MPO is what many cameras write into a .jpg: the picture, and a preview after it.
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"it holds {frames} pictures, not one")
    if image.mode not in EIGHT_BIT_MODES:
        raise ValueError(f"its mode is {image.mode}; convert it to 8 bits a channel first")
    if resize:
        image = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
    elif image.size != (width, height) or image.mode != mode:
        found = f"{image.width}x{image.height} {image.mode}"
        raise ValueError(
            f"it is {found}, the model takes {width}x{height} {mode}; --resize fits it"
        )
    return np.asarray(image, dtype=np.uint8).reshape(shape)


def _reason(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or not of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _load_npy(path: Path) -> Array:
    try:
        # Mapped, not read: a file larger than the memory is fine. It never unpickles.
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OverflowError) as error:
        raise InputError(f"{path} is not a .npy file that can be read: {_reason(error)}") from error


def _load_npz(path: Path, name: str | None) -> Array:
    try:
        # np.load would take a .npy by this name as well, and hand out an array.
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            member: Array = archive[_member(path, archive.files, name)]
            return member
    except (ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a .npz file that can be read: {_reason(error)}") from error


def _member(path: Path, names: Sequence[str], wanted: str | None) -> str:
    """The array of a `.npz` to take: the one asked for, one of the usual names, the only one."""
    there = ", ".join(names) or "none"
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"{path} holds no array named {wanted!r}; there are: {there}")
        return wanted
    usual = [name for name in ARRAY_NAMES if name in names]
    if usual:
        return usual[0]
    if len(names) != 1:
        raise InputError(f"{path} holds the arrays {there}; name one with --array")
    return names[0]


def _printable(path: Path) -> str:
    """The path as text that can be written anywhere, even if it is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
