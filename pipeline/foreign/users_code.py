"""Run code that is not ferry's: the function that `--module` names, and the module it returns.

Whatever such code raises becomes one line that says what was being done, and what it prints goes to
stderr, for stdout carries data only.
"""

import contextlib
import re
import sys
from collections.abc import Iterator

from pipeline.errors import FerryError, ModelError

__all__ = ["causes", "first_line", "running"]

ANSI = re.compile(r"\x1b\[[0-9;]*m")
LONGEST = 300


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
