"""Which files are which kind of input, by their names alone.

Apart from what reads them, so that nobody waits for the readers of other kinds.
"""

import re
from pathlib import Path

__all__ = [
    "ARRAY_SUFFIXES",
    "ARROW_SUFFIXES",
    "COLUMN_SUFFIXES",
    "IDX_NAMES",
    "IMAGE_SUFFIXES",
    "LIST_SUFFIXES",
    "STDIN",
    "TAR_SUFFIXES",
    "TEXT_SUFFIX",
    "is_idx",
    "is_tar",
]

ARRAY_SUFFIXES = (".npy", ".npz")
ARROW_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
COLUMN_SUFFIXES = (".csv", ".jsonl", ".ndjson", *ARROW_SUFFIXES)
IDX_NAMES = ("IDX files (*-ubyte, *.idx, *.gz of these)",)
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LIST_SUFFIXES = (".lst",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TEXT_SUFFIX = ".txt"
STDIN = "-"
"""What stands for stdin among the inputs."""
IDX_END = re.compile(r"(\.idx\d*|-ubyte)(\.gz)?$", re.IGNORECASE)


def is_idx(path: Path) -> bool:
    """Whether a file is named as IDX: `t10k-images-idx3-ubyte.gz`, `images.idx`."""
    return IDX_END.search(path.name) is not None


def is_tar(path: Path) -> bool:
    """Whether a file is named as a shard."""
    return path.name.lower().endswith(TAR_SUFFIXES)
