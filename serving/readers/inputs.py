"""Turn the inputs of `ferry predict` into one ordered stream of rows, cut into chunks.

Images, folders and tars of them, arrays, lines of text and tables, told apart by their names, on
this machine or at addresses.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InputError, MissingInputError, UsageError
from serving.model import Model
from serving.readers.arrays import ARRAY_SUFFIXES, open_array_rows
from serving.readers.fetched import open_fetched, open_remote_images
from serving.readers.formats import ARROW_SUFFIXES, COLUMN_SUFFIXES
from serving.readers.idx import IDX_NAMES, is_idx, open_idx
from serving.readers.images import IMAGE_SUFFIXES, open_images
from serving.readers.items import Chunk, Row, Source, Unreadable, items_of
from serving.readers.lines import open_lines
from serving.readers.listed import LIST_SUFFIXES, open_image_list
from serving.readers.named import expanded
from serving.readers.remote import file_name, is_address
from serving.readers.stdin import STDIN, format_of_stdin, open_stdin
from serving.readers.tables import open_table
from serving.readers.tars import TAR_SUFFIXES, is_tar, open_tars
from serving.tensors import TensorInfo

__all__ = ["Inputs", "Place", "ReadOptions", "open_inputs"]

TEXT_SUFFIX = ".txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How inputs are read."""

    array: str | None = None
    """The array of `.npz` files."""
    columns: tuple[str, ...] = ()
    """The columns of tables; none for those that fit."""
    resize: bool = False
    """Whether images are fitted to the model in size and mode."""
    input_format: str | None = None
    """One of `serving.readers.stdin.INPUT_FORMATS`; None for what the model takes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to go on."""

    source: int
    row: int
    """Of the source, unreadable ones counted."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the readers ask of a model; it can be sent to other processes."""

    input: TensorInfo
    path: Path


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of inputs."""

    fits: Callable[[Path], bool]
    """Whether a file or a folder is one of them, by its name."""
    open: Callable[[Sequence[Path], Target, ReadOptions], Source]
    joined: bool = False
    """Whether several in a row are one source, so that its chunks are full."""


@dataclass(frozen=True, slots=True)
class RemoteKind:
    """A kind of inputs at addresses."""

    open: Callable[[Sequence[str], Target, ReadOptions], Sequence[Source]]


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


def _has(suffixes: Sequence[str]) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes


KINDS = (
    Kind(
        lambda path: path.is_dir() or _has(IMAGE_SUFFIXES)(path),
        lambda paths, to, how: open_images(paths, to.input, to.path, resize=how.resize),
        joined=True,
    ),
    Kind(
        is_tar,
        lambda paths, to, how: open_tars(paths, to.input, to.path, resize=how.resize),
        joined=True,
    ),
    Kind(
        _has(LIST_SUFFIXES),
        lambda paths, to, how: open_image_list(paths[0], to.input, to.path, resize=how.resize),
    ),
    Kind(
        _has(ARRAY_SUFFIXES),
        lambda paths, to, how: open_array_rows(paths[0], to.input, to.path, how.array),
    ),
    Kind(is_idx, lambda paths, to, _how: open_idx(paths[0], to.input, to.path)),
    Kind(_has((TEXT_SUFFIX,)), lambda paths, to, _how: open_lines(paths[0], to.input, to.path)),
    Kind(
        _has(COLUMN_SUFFIXES),
        lambda paths, to, how: open_table(
            paths[0], to.input, to.path, how.columns, resize=how.resize
        ),
    ),
)
STREAM = Kind(lambda _path: False, lambda _paths, to, how: _stdin(to, how))
REMOTE_IMAGES = RemoteKind(
    lambda names, to, how: [open_remote_images(names, to.input, to.path, resize=how.resize)]
)
REMOTE_FILES = RemoteKind(lambda names, to, how: [_fetched(name, to, how) for name in names])
FILES = tuple(kind for kind in KINDS[1:] if not kind.fits(Path(f"a{LIST_SUFFIXES[0]}")))
"""What is fetched as a whole; a list names paths, which an address may not lead to."""


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
    for kind, group in itertools.groupby(names, _kind):
        if isinstance(kind, RemoteKind):
            sources += kind.open(list(group), to, options)
            continue
        found = list(map(Path, group))
        together = [found] if kind.joined else [[path] for path in found]
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
        forms.append(f".{format_of_stdin(model.input, model.path, options.input_format)}")
    if options.columns and not set(forms) & set(COLUMN_SUFFIXES):
        raise UsageError(f"--column is for {', '.join(COLUMN_SUFFIXES)}; no input is one of these")


def _kind(name: str) -> Kind | RemoteKind:
    """What an input is, by its name; MissingInputError and InputError for what is none."""
    if name == STDIN:
        return STREAM
    if is_address(name):
        return _kind_of_address(name)
    path = Path(name)
    if not path.exists():
        raise MissingInputError(f"{path} is not there")
    for kind in KINDS:
        if kind.fits(path):
            return kind
    raise _unknown(name, path.suffix, LIST_SUFFIXES)


def _kind_of_address(address: str) -> RemoteKind:
    """The same of an address, without a look at what is there."""
    path = Path(file_name(address))
    if any(kind.fits(path) for kind in FILES):
        return REMOTE_FILES
    if _has(IMAGE_SUFFIXES)(path) or not path.suffix:
        return REMOTE_IMAGES
    raise _unknown(address, path.suffix, ())


def _unknown(name: str, suffix: str, more: Sequence[str]) -> InputError:
    known = (TEXT_SUFFIX, *COLUMN_SUFFIXES, *ARRAY_SUFFIXES, *IMAGE_SUFFIXES, *TAR_SUFFIXES)
    return InputError(
        f"{name}: unknown suffix {suffix.lower()!r}; give a folder of images, or "
        f"{', '.join((*known, *more, *IDX_NAMES))}"
    )


def _fetched(address: str, to: Target, options: ReadOptions) -> Source:
    path = Path(file_name(address))
    images = to.input.dtype == "uint8" and len(to.input.shape) == 4
    return open_fetched(
        address,
        functools.partial(_open_fetched, to, options),
        slow=is_tar(path) or (images and _has(ARROW_SUFFIXES)(path)),
    )


def _open_fetched(to: Target, options: ReadOptions, path: Path) -> Source:
    """The rows of a file that was fetched to `path`, as those of one that was there before."""
    kind = next(kind for kind in FILES if kind.fits(path))
    return kind.open([path], to, options)


def _stdin(model: Target, options: ReadOptions) -> Source:
    form = format_of_stdin(model.input, model.path, options.input_format)
    return open_stdin(form, model.input, model.path, options.columns, resize=options.resize)
