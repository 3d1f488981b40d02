"""The inputs of `ferry predict` as one ordered stream of rows, cut into chunks.

An input is a path, an address, a pattern of these, a data set's split, or stdin. Its name tells its
format, and the format's reader is imported only when an input needs it: a run of one array does not
wait for the decoders of images, nor one of images for Arrow.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.errors import (
    DamagedError,
    InputError,
    MissingInputError,
    UnknownNameError,
    UsageError,
)
from serving.files import sha256_of_bytes
from serving.inputs.names import (
    ARRAY_SUFFIXES,
    COLUMN_SUFFIXES,
    IMAGE_SUFFIXES,
    LIST_SUFFIX,
    NO_DATA,
    STDIN,
    TAR_SUFFIXES,
    TEXT_SUFFIX,
    expand,
    file_name,
    files_of,
    format_of_file,
    is_address,
    is_image,
    is_pattern,
)
from serving.inputs.sources import (
    REST,
    Batch,
    Chunk,
    InputRow,
    LeftOut,
    Lost,
    NumberedIds,
    ReadOptions,
    ReadTarget,
    RowSource,
    UnreadableRow,
    rows_of,
)
from serving.model import Model
from serving.runtime.tensors import FLOATS

STDIN_FORMATS = ("list", "text", "csv", "jsonl", "arrow", "npy")
"""Of stdin: paths of images and texts, one a line; tables; and an array."""
TABLES = {"csv", "jsonl", "arrow"}
LEFT_OUT = "no table"
"""Of a file beside tables."""
PREVIEW_ROWS = 64
"""Rows of a chunk that one looks at."""
REMOTE_IMAGES, REMOTE_FILE = "images at addresses", "file at an address"
JOINED = {"images", "tar", REMOTE_IMAGES}
"""The formats of which several inputs in a row are one source, so that its chunks are full."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to go on."""

    source: int
    row: int
    """Of the source, unreadable ones counted."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of a run, in order."""

    sources: tuple[RowSource, ...]

    @property
    def count(self) -> int | None:
        """The number of all rows, or None where only reading them all would tell."""
        counts = [source.count for source in self.sources]
        return None if None in counts else sum(filter(None, counts))

    def __iter__(self) -> Iterator[InputRow | UnreadableRow]:
        for number, chunk in self.chunks(PREVIEW_ROWS):
            yield from rows_of(self.decode(number, chunk))

    def fingerprint(self) -> str | None:
        """What changes when any of them does; None when one is a stream that is read once."""
        found = [source.fingerprint() for source in self.sources]
        return None if None in found else sha256_of_bytes("".join(filter(None, found)).encode())

    def chunks(self, size: int, at: Place = Place(0, 0)) -> Iterator[tuple[int, Chunk]]:
        """The chunks from a place on, each with the index of its source.

        The last chunk of a source that is damaged holds what is `Lost` of it; a stream, whose
        writer may have died, raises instead.
        """
        for number in range(at.source, len(self.sources)):
            start = at.row if number == at.source else 0
            source = self.sources[number]
            try:
                for chunk in source.chunks(size, start):
                    yield number, chunk
                    start = chunk.start + chunk.count
            except DamagedError as error:
                if source.fingerprint() is None:
                    raise
                lost = Lost(f"{error.name}:{start}", error.reason + REST)
                yield number, Chunk(start=start, count=1, content=lost)

    def decode(self, number: int, chunk: Chunk) -> Batch:
        """The rows of a chunk of the source `number`; what is lost, or damaged, is unreadable."""
        if isinstance(chunk.content, Lost):
            lost = chunk.content
            return Batch(ids=[lost.id], rows=np.empty(0), faults={0: lost.reason})
        try:
            return self.sources[number].decode(chunk).first(chunk.count)
        except DamagedError as error:
            faults = dict.fromkeys(range(chunk.count), error.reason)
            ids = NumberedIds(error.name, chunk.start, chunk.count)
            return Batch(ids=ids, rows=np.empty(0), faults=faults)

    def after(self, number: int, chunk: Chunk) -> Place:
        """Where to go on after a chunk of the source `number`."""
        if isinstance(chunk.content, Lost):
            return Place(number + 1, 0)
        return Place(number, chunk.start + chunk.count)


def open_inputs(
    paths: Sequence[Path | str], model: Model, options: ReadOptions | None = None
) -> Inputs:
    """Look at every input, and return the stream of their rows.

    An input is a path, an address, a pattern of these, a data set's split such as "mnist:test", or
    "-" for stdin. Raises MissingInputError for one that is not there, InputError for one that holds
    nothing the model takes, UnknownNameError for a split or a format that is none, and UsageError
    for options that no input has a use for. A file at an address is looked into when it is fetched.
    """
    target = ReadTarget(model.input, model.path, options or ReadOptions(), model.features)
    names = [name for path in paths for name in _expanded(str(path))]
    pairs = [pair for name in names for pair in _formats_of(name)]
    _refuse_unused(pairs, target)
    sources: list[RowSource] = []
    for form, group in itertools.groupby(pairs, lambda pair: pair[0]):
        found = [name for _, name in group]
        together = [found] if form in JOINED else [[name] for name in found]
        sources += [_opened(form, some, target, alone=len(pairs) == 1) for some in together]
    return Inputs(tuple(sources))


def _opened(form: str, names: Sequence[str], target: ReadTarget, *, alone: bool) -> RowSource:
    """The rows of some inputs; one that is damaged does not stop the others."""
    try:
        if form not in {STDIN, LEFT_OUT, REMOTE_FILE, *JOINED}:
            _refuse_special(names[0])
        return open_source(form, names, target)
    except DamagedError as error:
        if alone or names[0] == STDIN:
            raise
        return LeftOut(path=Path(names[0]), reason=error.reason)


def _refuse_special(name: str) -> None:
    """DamagedError where it may take for ever to open or to read."""
    if not Path(name).is_file():
        raise DamagedError(name, "is a pipe or a device, not a file")


def _expanded(name: str) -> list[str]:
    """The paths or addresses that a name stands for."""
    # A listing of images tells their sizes too, so that whoever opens them looks.
    if is_address(name) and is_pattern(name) and not is_image(name):
        from serving.inputs.remote import matching

        return matching(name)
    return expand(name)


def _refuse_unused(pairs: Sequence[tuple[str, str]], target: ReadTarget) -> None:
    """Raise UsageError for options that fit none of the inputs, and for stdin twice."""
    stdins = sum(form == STDIN for form, _ in pairs)
    if stdins > 1:
        raise UsageError(f"{STDIN} is stdin, which can be read once only")
    if target.options.input_format and not stdins:
        raise UsageError(f"--input-format is for stdin; no input is {STDIN}")
    forms = {
        _stdin_format(target) if form == STDIN else _format_by_name(name) for form, name in pairs
    }
    options = target.options
    for flag, given, takes, what in (
        ("--column", options.columns, TABLES, ", ".join(COLUMN_SUFFIXES)),
        ("--delimiter", options.delimiter, {"csv"}, "CSV"),
        ("--decimal", options.decimal, {"csv"}, "CSV"),
        ("--cast", options.cast, {"npy"}, "arrays, .npy and .npz"),
        ("--null", options.null, {"list"}, "lists of paths, .lst or stdin"),
    ):
        if given and not forms & takes:
            raise UsageError(f"{flag} is for {what}; no input is one of these")
    if options.missing == "nan" and target.input.dtype not in FLOATS:
        raise UsageError(f"--missing nan is for models of floats; {target.takes()}")


# Formats


def _formats_of(name: str) -> list[tuple[str, str]]:
    """An input with its format; in place of a folder of tables the files in it, with theirs."""
    form = _format_of(name)
    if form != "images" or not Path(name).is_dir():
        return [(form, name)]
    with contextlib.suppress(OSError), os.scandir(name) as entries:
        # Most folders say at once what they are, however many files they hold.
        if any(is_image(entry.name) and not NO_DATA.match(entry.name) for entry in entries):
            return [(form, name)]
    files = []
    for path in files_of(name):
        if is_image(path):
            return [(form, name)]  # tables among images are named as what they are not
        found = format_of_file(path)
        files.append((found if found in TABLES else LEFT_OUT, path))
    return files if any(found in TABLES for found, _ in files) else [(form, name)]


def _format_by_name(name: str) -> str | None:
    return format_of_file(file_name(name) if is_address(name) else Path(name).name)


def _format_of(name: str) -> str:
    """The format of an input; MissingInputError and InputError for what has none."""
    if name == STDIN:
        return STDIN
    form = _format_by_name(name)
    if is_address(name):  # without a look at what is there
        if form == "images" or (form is None and not Path(file_name(name)).suffix):
            return REMOTE_IMAGES
        # A list names paths, which an address may not lead to.
        form = None if form in (None, "list") else REMOTE_FILE
    elif not Path(name).exists():
        raise MissingInputError(f"{Path(name)} is not there")
    elif Path(name).is_dir():
        return "images"
    if form is not None:
        return form
    suffix = Path(file_name(name) if is_address(name) else name).suffix.lower()
    known = (TEXT_SUFFIX, *COLUMN_SUFFIXES, *ARRAY_SUFFIXES, *IMAGE_SUFFIXES, *TAR_SUFFIXES)
    more = () if is_address(name) else (LIST_SUFFIX,)
    raise InputError(
        f"{name}: unknown suffix {suffix!r}; give a folder of images, or "
        f"{', '.join((*known, *more))}, lines and tables as .gz or .zst, IDX files (*-ubyte, "
        f"*.idx, *.gz of these)"
    )


def _stdin_format(target: ReadTarget) -> str:
    """What stdin holds: what was asked for, else what the model's input tells."""
    asked = target.options.input_format
    if asked is not None:
        if asked not in STDIN_FORMATS:
            raise UnknownNameError("input format", asked, STDIN_FORMATS)
        return asked
    from serving.inputs.tables.columns import takes_numbers
    from serving.inputs.text import row_shape_of_texts

    if row_shape_of_texts(target.input) is not None:
        return "text"
    if takes_numbers(target.input):
        return "csv"
    from serving.inputs.decoding import image_shape

    if image_shape(target.input) is None:
        raise InputError(
            f"stdin: {target.takes()}; say what comes, npy or arrow, with --input-format"
        )
    return "list"


# Readers


def open_source(form: str, names: Sequence[str], target: ReadTarget) -> RowSource:
    """The rows of files, or of stdin, in the format `form`; of stdin only the head is read yet."""
    path = None if names[0] == STDIN else Path(names[0])
    match _stdin_format(target) if form == STDIN else form:
        case "images":
            from serving.inputs.images import open_images

            return open_images(list(map(Path, names)), target)
        case "list":
            from serving.inputs.images import open_image_list

            return open_image_list(path, target)
        case "tar":
            from serving.inputs.tars import open_tars

            return open_tars(list(map(Path, names)), target)
        case "text":
            from serving.inputs.text import open_lines

            return open_lines(path, target)
        case "csv" | "jsonl" | "arrow" as table:
            return _open_table(table, path, target)
        case "npy" | "idx":
            from serving.inputs.arrays import open_array_rows

            return open_array_rows(path, target)
    return _open_other(form, names, target)


def _open_table(form: str, path: Path | None, target: ReadTarget) -> RowSource:
    if form == "csv":
        from serving.inputs.tables.delimited import open_csv

        return open_csv(path, target)
    if form == "jsonl":
        from serving.inputs.tables.json_lines import open_json_lines

        return open_json_lines(path, target)
    from serving.inputs.tables.arrow import open_arrow

    return open_arrow(path, target)


def _open_other(form: str, names: Sequence[str], target: ReadTarget) -> RowSource:
    if form == LEFT_OUT:
        return LeftOut(path=Path(names[0]))
    from serving.inputs.remote import open_fetched, open_remote_images

    if form == REMOTE_IMAGES:
        return open_remote_images(names, target)
    form = _format_by_name(names[0]) or ""
    images = target.input.dtype == "uint8" and len(target.input.shape) == 4
    slow = form == "tar" or (form == "arrow" and images)
    opener = functools.partial(open_source, form, target=target)
    return open_fetched(names[0], opener, slow=slow)
