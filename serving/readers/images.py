"""Images as rows: one file, or a folder of them, decoded by Pillow one at a time.

An image that is damaged, or not of the model's size and mode, is an item with its reason.
"""

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from serving.errors import InputError
from serving.readers.items import Row, Unreadable, printable, reason_of
from serving.tensors import TensorInfo

__all__ = ["IMAGE_SUFFIXES", "Images", "open_images"]

Array = npt.NDArray[Any]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
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
class Images:
    """A single image, or all images of a folder and the folders in it, sorted by name."""

    path: Path
    count: int
    shape: tuple[int, int, int]
    """Height, width and channels that the model takes."""
    resize: bool

    def __iter__(self) -> Iterator[Row | Unreadable]:
        for path in _image_files(self.path):
            yield _read_image(path, self.shape, resize=self.resize)


def open_images(path: Path, info: TensorInfo, model: Path, *, resize: bool) -> Images:
    """The images of `path` as rows for the input `info` of `model`.

    Raises InputError when there are none, and for a model that takes no images.
    """
    shape = _image_shape(path, info, model)
    Image.init()  # else Pillow raises KeyError for all but the commonest formats
    count = sum(1 for _ in _image_files(path))
    if not count:
        raise InputError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return Images(path, count, shape, resize)


def _image_shape(path: Path, info: TensorInfo, model: Path) -> tuple[int, int, int]:
    """Height, width and channels of the images that the model takes."""
    axes = info.shape[1:]
    if info.dtype == "uint8" and len(axes) == 3 and axes[2] in MODES:
        height, width, channels = axes
        if isinstance(height, int) and isinstance(width, int) and isinstance(channels, int):
            return height, width, channels
    raise InputError(
        f"{path}: {model} takes {info.takes()}, which no image is; give such rows as .npy"
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
                return Row(printable(path), _pixels(image, shape, resize=resize))
    except DECODING_ERRORS as error:
        return Unreadable(printable(path), _reason(error))


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
    return reason_of(error)
