"""The exceptions of the stages; they hang in the tree that `serving.errors` draws.

FerryError                                   exit 1
├── ...                                      see serving.errors
├── ConfigError         (ValueError)         exit 2: params.yaml, by the key's full path
├── DownloadError       (ConnectionError)    no address had the file
├── TargetError         (ValueError)         a model that a target cannot take
├── DivergedError       (ArithmeticError)    a loss that is not a number
└── GateError           (ValueError)         a gate that was not met
    └── ParityError                          an ONNX variant that is not the trained model

What a user's own code raises becomes one of them as well, in one line.
"""

import contextlib
import re
import sys
from collections.abc import Iterator

from serving.errors import FerryError, ModelError, for_terminal

ANSI = re.compile(r"\x1b\[[0-9;]*m")
LONGEST = 300
"""Characters of what somebody's exception says."""


class ConfigError(FerryError, ValueError):
    """A key of params.yaml that is unknown, missing, mistyped or out of range."""

    exit_code = 2


class DownloadError(FerryError, ConnectionError):
    """No address had the file; the message names them all and the ways out."""


class TargetError(FerryError, ValueError):
    """A model that a target cannot take: an operator that it lacks, or too large for it."""


class DivergedError(FerryError, ArithmeticError):
    """A training loss that is not a number; the message names epoch, step and learning rate."""


class GateError(FerryError, ValueError):
    """A measured value outside its limit."""


class ParityError(GateError):
    """An ONNX variant that does not answer as the trained weights do."""


@contextlib.contextmanager
def running(doing: str, kind: type[FerryError] = ModelError) -> Iterator[None]:
    """Turn what a user's own code raises in a block into one line that begins with `doing`."""
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
        raise kind(f"{doing}: {type(raised).__name__}: {first_line(raised)}") from raised


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
    lines = [
        line.strip() for line in for_terminal(ANSI.sub("", str(error))).split("\n") if line.strip()
    ]
    text = lines[0] if lines else "without a message"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
