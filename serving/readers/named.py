"""What the names of inputs stand for: files, folders, patterns of these, splits, and stdin."""

import glob
import re
from pathlib import Path

from serving.errors import InputError
from serving.readers.splits import is_split, path_of_split
from serving.readers.stdin import STDIN

__all__ = ["expanded"]

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
MAGIC = re.compile(r"[*?[]")


def expanded(name: str) -> list[str]:
    """The paths that `name` stands for, sorted; itself for one that needs no explaining.

    Raises InputError for a pattern that nothing matches and for an address, and what
    `path_of_split` raises.
    """
    address = ADDRESS.match(name)
    if address:
        # Whatever opens addresses goes by the scheme, here.
        raise InputError(f"{name}: {address[1]}:// cannot be read; fetch the files, or mount them")
    if name == STDIN or Path(name).exists():
        return [name]
    if MAGIC.search(name):
        return _matching(name)
    if is_split(name):
        return [str(path_of_split(name))]
    return [name]


def _matching(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path's takes hidden files
    if "**" in pattern:
        # It finds folders, and what is in them once more.
        found = [path for path in found if not Path(path).is_dir()]
    if not found:
        raise InputError(f"no input matches {pattern!r}")
    return found
