"""Find the function that makes a module by its import path: `package.file:function`.

This imports the user's code and runs it. The folder that ferry works in is importable, as it is for
`python -m`.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch

from pipeline.errors import ModelError, UnknownNameError, UsageError
from pipeline.foreign.users_code import running

__all__ = ["load_module"]


def load_module(path: str) -> torch.nn.Module:
    """Call the function at `path`, `package.file:function`, and return its module.

    Raises UsageError for a path of another form or a file that is not there, UnknownNameError for a
    function that is not there, and ModelError for code that raises or returns no module.
    """
    file, colon, name = path.partition(":")
    if not colon or not file or not name or "/" in file or file.endswith(".py"):
        raise UsageError(
            f"--module must be an import path and a function, package.file:function, got {path!r}"
        )
    found = _imported(file)
    function = getattr(found, name, None)
    if not callable(function):
        known = [
            key for key in vars(found) if not key.startswith("_") and callable(vars(found)[key])
        ]
        raise UnknownNameError(f"function of {file}", name, known)
    with running(f"{path} failed"):
        made = function()
    if not isinstance(made, torch.nn.Module):
        raise ModelError(f"{path} must return a torch.nn.Module, it returned {type(made).__name__}")
    return made


def _imported(file: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    with running(f"importing {file} failed"):
        try:
            return importlib.import_module(file)
        except ModuleNotFoundError as error:
            # Another name is missing inside of the file, which is there.
            if not f"{file}.".startswith(f"{error.name}."):
                raise
            raise UsageError(
                f"no Python module named {file!r}, neither installed nor in {folder}"
            ) from error
