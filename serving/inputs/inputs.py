"""The inputs of `ferry predict` as one ordered stream of rows, cut into chunks.

An input is a path, an address, a pattern of these, a data set's split, or stdin. Its name tells its
format, and the format's reader is imported only when an input needs it: a run of one array does not
wait for the decoders of images, nor one of images for Arrow.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InputError, MissingInputError, UnknownNameError, UsageError
from serving.inputs.names import (
    ARRAY_SUFFIXES,
    ARROW_SUFFIXES,
    COLUMN_SUFFIXES,
    IDX_NAMES,
    IMAGE_SUFFIXES,
    LIST_SUFFIXES,
    STDIN,
    TAR_SUFFIXES,
    TEXT_SUFFIX,
    expand,
    file_name,
    is_address,
    is_idx,
    is_pattern,
    is_tar,
)
from serving.inputs.sources import Chunk, InputRow, RowSource, UnreadableRow, each_row
from serving.model import Model
from serving.runtime.tensors import TensorInfo

INPUT_FORMATS = ("list", "text", "csv", "jsonl", "arrow", "npy")
"""Of stdin: paths of images and texts, one a line; tables; and an array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How inputs are read."""

    array: str | None = None
    """The array to take from `.npz` files."""
    columns: tuple[str, ...] = ()
    """The columns to take from tables; none for those that fit."""
    resize: bool = False
    """Whether images are fitted to the model in size and mode."""
    input_format: str | None = None
    """One of INPUT_FORMATS for stdin; None for what the model takes."""


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
        total = 0
        for source in self.sources:
            if source.count is None:
                return None
            total += source.count
        return total

    def __iter__(self) -> Iterator[InputRow | UnreadableRow]:
        for source in self.sources:
            yield from each_row(source)

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
    target = ReadTarget(model.input, model.path)
    names = [name for path in paths for name in _expanded(str(path))]
    _refuse_unused(names, target, options)
    sources: list[RowSource] = []
    for form, group in itertools.groupby(names, _format_of):
        found = list(group)
        together = [found] if form.joined else [[name] for name in found]
        sources += [form.open(some, target, options) for some in together]
    return Inputs(tuple(sources))


def _expanded(name: str) -> list[str]:
    """The paths or addresses that a name stands for."""
    # A listing of images tells their sizes too, so that whoever opens them looks.
    if is_address(name) and is_pattern(name) and not name.lower().endswith(IMAGE_SUFFIXES):
        from serving.inputs.remote import matching

        return matching(name)
    return expand(name)


# Formats


@dataclass(frozen=True, slots=True)
class ReadTarget:
    """What the readers ask of a model; it can be sent to other processes."""

    input: TensorInfo
    path: Path


@dataclass(frozen=True, slots=True)
class InputFormat:
    """A format of inputs, and what opens it."""

    fits: Callable[[Path], bool]
    """Whether a file or a folder has it, by its name."""
    open: Callable[[Sequence[str], ReadTarget, ReadOptions], RowSource]
    joined: bool = False
    """Whether several in a row are one source, so that its chunks are full."""


def _format_of(name: str) -> InputFormat:
    """The format of an input; MissingInputError and InputError for what has none."""
    if name == STDIN:
        return STDIN_FORMAT
    if is_address(name):
        return _format_at_address(name)
    path = Path(name)
    if not path.exists():
        raise MissingInputError(f"{path} is not there")
    for form in LOCAL_FORMATS:
        if form.fits(path):
            return form
    raise _unknown(name, path.suffix, LIST_SUFFIXES)


def _format_at_address(address: str) -> InputFormat:
    """The same of an address, without a look at what is there."""
    path = Path(file_name(address))
    if any(form.fits(path) for form in FILE_FORMATS):
        return REMOTE_FILE
    if path.suffix.lower() in IMAGE_SUFFIXES or not path.suffix:
        return REMOTE_IMAGES
    raise _unknown(address, path.suffix, ())


def _unknown(name: str, suffix: str, more: Sequence[str]) -> InputError:
    known = (TEXT_SUFFIX, *COLUMN_SUFFIXES, *ARRAY_SUFFIXES, *IMAGE_SUFFIXES, *TAR_SUFFIXES)
    return InputError(
        f"{name}: unknown suffix {suffix.lower()!r}; give a folder of images, or "
        f"{', '.join((*known, *more, *IDX_NAMES))}"
    )


def _refuse_unused(names: Sequence[str], target: ReadTarget, options: ReadOptions) -> None:
    """Raise UsageError for options that fit none of the inputs, and for stdin twice."""
    if names.count(STDIN) > 1:
        raise UsageError(f"{STDIN} is stdin, which can be read once only")
    if options.input_format and STDIN not in names:
        raise UsageError(f"--input-format is for stdin; no input is {STDIN}")
    suffixes = [Path(file_name(name) if is_address(name) else name).suffix for name in names]
    forms = {suffix.lower() for suffix in suffixes}
    if options.columns and STDIN in names:
        forms.add(f".{_stdin_format(target, options)}")
    if options.columns and not forms & set(COLUMN_SUFFIXES):
        raise UsageError(f"--column is for {', '.join(COLUMN_SUFFIXES)}; no input is one of these")


def _has(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes


def _images(names: Sequence[str], to: ReadTarget, how: ReadOptions) -> RowSource:
    from serving.inputs.images import open_images

    return open_images(list(map(Path, names)), to.input, to.path, resize=how.resize)


def _tars(names: Sequence[str], to: ReadTarget, how: ReadOptions) -> RowSource:
    from serving.inputs.tars import open_tars

    return open_tars(list(map(Path, names)), to.input, to.path, resize=how.resize)


def _list(names: Sequence[str], to: ReadTarget, how: ReadOptions) -> RowSource:
    from serving.inputs.images import open_image_list

    return open_image_list(Path(names[0]), to.input, to.path, resize=how.resize)


def _array(names: Sequence[str], to: ReadTarget, how: ReadOptions) -> RowSource:
    from serving.inputs.arrays import open_array_rows

    return open_array_rows(Path(names[0]), to.input, to.path, how.array)


def _idx(names: Sequence[str], to: ReadTarget, _how: ReadOptions) -> RowSource:
    from serving.inputs.arrays import open_idx

    return open_idx(Path(names[0]), to.input, to.path)


def _text(names: Sequence[str], to: ReadTarget, _how: ReadOptions) -> RowSource:
    from serving.inputs.text import open_lines

    return open_lines(Path(names[0]), to.input, to.path)


def _table(names: Sequence[str], to: ReadTarget, how: ReadOptions) -> RowSource:
    from serving.inputs.tables import open_table

    return open_table(Path(names[0]), to.input, to.path, how.columns, resize=how.resize)


def _stdin(_names: Sequence[str], to: ReadTarget, how: ReadOptions) -> RowSource:
    """The rows of stdin; no more is read yet than the names of columns, or an array's header."""
    form = _stdin_format(to, how)
    if form in ("csv", "jsonl"):
        from serving.inputs.tables import open_table_of_lines

        return open_table_of_lines(None, to.input, to.path, how.columns, form=form)
    if form == "arrow":
        from serving.inputs.arrow import open_arrow

        return open_arrow(None, to.input, to.path, how.columns, resize=how.resize)
    if form == "npy":
        from serving.inputs.arrays import open_array_stream

        return open_array_stream(to.input, to.path)
    if form == "text":
        from serving.inputs.text import open_lines

        return open_lines(None, to.input, to.path)
    from serving.inputs.images import open_image_list

    return open_image_list(None, to.input, to.path, resize=how.resize)


def _stdin_format(to: ReadTarget, how: ReadOptions) -> str:
    """What stdin holds: what was asked for, or paths of images, texts or rows of numbers.

    Raises UnknownNameError for a format that is none, and InputError where the model's input does
    not tell it.
    """
    if how.input_format is not None:
        if how.input_format not in INPUT_FORMATS:
            raise UnknownNameError("input format", how.input_format, INPUT_FORMATS)
        return how.input_format
    from serving.inputs.columns import takes_numbers
    from serving.inputs.text import row_shape_of_texts

    if row_shape_of_texts(to.input) is not None:
        return "text"
    if takes_numbers(to.input):
        return "csv"
    from serving.inputs.decoding import image_shape

    if image_shape(to.input) is None:
        raise InputError(
            f"stdin: {to.path} takes {to.input.takes()}; say what comes, npy or arrow, with "
            f"--input-format"
        )
    return "list"


def _remote_images(names: Sequence[str], to: ReadTarget, how: ReadOptions) -> RowSource:
    from serving.inputs.remote import open_remote_images

    return open_remote_images(names, to.input, to.path, resize=how.resize)


def _remote_file(names: Sequence[str], to: ReadTarget, how: ReadOptions) -> RowSource:
    from serving.inputs.remote import open_fetched

    path = Path(file_name(names[0]))
    images = to.input.dtype == "uint8" and len(to.input.shape) == 4
    return open_fetched(
        names[0],
        functools.partial(_open_fetched, to, how),
        slow=is_tar(path) or (images and path.suffix.lower() in ARROW_SUFFIXES),
    )


def _open_fetched(to: ReadTarget, how: ReadOptions, path: Path) -> RowSource:
    """The rows of a file that was fetched to `path`, as those of one that was there before."""
    form = next(form for form in FILE_FORMATS if form.fits(path))
    return form.open([str(path)], to, how)


FILE_FORMATS = (
    InputFormat(is_tar, _tars, joined=True),
    InputFormat(_has(*ARRAY_SUFFIXES), _array),
    InputFormat(is_idx, _idx),
    InputFormat(_has(TEXT_SUFFIX), _text),
    InputFormat(_has(*COLUMN_SUFFIXES), _table),
)
"""What is fetched as a whole; a list names paths, which an address may not lead to."""
LOCAL_FORMATS = (
    InputFormat(lambda path: path.is_dir() or _has(*IMAGE_SUFFIXES)(path), _images, joined=True),
    InputFormat(_has(*LIST_SUFFIXES), _list),
    *FILE_FORMATS,
)
STDIN_FORMAT = InputFormat(lambda _path: False, _stdin)
REMOTE_IMAGES = InputFormat(lambda _path: False, _remote_images, joined=True)
REMOTE_FILE = InputFormat(lambda _path: False, _remote_file)
