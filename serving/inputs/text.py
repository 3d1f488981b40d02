"""Texts of a `.txt` file or of stdin, one a line, in UTF-8; an empty line is an empty text.

A line that is not UTF-8 is a row that cannot be read; the reason gives its number, counted from 1
as editors do.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError
from serving.inputs.sources import (
    Batch,
    Chunk,
    NumberedIds,
    Stream,
    chunks_of,
    display_name,
    fingerprint_of_files,
    open_stream,
    take,
)
from serving.runtime.tensors import TensorInfo

Array = npt.NDArray[Any]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLines:
    """The lines of a file, without their ends."""

    path: str | None
    """None for stdin, which can be read once."""
    row_shape: tuple[int, ...]
    count: None = None
    slow: bool = False

    def fingerprint(self) -> str | None:
        """The sha256 of the path, size and time of change of the file; None for stdin."""
        return None if self.path is None else fingerprint_of_files([self.path])

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Lines as they are, `size` at a time, from the one at `start` on.

        Raises InputError for stdin without a line.
        """
        with open_stream(self.path) as stream:
            yield from chunks_of(stream, functools.partial(take, raw_lines(stream)), size, start)

    def decode(self, chunk: Chunk) -> Batch:
        """The texts of a chunk."""
        texts = [decode_line(line).removesuffix("\n").removesuffix("\r") for line in chunk.content]
        faults = {}
        for index, text in enumerate(texts):
            fault = text_fault(text)
            if fault:
                faults[index] = f"line {chunk.start + index + 1} {fault}"
        ids = NumberedIds(display_name(self.path), chunk.start, len(texts))
        return text_batch(ids, texts, faults, self.row_shape)


def open_lines(path: Path | None, info: TensorInfo, model: Path) -> TextLines:
    """The lines of `path`, or of stdin for None, as rows for the input `info` of `model`.

    Raises InputError for a file without a line, and for a model that takes no text.
    """
    row_shape = row_shape_of_texts(info)
    if row_shape is None:
        raise InputError(
            f"{path or 'stdin'}: {model} takes {info.takes()}, which no line of text is; "
            f"give such rows as .npy"
        )
    if path is not None:
        with open_stream(str(path)) as stream:
            if next(raw_lines(stream), None) is None:
                raise InputError(f"{path} holds no rows")
    return TextLines(path=None if path is None else str(path), row_shape=row_shape)


def row_shape_of_texts(info: TensorInfo) -> tuple[int, ...] | None:
    """The shape of a row that is one text, () or (1,); None for an input that takes none."""
    fits = info.is_text and all(axis == 1 for axis in info.shape[1:]) and len(info.shape) <= 2
    return (1,) * (len(info.shape) - 1) if fits else None


def raw_lines(stream: Stream) -> Iterator[bytes]:
    """The lines with their ends, without a byte order mark."""
    lines = stream.lines()
    first = next(lines, b"").removeprefix(BYTE_ORDER_MARK)
    # A mark alone is no line.
    return itertools.chain([first] if first else [], lines)


def decode_line(line: bytes) -> str:
    """The text of a line; bytes that are not UTF-8 stay as lone surrogates."""
    return line.decode("utf-8", "surrogateescape")


def text_batch(
    ids: Sequence[str],
    texts: Sequence[str],
    faults: Mapping[int, str],
    row_shape: tuple[int, ...],
) -> Batch:
    """A batch of the texts, of those at the indices in `faults` only the reasons."""
    good = [text for index, text in enumerate(texts) if index not in faults] if faults else texts
    rows: Array = np.empty(len(good), object)  # object, as the length of a text is its own
    rows[:] = good
    return Batch(ids=ids, rows=rows.reshape(len(good), *row_shape), faults=faults)


def text_fault(text: str) -> str | None:
    """Why a decoded text cannot be fed, or None."""
    if "\0" in text:
        return "holds a NUL byte; it is not UTF-8 text"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        return f"is not UTF-8: byte 0x{byte:02x} after {error.start} characters"
    return None
