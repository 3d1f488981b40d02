"""The exceptions of ferry; every one is a `FerryError` and carries the exit status of its command.

    FerryError                                   exit 1
    ├── InputError          (ValueError)         a file or a row that cannot be used
    │   └── DamagedError                         a file that is empty, or cannot be read to its end
    ├── MissingInputError   (FileNotFoundError)  a file that another command makes
    ├── IntegrityError      (ValueError)         bytes that are not the ones that were recorded
    ├── ModelError          (ValueError)         an ONNX file that cannot be run
    ├── ProviderError       (RuntimeError)       an execution provider that is not there
    ├── EngineError         (RuntimeError)       a cluster, or its processes, that cannot be had
    ├── OutputError         (FileExistsError)    an output that is there and is of something else
    ├── SlowerError         (RuntimeError)       a model that has become slower than it may
    ├── UsageError          (ValueError)         exit 2: arguments that make no sense together
    └── UnknownNameError    (LookupError)        exit 2: no such experiment, data set, model, ...

`pipeline.errors` adds those of the stages to the same tree.

Addresses may hold a password or a signature. `redacted` takes them out of all that is shown or
kept: what these errors say, what is logged or printed, and every record that is written. What
others wrote may hold characters that a terminal obeys, or that turn a line around: `for_terminal`
makes them escapes that can be seen, in all that is shown.
"""

import re
from collections.abc import Iterable

MOST_NAMES, MOST_NAME = 100, 200
"""How many names a message lists, and the characters of one."""
MOST_COMPARED = 1000
MOST_MESSAGE = 30_000
"""The characters of one message: a name in a model may have millions."""
REDACTED = "***"
"""What stands for a secret."""
# An address that was made a path has one slash. A port is no password. A password with a slash is
# none by the standard, but to whoever typed it.
PASSWORD = re.compile(
    r"(:/{1,2}[^\s/?#:@\[\"'<>]*:)(?:[^\s/?#\"'<>]*@|(?!\d*[/?#])[^\s\\\"'<>]{0,200}?@)"
)
TOKEN_AS_USER = re.compile(r"(://)[^\s/?#:@\"'<>]+@")
# An address that is a parameter of another one is percent-encoded. What may stand in between is
# bounded, so that no text takes long.
ENCODED_USER = re.compile(r"(%3A%2F%2F)[^\s/?#&\"'<>]{1,300}?%40", re.IGNORECASE)
SIGNATURE = re.compile(
    r"((?:[?&;#]|%3F|%26|%23)[\w.%-]{0,60}?(?:signature|credential|token|secret|passw(?:or)?d|pwd"
    r"|jwt|api(?:[_-]|%2D|%5F)?key|accesskeyid|accountkey"
    r"|(?:(?<=[?&;#])|(?<=%3F|%26|%23))(?:sig|sas|auth|authorization|key(?=(?:=|%3D)AIza)))"
    r"(?:=|%3D))[^\s&#\"'<>\\)\]}]*[^\s&#\"'<>\\)\]};:,.]",
    re.IGNORECASE,
)
# The header of a request that says who asks.
WHO_ASKS = re.compile(
    r"(\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)"
    r"(?:AWS4-[^\n\"']*|(?:[\w-]+ +)?[^\s\"',;}\]]+)",
    re.IGNORECASE,
)
# What a terminal obeys or cannot show: controls but for the tab and the end of a line, marks of the
# direction of writing, and halves of characters.
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def for_terminal(text: str) -> str:
    """The text without secrets, and with an escape for all that a terminal would obey."""
    text = redacted(text)
    return text if text.isprintable() else UNSEEN.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """The same, with the ends of its lines as escapes too, and the beginning of what is endless."""
    line = for_terminal(text).replace("\n", "\\n")
    return line if len(line) <= MOST_MESSAGE else f"{line[:MOST_MESSAGE]}..."


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def redacted(text: str) -> str:
    """The text with `***` for every password, token and signature of an address in it.

    An address that was redacted can be redacted again, and JSON stays JSON.
    """
    if ":/" in text and "@" in text:
        text = PASSWORD.sub(rf"\1{REDACTED}@", text)
        text = TOKEN_AS_USER.sub(rf"\1{REDACTED}@", text)
    if "%40" in text:
        text = ENCODED_USER.sub(rf"\1{REDACTED}%40", text)
    if "uthoriz" in text.lower():
        text = WHO_ASKS.sub(rf"\1{REDACTED}", text)
    return SIGNATURE.sub(rf"\1{REDACTED}", text) if "=" in text or "%3" in text else text


class FerryError(Exception):
    """Base of everything ferry raises on purpose; the message is one line for a person."""

    exit_code = 1

    def __str__(self) -> str:
        return on_one_line(super().__str__())


class InputError(FerryError, ValueError):
    """A file or a row that was read and cannot be used; the message says what was expected."""


class DamagedError(InputError):
    """A file that is empty, or cannot be read to its end; what is before that can be used."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return on_one_line(f"{self.name} {self.reason}")


class MissingInputError(FerryError, FileNotFoundError):
    """A file that is not there; the message names the command that makes it."""


class IntegrityError(FerryError, ValueError):
    """Bytes whose sha256, size or form is not the recorded one."""


class ModelError(FerryError, ValueError):
    """An ONNX file that cannot be loaded or run."""


class ProviderError(FerryError, RuntimeError):
    """An execution provider that was asked for and does not run the model."""


class EngineError(FerryError, RuntimeError):
    """A cluster, or processes of this machine, that cannot be had or have died."""


class OutputError(FerryError, FileExistsError):
    """An output that is there already and is of something else, or that cannot be there."""


class SlowerError(FerryError, RuntimeError):
    """A model that takes longer than what it was compared with, beyond the limit and the noise."""


class UsageError(FerryError, ValueError):
    """Arguments that make no sense together."""

    exit_code = 2


class UnknownNameError(FerryError, LookupError):
    """A name that does not exist; the message offers the nearest one that does."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        tail = f"; {hint}" if hint else ""
        super().__init__(f"no {kind} named {name!r}{nearest(name, known)}{tail}")


def one_line(error: Exception, most: int | None = None) -> str:
    """What an error says, on one line of at most `most` characters; its type if it says nothing."""
    return for_terminal(" ".join(str(error).split()))[:most] or type(error).__name__


def not_utf8(text: bytes) -> str:
    """The tail of an error message about what should be a text in UTF-8."""
    return f"holds text that is not UTF-8: {text[:60]!r}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: `; did you mean 'mnist'?`, or the names there are."""
    import difflib

    names = sorted(known)
    close = difflib.get_close_matches(name[:MOST_NAME], names[:MOST_COMPARED], n=1)
    if close:
        return f"; did you mean {listed(map(repr, close))}?"
    return f"; there are {listed(names)}" if names else "; there are none"


def listed(names: Iterable[str]) -> str:
    """Names for an error message: the first ones, and the beginning of long ones."""
    found = list(names)
    shown = (
        one if len(one) <= MOST_NAME else f"{one[:MOST_NAME]}..." for one in found[:MOST_NAMES]
    )
    more = f" and {len(found) - MOST_NAMES:,} more" if len(found) > MOST_NAMES else ""
    return f"{', '.join(shown)}{more}"
