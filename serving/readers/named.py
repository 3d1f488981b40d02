"""What the names of inputs stand for: files, folders, patterns, addresses, splits, and stdin."""

import glob
import re
from pathlib import Path
from urllib.parse import unquote

from serving.errors import InputError
from serving.readers.addresses import is_address, is_pattern
from serving.readers.splits import is_split, path_of_split
from serving.readers.suffixes import IMAGE_SUFFIXES, STDIN

__all__ = ["expanded"]

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
LOCAL = re.compile(r"file://(localhost)?(?=/)")
MAGIC = re.compile(r"[*?[]")


def expanded(name: str) -> list[str]:
    """The paths or addresses that `name` stands for, sorted; itself where it needs no explaining.

    Raises InputError for a pattern that nothing matches and for an address of a kind that is not
    read, and what `path_of_split` raises.
    """
    local = LOCAL.match(name)
    if local:
        return expanded(unquote(name[local.end() :]))
    if ADDRESS.match(name):
        return _at_address(name)
    if name == STDIN or Path(name).exists():
        return [name]
    if MAGIC.search(name):
        return _matching(name)
    if is_split(name):
        return [str(path_of_split(name))]
    return [name]


def _at_address(name: str) -> list[str]:
    if not is_address(name):
        scheme = name.partition("://")[0]
        raise InputError(f"{name}: {scheme}:// cannot be read; fetch the files, or mount them")
    # A listing of images tells their sizes too, so that whoever opens them looks.
    if is_pattern(name) and not name.lower().endswith(IMAGE_SUFFIXES):
        from serving.readers.remote import matching

        return matching(name)
    return [name]


def _matching(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path's takes hidden files
    if "**" in pattern:
        # It finds folders, and what is in them once more.
        found = [path for path in found if not Path(path).is_dir()]
    if not found:
        raise InputError(f"no input matches {pattern!r}")
    return found
