"""Make small IDX files for the tests of their readers."""

import gzip
import struct
from pathlib import Path

import numpy as np

__all__ = ["packed", "write_images", "write_labels", "write_mnist"]


def packed(magic: int, *sizes: int, values: bytes) -> bytes:
    """A gzip-compressed IDX file with exactly this header and these values."""
    header = struct.pack(f">{1 + len(sizes)}I", magic, *sizes)
    return gzip.compress(header + values, mtime=0)


def write_images(path: Path, images: np.ndarray) -> Path:
    """Write uint8 images [rows, height, width]."""
    path.write_bytes(packed(2051, *images.shape, values=images.tobytes()))
    return path


def write_labels(path: Path, labels: np.ndarray) -> Path:
    """Write labels [rows]."""
    path.write_bytes(packed(2049, len(labels), values=labels.astype(np.uint8).tobytes()))
    return path


def write_mnist(folder: Path, *, train: int, test: int) -> None:
    """Write the four files of MNIST with random images and the labels 0 to 9 in turn."""
    random = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, rows in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (rows, 28, 28), np.uint8)
        write_images(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_labels(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(rows) % 10)
