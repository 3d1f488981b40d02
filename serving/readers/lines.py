"""Texts of a `.txt` file, one a line, in UTF-8; an empty line is an empty text.

A line that is not UTF-8 is an item with its number, counted from 1 as editors do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InputError
from serving.readers.items import Row, Unreadable, printable, text_value
from serving.tensors import TensorInfo

__all__ = ["Lines", "decoded_lines", "open_lines", "row_shape_of_texts", "text_fault"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of a file, without their ends."""

    path: Path
    row_shape: tuple[int, ...]

    @property
    def count(self) -> None:
        """Unknown before the last line is read."""

    def __iter__(self) -> Iterator[Row | Unreadable]:
        name = printable(self.path)
        for index, line in enumerate(decoded_lines(self.path)):
            text = line.removesuffix("\n").removesuffix("\r")
            fault = text_fault(text)
            if fault:
                yield Unreadable(f"{name}:{index}", f"line {index + 1} {fault}")
            else:
                yield Row(f"{name}:{index}", text_value(text, self.row_shape))


def open_lines(path: Path, info: TensorInfo, model: Path) -> Lines:
    """The lines of `path` as rows for the input `info` of `model`.

    Raises InputError for a file without a line, and for a model that takes no text.
    """
    row_shape = row_shape_of_texts(info)
    if row_shape is None:
        raise InputError(
            f"{path}: {model} takes {info.takes()}, which no line of text is; "
            f"give such rows as .npy"
        )
    if next(decoded_lines(path), None) is None:
        raise InputError(f"{path} holds no rows")
    return Lines(path, row_shape)


def row_shape_of_texts(info: TensorInfo) -> tuple[int, ...] | None:
    """The shape of a row that is one text, () or (1,); None for an input that takes none."""
    fits = info.is_text and all(axis == 1 for axis in info.shape[1:]) and len(info.shape) <= 2
    return (1,) * (len(info.shape) - 1) if fits else None


def decoded_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends; bytes that are not UTF-8 stay as lone surrogates."""
    with path.open("rb") as file:
        for index, line in enumerate(file):
            content = line if index else line.removeprefix(BYTE_ORDER_MARK)
            if content:  # a mark alone is no line
                yield content.decode("utf-8", "surrogateescape")


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
