"""Find the modules of a folder by name: `datasets/mnist.py` is the data set `mnist`.

The file name is the key, so adding a data set or an architecture is adding one file.
"""

import importlib
from pathlib import Path
from types import ModuleType

from pipeline.errors import UnknownNameError

__all__ = ["load", "names"]


def names(package: Path) -> tuple[str, ...]:
    """The public modules of a package's folder, sorted, found without importing any of them."""
    return tuple(sorted(path.stem for path in package.glob("*.py") if path.stem[0] != "_"))


def load(kind: str, package: str, folder: Path, name: str) -> ModuleType:
    """Import `package.name`; UnknownNameError with the nearest name if there is no such file."""
    if name not in names(folder):
        raise UnknownNameError(kind, name, names(folder))
    return importlib.import_module(f"{package}.{name}")
