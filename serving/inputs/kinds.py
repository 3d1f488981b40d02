"""Which reader opens an input: told by its name, and imported when there is one for it.

A run of one array does not wait for the decoders of images, nor one of images for Arrow.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InputError, MissingInputError
from serving.inputs.items import Source
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
    file_name,
    is_address,
    is_idx,
    is_tar,
)
from serving.runtime.tensors import TensorInfo


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
    """One of `serving.inputs.stdin.INPUT_FORMATS`; None for what the model takes."""


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
    open: Callable[[Sequence[str], Target, ReadOptions], Source]
    joined: bool = False
    """Whether several in a row are one source, so that its chunks are full."""


def kind_of(name: str) -> Kind:
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


def _kind_of_address(address: str) -> Kind:
    """The same of an address, without a look at what is there."""
    path = Path(file_name(address))
    if any(kind.fits(path) for kind in FETCHED):
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


def _has(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes


def _images(names: Sequence[str], to: Target, how: ReadOptions) -> Source:
    from serving.inputs.images import open_images

    return open_images(list(map(Path, names)), to.input, to.path, resize=how.resize)


def _tars(names: Sequence[str], to: Target, how: ReadOptions) -> Source:
    from serving.inputs.tars import open_tars

    return open_tars(list(map(Path, names)), to.input, to.path, resize=how.resize)


def _list(names: Sequence[str], to: Target, how: ReadOptions) -> Source:
    from serving.inputs.images import open_image_list

    return open_image_list(Path(names[0]), to.input, to.path, resize=how.resize)


def _array(names: Sequence[str], to: Target, how: ReadOptions) -> Source:
    from serving.inputs.arrays import open_array_rows

    return open_array_rows(Path(names[0]), to.input, to.path, how.array)


def _idx(names: Sequence[str], to: Target, _how: ReadOptions) -> Source:
    from serving.inputs.packed import open_idx

    return open_idx(Path(names[0]), to.input, to.path)


def _lines(names: Sequence[str], to: Target, _how: ReadOptions) -> Source:
    from serving.inputs.lines import open_lines

    return open_lines(Path(names[0]), to.input, to.path)


def _table(names: Sequence[str], to: Target, how: ReadOptions) -> Source:
    from serving.inputs.tables import open_table

    return open_table(Path(names[0]), to.input, to.path, how.columns, resize=how.resize)


def _stdin(_names: Sequence[str], to: Target, how: ReadOptions) -> Source:
    from serving.inputs.stdin import format_of_stdin, open_stdin

    form = format_of_stdin(to.input, to.path, how.input_format)
    return open_stdin(form, to.input, to.path, how.columns, resize=how.resize)


def _remote_images(names: Sequence[str], to: Target, how: ReadOptions) -> Source:
    from serving.inputs.fetched import open_remote_images

    return open_remote_images(names, to.input, to.path, resize=how.resize)


def _remote_file(names: Sequence[str], to: Target, how: ReadOptions) -> Source:
    from serving.inputs.fetched import open_fetched

    path = Path(file_name(names[0]))
    images = to.input.dtype == "uint8" and len(to.input.shape) == 4
    return open_fetched(
        names[0],
        functools.partial(_open_fetched, to, how),
        slow=is_tar(path) or (images and path.suffix.lower() in ARROW_SUFFIXES),
    )


def _open_fetched(to: Target, how: ReadOptions, path: Path) -> Source:
    """The rows of a file that was fetched to `path`, as those of one that was there before."""
    kind = next(kind for kind in FETCHED if kind.fits(path))
    return kind.open([str(path)], to, how)


FETCHED = (
    Kind(is_tar, _tars, joined=True),
    Kind(_has(*ARRAY_SUFFIXES), _array),
    Kind(is_idx, _idx),
    Kind(_has(TEXT_SUFFIX), _lines),
    Kind(_has(*COLUMN_SUFFIXES), _table),
)
"""What is fetched as a whole; a list names paths, which an address may not lead to."""
KINDS = (
    Kind(lambda path: path.is_dir() or _has(*IMAGE_SUFFIXES)(path), _images, joined=True),
    Kind(_has(*LIST_SUFFIXES), _list),
    *FETCHED,
)
STREAM = Kind(lambda _path: False, _stdin)
REMOTE_IMAGES = Kind(lambda _path: False, _remote_images, joined=True)
REMOTE_FILE = Kind(lambda _path: False, _remote_file)
