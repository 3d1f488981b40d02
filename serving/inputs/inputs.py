"""Turn the inputs of `ferry predict` into one ordered stream of rows, cut into chunks.

Images, folders and tars of them, arrays, lines of text and tables, told apart by their names, on
this machine or at addresses.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import UsageError
from serving.inputs.items import Chunk, Row, Source, Unreadable, items_of
from serving.inputs.kinds import ReadOptions, Target, kind_of
from serving.inputs.names import COLUMN_SUFFIXES, STDIN, expanded, file_name, is_address
from serving.model import Model


@dataclass(frozen=True, slots=True)
class Place:
    """Where to go on."""

    source: int
    row: int
    """Of the source, unreadable ones counted."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of a run, in order."""

    sources: tuple[Source, ...]

    @property
    def count(self) -> int | None:
        """The number of all rows, or None where only reading them all would tell."""
        total = 0
        for source in self.sources:
            if source.count is None:
                return None
            total += source.count
        return total

    def __iter__(self) -> Iterator[Row | Unreadable]:
        for source in self.sources:
            yield from items_of(source)

    def fingerprint(self) -> str | None:
        """What changes when any of them does; None when one is a stream that is read once."""
        digest = hashlib.sha256()
        for source in self.sources:
            found = source.fingerprint()
            if found is None:
                return None
            digest.update(found.encode())
        return digest.hexdigest()

    def chunks(self, size: int, at: Place = Place(0, 0)) -> Iterator[tuple[int, Chunk]]:
        """The chunks from a place on, each with the index of its source.

        Raises InputError for a file that turns out to be broken.
        """
        for number in range(at.source, len(self.sources)):
            start = at.row if number == at.source else 0
            for chunk in self.sources[number].chunks(size, start):
                yield number, chunk


def open_inputs(
    paths: Sequence[Path | str], model: Model, options: ReadOptions | None = None
) -> Inputs:
    """Look at every input, and return the stream of their rows.

    An input is a path, an address, a pattern of these, a data set's split such as "mnist:test", or
    "-" for stdin. Raises MissingInputError for one that is not there, InputError for one that holds
    nothing the model takes, UnknownNameError for a split or a format that is none, and UsageError
    for options that no input has a use for. A file at an address is looked into when it is fetched.
    """
    options = options or ReadOptions()
    to = Target(model.input, model.path)
    names = [name for path in paths for name in expanded(str(path))]
    _refuse_unused(names, model, options)
    sources: list[Source] = []
    for kind, group in itertools.groupby(names, kind_of):
        found = list(group)
        together = [found] if kind.joined else [[name] for name in found]
        sources += [kind.open(some, to, options) for some in together]
    return Inputs(tuple(sources))


def _refuse_unused(names: Sequence[str], model: Model, options: ReadOptions) -> None:
    """Raise UsageError for what fits none of the inputs, and for stdin twice."""
    if names.count(STDIN) > 1:
        raise UsageError(f"{STDIN} is stdin, which can be read once only")
    if options.input_format and STDIN not in names:
        raise UsageError(f"--input-format is for stdin; no input is {STDIN}")
    forms = [Path(file_name(name) if is_address(name) else name).suffix.lower() for name in names]
    if options.columns and STDIN in names:
        from serving.inputs.stdin import format_of_stdin

        forms.append(f".{format_of_stdin(model.input, model.path, options.input_format)}")
    if options.columns and not set(forms) & set(COLUMN_SUFFIXES):
        raise UsageError(f"--column is for {', '.join(COLUMN_SUFFIXES)}; no input is one of these")
