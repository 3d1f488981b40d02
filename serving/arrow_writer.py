"""Columns with types: Parquet and Arrow files, written group by group.

Where a row has many values in a column, it holds a flat list, whose shape is in the schema's
metadata as `ferry.shape.NAME`.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from serving.answers import ID, Column, Columns
from serving.errors import ModelError
from serving.readers.items import NumberedIds

__all__ = ["STREAM", "ArrowWriter", "arrow_file", "join_arrow"]

STREAM = "arrow stream"
# Cells of a group of rows: enough to compress well, little enough to hold in memory.
GROUP_CELLS = 1_000_000


def arrow_file(file: IO[bytes], form: str) -> Callable[[Any], Any]:
    """What makes a file of a schema that takes tables."""
    from pyarrow import ipc, parquet

    if form == "parquet":
        # No two ids are alike: a dictionary of them would be built, and dropped.
        return lambda schema: parquet.ParquetWriter(
            file, schema, use_dictionary=[name for name in schema.names if name != ID]
        )
    return functools.partial(ipc.new_stream if form == STREAM else ipc.new_file, file)


class ArrowWriter:
    """Columns with types, in groups of some thousand rows, of Parquet or of Arrow."""

    def __init__(
        self, make: Callable[[Any], Any], columns: Columns, metadata: Mapping[str, str]
    ) -> None:
        import pyarrow as pa
        from pyarrow import compute

        self._arrow, self._compute = pa, compute
        self._shapes = {name: _shape(values) for name, values in columns.items()}
        told = {f"ferry.shape.{name}": json.dumps(s) for name, s in self._shapes.items() if s}
        fields = [(name, self._type(values)) for name, values in columns.items()]
        self._schema = pa.schema(fields, metadata={**metadata, **told})
        self._file = make(self._schema)
        cells = sum(math.prod(shape) for shape in self._shapes.values())
        self._group_rows = max(1, GROUP_CELLS // cells)
        self._waiting: list[Columns] = []
        self._waiting_rows = 0

    def write(self, columns: Columns) -> None:
        """Keep one batch, and write a group when there are enough.

        Raises ModelError when a row's values have another shape than those of the first batch.
        """
        for name, values in columns.items():
            if _shape(values) != self._shapes[name]:
                raise ModelError(
                    f"output {name} has rows of shape {list(_shape(values))} after "
                    f"{list(self._shapes[name])}; write .jsonl, which takes both"
                )
        self._waiting.append(columns)
        self._waiting_rows += len(next(iter(columns.values())))
        if self._waiting_rows >= self._group_rows:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, as one group."""
        if not self._waiting:
            return
        made = [self._array(field) for field in self._schema]
        table = self._arrow.Table.from_arrays(made, schema=self._schema)
        self._file.write_table(table, len(table))
        self._waiting, self._waiting_rows = [], 0

    def close(self) -> None:
        """Write the footer."""
        self._file.close()

    def _texts(self, part: Column) -> Any:
        """Ids as Arrow's strings; numbered ones without an object for each."""
        if not isinstance(part, NumberedIds):
            return self._arrow.array(part, self._arrow.string())
        numbers = np.arange(part.start, part.start + part.length)
        counted = self._compute.cast(self._arrow.array(numbers), self._arrow.string())
        return self._compute.binary_join_element_wise(part.name, counted, ":")

    def _type(self, values: Column) -> Any:
        if isinstance(values, NumberedIds):
            return self._arrow.string()
        text = values.dtype.kind in "OUT"
        one = self._arrow.string() if text else self._arrow.from_numpy_dtype(values.dtype)
        return self._arrow.list_(one) if values.ndim > 1 else one

    def _array(self, field: Any) -> Any:
        """A column of all the rows that wait."""
        parts = [columns[field.name] for columns in self._waiting]
        if field.name == ID:
            return self._arrow.concat_arrays([self._texts(part) for part in parts])
        values = np.concatenate([np.asarray(part) for part in parts])
        if values.ndim == 1:
            return self._arrow.array(values, type=field.type)
        size = math.prod(values.shape[1:])
        offsets = self._arrow.array(np.arange(len(values) + 1) * size, self._arrow.int32())
        flat = self._arrow.array(values.reshape(-1), type=field.type.value_type)
        return self._arrow.ListArray.from_arrays(offsets, flat)


def join_arrow(file: IO[bytes], parts: Sequence[Path], form: str) -> None:
    """Write one Parquet or Arrow file of several of the same columns, group by group."""
    import pyarrow as pa
    from pyarrow import parquet

    joined: Any = None
    for part in parts:
        if form == "parquet":
            with parquet.ParquetFile(part) as groups:
                joined = joined or arrow_file(file, form)(groups.schema_arrow)
                for index in range(groups.num_row_groups):
                    table = groups.read_row_group(index)
                    joined.write_table(table, len(table))
        else:
            with pa.OSFile(str(part)) as source, pa.ipc.open_file(source) as batches:
                joined = joined or arrow_file(file, form)(batches.schema)
                for index in range(batches.num_record_batches):
                    joined.write_batch(batches.get_batch(index))
    if joined is not None:
        joined.close()


def _shape(values: Column) -> tuple[int, ...]:
    """Of one row."""
    return () if isinstance(values, NumberedIds) else values.shape[1:]
