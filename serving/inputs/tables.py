"""Rows of tables: one column of text, or as many numbers as the model takes.

A value that is no text or no number makes its row one that cannot be read, with the column and the
line named. Columns of Parquet and Arrow may hold encoded images and arrays as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError
from serving.inputs.columns import number_columns, refuse_twice, refuse_unknown, text_column
from serving.inputs.formats import ColumnFile, Record, open_csv, open_json_lines
from serving.inputs.items import Batch, Chunk, NumberedIds, Source, batch_of
from serving.inputs.lines import row_shape_of_texts, text_batch, text_fault
from serving.inputs.names import ARROW_SUFFIXES
from serving.inputs.numeric import number, number_rows, shown
from serving.inputs.streams import fingerprint_of_files, name_of
from serving.runtime.tensors import TensorInfo

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The records of a file, as rows of the model."""

    file: ColumnFile
    names: tuple[str, ...]
    """The columns that are read."""
    info: TensorInfo
    """The model's input."""
    count: None = None
    slow: bool = False

    def fingerprint(self) -> str | None:
        """The sha256 of the path, size and time of change of the file; None for stdin."""
        return None if self.file.path is None else fingerprint_of_files([self.file.path])

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Records, `size` at a time, from the one at `start` on.

        Raises InputError where the file cannot be read on.
        """
        return self.file.chunks(size, start)

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk."""
        records = self.file.records(self.names, chunk.content)
        ids = NumberedIds(name_of(self.file.path), chunk.start, len(records))
        return self._texts(ids, records) if self.info.is_text else self._numbers(ids, records)

    def _texts(self, ids: Sequence[str], records: Sequence[Record]) -> Batch:
        texts, faults = [], {}
        for index, record in enumerate(records):
            try:
                texts.append(text_of(self.names[0], _values(record)[0]))
            except ValueError as error:
                texts.append("")
                faults[index] = f"{record.place}{error}"
        return text_batch(ids, texts, faults, row_shape_of_texts(self.info) or ())

    def _numbers(self, ids: Sequence[str], records: Sequence[Record]) -> Batch:
        dtype = np.dtype(self.info.dtype)
        rows = None
        if not any(record.fault for record in records):
            rows = number_rows([record.values for record in records], dtype)
        if rows is not None:
            return Batch(ids=ids, rows=rows)
        values = [self._row(record, dtype) for record in records]
        return batch_of(ids, values, np.empty((0, len(self.names)), dtype))

    def _row(self, record: Record, dtype: np.dtype[Any]) -> Array | str:
        try:
            found = zip(self.names, _values(record), strict=True)
            return np.array([number(name, value, dtype) for name, value in found], dtype)
        except ValueError as error:
            return f"{record.place}{error}"


def open_table(
    path: Path, info: TensorInfo, model: Path, asked: Sequence[str] = (), *, resize: bool = False
) -> Source:
    """The records of a table as rows for the input `info` of `model`.

    `asked` are the columns to read. Without it a model that takes text reads the only column, or
    the one named "text" or "sentence", and one that takes numbers reads them all, in their order.
    Parquet and Arrow may hold whole rows in one column; `resize` fits images in it to the model.
    Raises InputError for columns that are not there or too many or few, a file that cannot be read
    or holds no record, and a model that takes neither texts nor rows of numbers.
    """
    suffix = path.suffix.lower()
    if suffix not in ARROW_SUFFIXES:
        form = "csv" if suffix == ".csv" else "jsonl"
        return open_table_of_lines(path, info, model, asked, form=form)
    from serving.inputs.arrow import open_arrow

    return open_arrow(path, info, model, asked, resize=resize)


def open_table_of_lines(
    path: Path | None, info: TensorInfo, model: Path, asked: Sequence[str] = (), *, form: str
) -> Table:
    """The records of a file, or of stdin for None, whose `form` is "csv" or "jsonl".

    Raises what `open_table` raises. Of stdin no more than the first record is read yet.
    """
    name = str(path or "stdin")
    if row_shape_of_texts(info) is None and not takes_numbers(info):
        raise InputError(
            f"{name}: {model} takes {info.takes()}, which no record is; give such rows as .npy"
        )
    place = None if path is None else str(path)
    file: ColumnFile = open_csv(place) if form == "csv" else open_json_lines(place)
    refuse_unknown(name, file.columns, asked)
    if info.is_text:
        names = text_column(name, file.columns, asked)
    else:
        names = number_columns(name, file.columns, asked, info)
    refuse_twice(name, file.columns, names)
    if path is not None:
        next(file.chunks(1, 0))
    return Table(file=file, names=names, info=info)


def takes_numbers(info: TensorInfo) -> bool:
    """Whether a row of the input is some numbers, one after the other."""
    return not info.is_text and len(info.shape) == 2 and np.dtype(info.dtype).kind in "fiu"


def text_of(name: str, value: object) -> str:
    """The value of the column `name` as a text; ValueError for what is none."""
    if isinstance(value, str):
        fault = text_fault(value)
        if fault:
            raise ValueError(f"column {name!r} {fault}")
        return value
    raise ValueError(f"column {name!r} is {shown(value)}, not text")


def _values(record: Record) -> Sequence[object]:
    if record.fault:
        raise ValueError(record.fault)
    return record.values
