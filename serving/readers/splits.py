"""The splits of preprocessed data sets by name: `mnist:test` is a file below `data/ready/mnist`."""

import re
from pathlib import Path

from serving.errors import IntegrityError, UnknownNameError
from serving.files import read_json, require, sha256_of_file

__all__ = ["READY", "SPLITS", "is_split", "path_of_split"]

READY = Path("data/ready")
"""Below the working folder, where `ferry preprocess` writes."""
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
NAME = re.compile(r"[A-Za-z0-9][\w-]*:\w+")


def is_split(name: str) -> bool:
    """Whether a name that is no file's is meant as a data set's split."""
    return NAME.fullmatch(name) is not None


def path_of_split(name: str) -> Path:
    """The rows of a split, a `.npy` file whose bytes are the recorded ones.

    Raises UnknownNameError for another split, MissingInputError for a data set that is not
    preprocessed, and IntegrityError for a file that was altered.
    """
    dataset, _, split = name.partition(":")
    if split not in SPLITS:
        raise UnknownNameError(f"split of {dataset}", split, SPLITS)
    command = f"ferry preprocess {dataset}"
    path = require(READY / dataset / f"{split}_inputs.npy", command)
    manifest = require(READY / dataset / MANIFEST, command)
    recorded = _recorded(manifest, path.name)
    found = sha256_of_file(path)
    if found != recorded:
        raise IntegrityError(
            f"{path} has sha256 {found[:12]}…, {recorded[:12]}… was recorded; "
            f"`{command}` makes it anew"
        )
    return path


def _recorded(manifest: Path, name: str) -> str:
    """The sha256 of a file."""
    try:
        return str(read_json(manifest)["arrays"][name]["sha256"])
    except (KeyError, TypeError) as error:
        raise IntegrityError(
            f"{manifest} does not tell of {name}; `ferry preprocess {manifest.parent.name}` "
            f"makes it anew"
        ) from error
