"""The columns of a CSV, TSV or Parquet file, as the readers of a user's own data take them.

Numbers are numbers and texts are texts by what stands in the whole column; no value is guessed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError, one_line
from serving.inputs.tables.columns import refuse_twice, refuse_unknown
from serving.inputs.tables.delimited import delimiter_of, tabs_of

CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_SUFFIXES = (".parquet", ".pq")
HEADER_BYTES = 1 << 16
MOST_PACKED = 64
"""Times that a CSV may be larger than its gzip file and still be in one block."""
LARGEST_BLOCK = 2**31 - 1
"""Bytes of a CSV that pyarrow looks at to tell the type of a column."""


def is_table(path: Path) -> bool:
    """Whether a file is one of those, by its name."""
    return path.name.lower().endswith((*CSV_SUFFIXES, *PARQUET_SUFFIXES))


class Columns:
    """The columns of one file."""

    def __init__(self, path: Path, texts: Sequence[str], decimal: str = ".") -> None:
        """Read `path`; the columns `texts` are texts whatever stands in them.

        `decimal` is what stands before the fraction of a number of a CSV. Raises InputError for a
        file that is not there or cannot be read, and for a column that is not there, or twice.
        """
        self.path = path
        self._table, self.names = _read(path, texts, decimal)
        refuse_twice(str(path), self.names, self.names)
        self.require(texts)
        if not self._table.num_rows:
            raise InputError(f"{path} holds no rows")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def require(self, names: Sequence[str]) -> None:
        """Refuse columns that are not there; InputError."""
        refuse_unknown(str(self.path), self.names, names)

    def is_number(self, name: str) -> bool:
        """Whether a column holds numbers, or truth values."""
        import pyarrow as pa

        kind = self._table.schema.field(name).type
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
        return any(is_kind(kind) for is_kind in (*kinds, pa.types.is_decimal))

    def texts(self, name: str) -> list[str]:
        """A column of texts; InputError for a row without one."""
        import pyarrow as pa

        values: list[str | None] = self._table[name].cast(pa.string()).to_pylist()
        for row, value in enumerate(values, 1):
            if not value or not value.strip():
                raise InputError(f"{self.path}: row {row} has nothing in column {name!r}")
        return [str(value) for value in values]

    def numbers(self, names: Sequence[str], fill: float | None = None) -> npt.NDArray[np.float32]:
        """Columns of numbers, float32 [rows, columns], with `fill` where there is no value.

        Raises InputError for a column of something else, and for the first row without a value
        where nothing fills it, or with one that is no finite float32.
        """
        import pyarrow as pa

        self.require(names)
        rows = np.empty((len(self), len(names)), np.float32)
        for index, name in enumerate(names):
            if not self.is_number(name):
                raise InputError(
                    f"{self.path}: column {name!r} holds {self.shown_text(name)}, not numbers"
                )
            column = self._table[name]
            if pa.types.is_boolean(column.type):
                column = column.cast(pa.uint8())
            values = column.cast(pa.float64(), safe=False).to_numpy()
            rows[:, index] = self._filled(name, values, fill)
        return rows

    def _filled(
        self, name: str, values: npt.NDArray[np.float64], fill: float | None
    ) -> npt.NDArray[np.float64]:
        empty = np.isnan(values)
        if empty.any() and fill is None:
            raise InputError(
                f"{self.path}: row {int(empty.argmax()) + 1} has nothing in column {name!r}; so "
                f"have {int(empty.sum())} of {len(self)} rows; missing: 0 in its section takes 0"
            )
        values = np.where(empty, 0 if fill is None else fill, values)
        wrong = np.abs(values) > np.finfo(np.float32).max
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{self.path}: row {row + 1} has {values[row]} in column {name!r}, which float32 "
                f"does not hold"
            )
        return values

    def shown_text(self, name: str) -> str:
        """The first value of a column of texts, quoted."""
        values = (value for value in self._table[name].to_pylist() if value is not None)
        return repr(next(values, None))


def text_columns(path: Path, **chosen: str | None) -> list[list[str]]:
    """Columns of texts by the settings that name them; InputError where one names none."""
    names = [name for name in chosen.values() if name]
    columns = Columns(path, names)
    if len(names) < len(chosen):
        keys = " and ".join(f"{key}:" for key in chosen)
        raise InputError(f"{path} has the columns {', '.join(columns.names)}; say {keys}, one each")
    return [columns.texts(name) for name in names]


def _read(path: Path, texts: Sequence[str], decimal: str) -> tuple[Any, tuple[str, ...]]:
    """The table of a file and the names of its columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} is not there, or no file")
    try:
        if path.name.lower().endswith(CSV_SUFFIXES):
            found = _read_csv(path, texts, decimal)
        elif path.name.lower().endswith(PARQUET_SUFFIXES):
            found = pq.read_table(path)
        else:
            known = ", ".join((*CSV_SUFFIXES, *PARQUET_SUFFIXES))
            raise InputError(f"{path} is no table ({known})")
        return found, tuple(found.column_names)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the names of the columns are not UTF-8") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error, 200)}") from error


def _read_csv(path: Path, texts: Sequence[str], decimal: str) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    with pa.input_stream(path, compression="detect") as stream:
        header = stream.read(HEADER_BYTES).partition(b"\n")[0]
    # In one block: a type that is told from the first rows may not be that of the last.
    unpacked = path.stat().st_size * (MOST_PACKED if path.suffix.lower() == ".gz" else 1)
    block = min(LARGEST_BLOCK, max(1 << 20, unpacked + 1))
    return csv.read_csv(
        path,
        csv.ReadOptions(block_size=block),
        csv.ParseOptions(delimiter=tabs_of(path) or delimiter_of(header.decode("latin-1"))),
        csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()), decimal_point=decimal),
    )
