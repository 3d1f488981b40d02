"""What tests of sources share: inputs of models that are not there, all rows of a source, stdin."""

import dataclasses
import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet
from tiny_images import encoded, write

from serving.inputs.inputs import Inputs
from serving.inputs.sources import Batch, InputRow, ReadOptions, ReadTarget, RowSource
from serving.model import Model, open_model
from serving.runtime.tensors import TensorInfo

ROOT = Path(__file__).parents[2]
MODEL = Path("model.onnx")
IMAGES = TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 5, 1))
FEATURES = TensorInfo(name="features", dtype="float32", shape=("batch", 3))
IDS = TensorInfo(name="ids", dtype="int64", shape=("batch", 2))
TEXT = TensorInfo(name="text", dtype="object", shape=("batch",))


def target(info: TensorInfo, **options: object) -> ReadTarget:
    """What rows are read for: an input of a model that is not there."""
    return ReadTarget(info, MODEL, ReadOptions(**options))


def opened(tmp_path: Path, content: bytes) -> Model:
    """A model of the bytes of its file."""
    (tmp_path / "model.onnx").write_bytes(content)
    return open_model(tmp_path / "model.onnx")


def ids(inputs: Inputs) -> list[str]:
    """Of all rows, also of those that cannot be read."""
    return [item.id for item in inputs]


def rows(inputs: Inputs) -> np.ndarray:
    """All rows that can be read."""
    return np.stack([item.value for item in inputs if isinstance(item, InputRow)])


def batches(source: RowSource, size: int = 4, start: int = 0) -> list[Batch]:
    """The decoded chunks, each of which went to another process and back."""
    made = []
    there = pickle.loads(pickle.dumps(source))
    for chunk in source.chunks(size, start):
        assert chunk.start == start
        batch = there.decode(pickle.loads(pickle.dumps(chunk)))
        here = source.decode(chunk)
        assert list(batch.ids) == list(here.ids)
        assert batch.faults == here.faults
        np.testing.assert_array_equal(batch.rows, here.rows)
        assert len(batch.ids) == chunk.count == len(batch.rows) + len(batch.faults)
        start += chunk.count
        made.append(here)
        # As a limit cuts it: what is decoded has as many ids as rows.
        one = source.decode(dataclasses.replace(chunk, count=1)).first(1)
        assert len(one.ids) == 1 == len(one.rows) + len(one.faults)
    assert all(len(batch.ids) == size for batch in made[:-1])
    return made


def rows_of(source: RowSource, size: int = 4, start: int = 0) -> np.ndarray:
    """The rows that can be read."""
    return np.concatenate([batch.rows for batch in batches(source, size, start)])


def faults_of(source: RowSource, size: int = 4) -> dict[int, str]:
    """Why rows cannot be read, by their index."""
    return {
        index * size + row: reason
        for index, batch in enumerate(batches(source, size))
        for row, reason in batch.faults.items()
    }


def write_inputs(folder: Path, pixels: np.ndarray) -> None:
    """Ten images [4, 5, 1] as files of every format."""
    pngs = [encoded(one, "PNG") for one in pixels]
    for index, png in enumerate(pngs):
        write(folder / f"photos/{'ab'[index % 2]}/{index}.png", png)
    np.save(folder / "rows.npy", pixels)
    np.savez(folder / "rows.npz", images=pixels)
    np.savez_compressed(folder / "packed.npz", images=pixels)
    head = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (10, 4, 5))
    (folder / "rows-idx3-ubyte").write_bytes(head + pixels.tobytes())
    (folder / "rows-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    table = pa.table({"image": pngs})
    parquet.write_table(table, folder / "rows.parquet")
    with ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    for name, mode in (("rows.tar", "w"), ("rows.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:  # type: ignore[call-overload]
            for index in range(10):
                archive.add(folder / f"photos/{'ab'[index % 2]}/{index}.png", f"{index}.png")


def as_stdin(content: bytes) -> io.TextIOWrapper:
    """What `sys.stdin` is when some bytes are piped in."""
    return io.TextIOWrapper(io.BytesIO(content))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def resident_growth(code: str) -> int:
    """The MiB by which a process grows at most while it runs `code`, which defines `source`.

    Every row of it is read after that, chunk by chunk.
    """
    program = f"""
import numpy as np
from pathlib import Path
from serving.inputs.arrays import open_array_rows
from serving.inputs.tables.arrow import open_arrow
from serving.inputs.sources import ReadTarget
from serving.runtime.tensors import TensorInfo

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

before = resident()
{code}
most = resident()
for chunk in source.chunks(256):
    source.decode(chunk).rows.sum()
    most = max(most, resident())
print((most - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
