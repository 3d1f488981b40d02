"""Run code that is not ferry's: the function that `--module` names, and the module it returns.

The function is found by its import path, `package.file:function`; the folder that ferry works in is
importable, as it is for `python -m`. What such code raises becomes one line that says what was
being done, and what it prints goes to stderr, for stdout carries data only.
"""

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from serving.errors import FerryError, ModelError, UnknownNameError, UsageError

ANSI = re.compile(r"\x1b\[[0-9;]*m")
LONGEST = 300


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


@contextlib.contextmanager
def running(doing: str) -> Iterator[None]:
    """Turn what a block raises into a ModelError that begins with `doing`."""
    raised: BaseException | None = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except FerryError:
        raise
    # A script without a main guard leaves by SystemExit while it is imported.
    except (Exception, SystemExit) as error:  # noqa: BLE001 - this code may raise what it likes
        raised = error
    if raised is not None:
        raise ModelError(f"{doing}: {type(raised).__name__}: {first_line(raised)}") from raised


def causes(error: BaseException) -> list[BaseException]:
    """An exception and those it came from, the deepest last."""
    chain: list[BaseException] = []
    deeper: BaseException | None = error
    while deeper is not None and deeper not in chain:
        chain.append(deeper)
        deeper = deeper.__cause__
    return chain


def first_line(error: BaseException) -> str:
    """What an exception says, in one line of bounded length and without colours."""
    lines = [line.strip() for line in ANSI.sub("", str(error)).splitlines() if line.strip()]
    text = lines[0] if lines else "without a message"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
