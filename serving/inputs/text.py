"""Texts of a `.txt` file or of stdin, one a line, in UTF-8; an empty line is an empty text.

A line that is not UTF-8 is a row that cannot be read; the reason gives its number, counted from 1
as editors do.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from serving.errors import DamagedError, InputError
from serving.inputs.sources import Batch, Chunk, FileRows, ReadTarget
from serving.inputs.streams import Stream, chunks_of, open_stream, take
from serving.runtime.tensors import Array, TensorInfo

Item = TypeVar("Item")
MOST_LINE_BYTES = 64 << 20
"""Of a record; a file without lines would fill the memory before it is known for what it is."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLines(FileRows):
    """The lines of a file, without their ends."""

    row_shape: tuple[int, ...]
    count: None = None

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Lines as they are, `size` at a time; InputError for stdin without a line."""
        with open_stream(self.path) as stream:
            yield from chunks_of(stream, functools.partial(take, raw_lines(stream)), size, start)

    def decode(self, chunk: Chunk) -> Batch:
        """The texts of a chunk."""
        ids = self.ids(chunk.start, len(chunk.content))
        return text_batch(
            ids,
            chunk.content,
            _text,
            self.row_shape,
            place=lambda index: f"line {chunk.start + index + 1} ",
        )


def open_lines(path: Path | None, target: ReadTarget) -> TextLines:
    """The lines of a file, or of stdin for None; InputError where there are none, or none fit."""
    row_shape = row_shape_of_texts(target.input)
    if row_shape is None:
        raise InputError(
            f"{path or 'stdin'}: {target.takes()}, which no line of text is; give such rows as .npy"
        )
    rows = TextLines(path=path, row_shape=row_shape)
    if path is not None:
        next(rows.chunks(1))
    return rows


def row_shape_of_texts(info: TensorInfo) -> tuple[int, ...] | None:
    """The shape of a row that is one text, () or (1,); None for an input that takes none."""
    fits = info.is_text and all(axis == 1 for axis in info.shape[1:]) and len(info.shape) <= 2
    return (1,) * (len(info.shape) - 1) if fits else None


def raw_lines(stream: Stream) -> Iterator[bytes]:
    """The lines with their ends, without a byte order mark; DamagedError for one without end."""
    lines = stream.lines(MOST_LINE_BYTES)
    first = next(lines, b"").removeprefix(BYTE_ORDER_MARK)
    # A mark alone is no line.
    for line in itertools.chain([first] if first else [], lines):
        if len(line) == MOST_LINE_BYTES and not line.endswith(b"\n"):
            raise DamagedError(stream.name, f"has a line of more than {MOST_LINE_BYTES} bytes")
        yield line


def _text(line: bytes) -> str:
    text = decode_line(line).removesuffix("\n").removesuffix("\r")
    fault = text_fault(text)
    if fault:
        raise ValueError(fault)
    return text


def decode_line(line: bytes) -> str:
    """The text of a line; bytes that are not UTF-8 stay as lone surrogates."""
    return line.decode("utf-8", "surrogateescape")


def text_batch(
    ids: Sequence[str],
    items: Iterable[Item],
    read: Callable[[Item], str],
    row_shape: tuple[int, ...],
    *,
    place: Callable[[int], str] = lambda _index: "",
) -> Batch:
    """The texts that `read` makes of items; its ValueError is a fault that begins with `place`."""
    texts, faults = [], {}
    for index, item in enumerate(items):
        try:
            texts.append(read(item))
        except ValueError as error:
            faults[index] = f"{place(index)}{error}"
    rows: Array = np.empty(len(texts), object)  # object, as the length of a text is its own
    rows[:] = texts
    return Batch(ids=ids, rows=rows.reshape(len(texts), *row_shape), faults=faults)


def text_fault(text: str, *, nul: bool = False) -> str | None:
    """Why a decoded text cannot be fed, or None; with `nul` a NUL is a character as any other."""
    if "\0" in text and not nul:
        return "holds a NUL byte; it is not UTF-8 text"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        return f"is not UTF-8: byte 0x{byte:02x} after {error.start} characters"
    return None
