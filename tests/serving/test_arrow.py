"""Parquet and Arrow as sources: what a column may hold, where it is cut, what is wrong in it."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import ipc, parquet
from samples_of_rows import (
    FEATURES,
    IDS,
    IMAGES,
    TEXT,
    as_stdin,
    batches,
    faults_of,
    resident_growth,
    rows_of,
    sha256,
    target,
)

from serving.errors import InputError
from serving.inputs.tables.arrow import ArrowRows, open_arrow
from serving.runtime.tensors import TensorInfo

ROWS = 11
PIXELS = np.random.default_rng(1).integers(0, 256, (ROWS, 4, 5, 1), np.uint8)
NUMBERS = np.random.default_rng(2).normal(size=(ROWS, 3)).astype(np.float32)
FORMS = ("rows.parquet", "rows.arrow", "rows.stream.arrow")
EVERY_FORM = pytest.mark.parametrize("name", FORMS)


def written(path: Path, columns: dict[str, Any], batch: int = 5, **how: Any) -> Path:
    """A table in record batches or row groups of `batch` rows, in the form that the name tells."""
    table = pa.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=batch, **how)
        return path
    make = ipc.new_stream if ".stream" in path.name else ipc.new_file
    with make(path, table.schema, options=ipc.IpcWriteOptions(**how)) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def opened(path: Path, info: TensorInfo, *asked: str, resize: bool = False) -> ArrowRows:
    return open_arrow(path, target(info, columns=asked, resize=resize))


def refused(path: Path, info: TensorInfo, *asked: str) -> str:
    with pytest.raises(InputError) as caught:
        batches(opened(path, info, *asked))
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
    return str(caught.value)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(file, "png")
    return file.getvalue()


def lists(values: np.ndarray, kind: Any = None) -> Any:
    """Rows as lists in lists."""
    return pa.array(values.tolist(), kind)


def tensors(values: np.ndarray, shape: tuple[int, ...], **how: Any) -> Any:
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), shape, **how)
    flat = pa.FixedSizeListArray.from_arrays(values.reshape(-1), values[0].size)
    return pa.ExtensionArray.from_storage(kind, flat)


FLAT = PIXELS.reshape(ROWS, -1)
IMAGE_COLUMNS = {
    "encoded": pa.array([png(one) for one in PIXELS]),
    "large": pa.array([png(one) for one in PIXELS], pa.large_binary()),
    "hugging face": pa.array(
        [{"bytes": png(one), "path": f"{index}.png"} for index, one in enumerate(PIXELS)]
    ),
    "bytes": pa.array([one.tobytes() for one in PIXELS], pa.binary(20)),
    "fixed": pa.FixedSizeListArray.from_arrays(FLAT.reshape(-1), 20),
    "flat": lists(FLAT, pa.list_(pa.uint8())),
    "nested": lists(PIXELS, pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "without channels": lists(PIXELS[..., 0], pa.list_(pa.list_(pa.uint8()))),
    "whole numbers": lists(FLAT, pa.large_list(pa.int64())),
    "floats": lists(FLAT, pa.list_(pa.float64())),
    "tensor": tensors(PIXELS, (4, 5)),
}


# What a column may hold


@EVERY_FORM
@pytest.mark.parametrize("column", IMAGE_COLUMNS)
@pytest.mark.parametrize("start", [0, 8, 11])
def test_images_in_a_column(tmp_path: Path, name: str, column: str, start: int) -> None:
    path = written(
        tmp_path / name, {"label": list(range(ROWS)), "x": IMAGE_COLUMNS[column]}, batch=3
    )
    source = opened(path, IMAGES)
    assert source.slow == (column in ("encoded", "large", "hugging face"))
    assert source.count == (None if ".stream" in name else ROWS)
    made = batches(source, 4, start)
    assert [one for batch in made for one in batch.ids] == [
        f"{path}:{index}" for index in range(start, ROWS)
    ]
    if made:
        np.testing.assert_array_equal(
            np.concatenate([batch.rows for batch in made]), PIXELS[start:]
        )


@pytest.mark.parametrize("column", ["bytes", "fixed", "flat", "tensor"])
@pytest.mark.parametrize("name", FORMS[1:])
def test_what_lies_as_the_model_takes_it_is_not_copied(
    tmp_path: Path, name: str, column: str
) -> None:
    source = opened(written(tmp_path / name, {"x": IMAGE_COLUMNS[column]}, batch=ROWS), IMAGES)
    for chunk in source.chunks(4):
        (batch,) = chunk.content.batches
        rows = source.decode(chunk).rows
        array = batch.column("x")
        array = array.storage if column == "tensor" else array
        buffer = array.buffers()[1] if column == "bytes" else array.flatten().buffers()[1]
        assert buffer.address <= rows.ctypes.data < buffer.address + buffer.size


def test_a_chunk_takes_its_own_rows_along(tmp_path: Path) -> None:
    """Sent to another process, a slice would have the whole batch in tow."""
    import pickle

    path = written(tmp_path / "rows.arrow", {"x": pa.array([b"x" * 100] * 10_000)}, batch=10_000)
    chunk = next(opened(path, IMAGES).chunks(10))
    assert len(pickle.dumps(chunk)) < 10_000


@EVERY_FORM
def test_columns_of_numbers_in_the_order_asked_for(tmp_path: Path, name: str) -> None:
    columns = {key: NUMBERS[:, index] for index, key in enumerate("abc")}
    path = written(tmp_path / name, columns)
    np.testing.assert_array_equal(rows_of(opened(path, FEATURES)), NUMBERS)
    turned = rows_of(opened(path, FEATURES, "c", "a", "c"))
    np.testing.assert_array_equal(turned, NUMBERS[:, [2, 0, 2]])


def test_numbers_of_every_type(tmp_path: Path) -> None:
    columns = {
        "a": pa.array([1, 2, 300], pa.int16()),
        "b": pa.array(["1", " 2.5 ", "x"]),
        "c": pa.array([1.5, None, 2.5], pa.float16()),
    }
    path = written(tmp_path / "rows.arrow", columns)
    assert rows_of(opened(path, FEATURES)).tolist() == [[1, 1, 1.5]]
    assert faults_of(opened(path, FEATURES)) == {
        1: "column 'c' is empty, not a number; --missing nan reads it as NaN",
        2: "column 'b' is 'x', not a number",
    }
    decimals = pa.array([1, 2, 3]).cast(pa.decimal128(21, 2))
    words = pa.array(["7", "8", "7"]).dictionary_encode()
    path = written(tmp_path / "rows.arrow", {"a": decimals, "b": words})
    assert rows_of(opened(path, IDS)).tolist() == [[1, 7], [2, 8], [3, 7]]
    path = written(tmp_path / "rows.arrow", {"a": [True, False], "b": [1, 2]})
    assert faults_of(opened(path, IDS))[0] == "column 'a' is True, not a number"


def test_large_whole_numbers_stay_whole(tmp_path: Path) -> None:
    rows = [[2**53 + 1, -(2**63)], [7, 2**63 - 1]]
    path = written(tmp_path / "rows.parquet", {"a": [rows[0][0], 7], "b": [rows[0][1], rows[1][1]]})
    assert rows_of(opened(path, IDS)).tolist() == rows
    path = written(tmp_path / "rows.parquet", {"a": [1.0, 1.5], "b": pa.array([1, 2**63], "u8")})
    assert rows_of(opened(path, IDS)).tolist() == [[1, 1]]
    assert faults_of(opened(path, IDS)) == {1: "column 'a' is 1.5, which is no int64"}


@EVERY_FORM
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), "dictionary"])
def test_texts(tmp_path: Path, name: str, kind: Any) -> None:
    texts = ["good", "", "naïve", "\u2028", "a\nb"]
    column = pa.array(texts).dictionary_encode() if kind == "dictionary" else pa.array(texts, kind)
    path = written(tmp_path / name, {"text": column, "id": list(range(5))}, batch=2)
    assert rows_of(opened(path, TEXT), 3).tolist() == texts
    column_of_texts = TensorInfo(name="text", dtype="object", shape=("batch", 1))
    assert rows_of(opened(path, column_of_texts), 3).shape == (5, 1)


# What is wrong in a column


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    small = png(PIXELS[0, :2])
    cells = [png(PIXELS[0]), None, b"", b"no image", small]
    path = written(tmp_path / "rows.parquet", {"image": pa.array(cells)})
    assert faults_of(opened(path, IMAGES)) == {
        1: "column 'image' holds no bytes",
        2: "it is empty",
        3: "it is not an image, or not of a known format",
        4: "it is 5x2 L, the model takes 5x4 L; --resize fits it",
    }
    assert len(rows_of(opened(path, IMAGES, resize=True))) == 2
    structs = [{"bytes": cells[0], "path": None}, None, {"bytes": None, "path": "a.png"}]
    path = written(tmp_path / "rows.arrow", {"image": pa.array(structs)})
    assert list(faults_of(opened(path, IMAGES))) == [1, 2]
    np.testing.assert_array_equal(rows_of(opened(path, IMAGES)), PIXELS[:1])


@EVERY_FORM
def test_lists_that_are_no_rows(tmp_path: Path, name: str) -> None:
    rows = [
        [1, 2, 3],
        None,
        [1, 2],
        [],
        [1, None, 3],
        [1, float("nan"), 3],
        [1, 1e39, 3],
        [4, 5, 6],
    ]
    path = written(tmp_path / name, {"x": pa.array(rows, pa.list_(pa.float64()))})
    source = opened(path, FEATURES)
    assert faults_of(source, 3) == {
        1: "column 'x' is empty",
        2: "column 'x' has 2 values where the model takes 3",
        3: "column 'x' has 0 values where the model takes 3",
        4: "column 'x' holds an empty value; --missing nan reads it as NaN",
        5: "column 'x' is nan, not a number; --missing nan reads it as NaN",
        6: "column 'x' is 1e+39, more than float32 holds",
    }
    assert rows_of(source, 3).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_rows_of_bytes_that_are_empty(tmp_path: Path) -> None:
    cells = [PIXELS[0].tobytes(), None, PIXELS[2].tobytes()]
    path = written(tmp_path / "rows.arrow", {"x": pa.array(cells, pa.binary(20))})
    assert faults_of(opened(path, IMAGES)) == {1: "column 'x' is empty"}
    np.testing.assert_array_equal(rows_of(opened(path, IMAGES)), PIXELS[[0, 2]])


def test_pixels_that_are_no_bytes(tmp_path: Path) -> None:
    values = FLAT[:2].astype(np.int64)
    values[1, 3] = 256
    path = written(tmp_path / "rows.parquet", {"x": lists(values)})
    assert faults_of(opened(path, IMAGES)) == {1: "column 'x' is 256, which is no uint8"}


def test_nested_lists_of_other_lengths(tmp_path: Path) -> None:
    rows = [PIXELS[0, ..., 0].tolist(), PIXELS[1, ..., 0].T.tolist()]
    kind = pa.list_(pa.list_(pa.uint8()))
    path = written(tmp_path / "rows.parquet", {"x": pa.array(rows, kind)})
    assert faults_of(opened(path, IMAGES)) == {1: "column 'x' has 5 values where the model takes 4"}


@EVERY_FORM
def test_texts_that_are_not_utf8(tmp_path: Path, name: str) -> None:
    content = pa.array([b"good", b"caf\xe9 noir", None, b"nul\0", b"fine"])
    path = written(tmp_path / name, {"text": content.view(pa.string())})
    assert faults_of(opened(path, TEXT)) == {
        1: "column 'text' is not UTF-8: byte 0xe9 after 3 characters",
        2: "column 'text' is empty, not text",
    }
    assert rows_of(opened(path, TEXT)).tolist() == ["good", "nul\0", "fine"]


# Which column it is


def test_the_only_column_that_fits(tmp_path: Path) -> None:
    short = lists(FLAT[:, :3], pa.list_(pa.uint8(), 3))
    columns = {"label": list(range(ROWS)), "short": short, "anything": IMAGE_COLUMNS["fixed"]}
    source = opened(written(tmp_path / "rows.parquet", columns), IMAGES)
    assert source.reader.names == ("anything",)


def test_a_usual_name_among_several(tmp_path: Path) -> None:
    columns = dict.fromkeys(("mask", "img", "thumbnail"), IMAGE_COLUMNS["encoded"])
    assert opened(written(tmp_path / "rows.parquet", columns), IMAGES).reader.names == ("img",)
    del columns["img"]
    path = written(tmp_path / "rows.parquet", columns)
    message = refused(path, IMAGES)
    assert (
        "has the columns mask, thumbnail with rows for the model; name one with --column" in message
    )
    assert opened(path, IMAGES, "mask").reader.names == ("mask",)
    assert "has no column 'mas'; did you mean 'mask'?" in refused(path, IMAGES, "mas")


def test_whole_rows_come_before_numbers(tmp_path: Path) -> None:
    columns = {key: NUMBERS[:, index] for index, key in enumerate("abc")}
    path = written(tmp_path / "rows.parquet", columns | {"x": lists(NUMBERS + 1)})
    np.testing.assert_array_equal(rows_of(opened(path, FEATURES)), NUMBERS + 1)
    np.testing.assert_array_equal(rows_of(opened(path, FEATURES, "a", "b", "c")), NUMBERS)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (tensors(FLAT, (20,)), "which no record is"),
        (tensors(PIXELS[..., 0].reshape(ROWS, 5, 4), (5, 4)), "which no record is"),
        (tensors(PIXELS[..., 0], (4, 5), permutation=[1, 0]), "which no record is"),
        (lists(FLAT[:, :19], pa.list_(pa.uint8(), 19)), "there are: x fixed_size_list<"),
        (pa.array([one.tobytes()[:19] for one in PIXELS], pa.binary(19)), "fixed_size_binary[19]"),
        (pa.array(["a"] * ROWS), "there are: x string"),
        (lists(FLAT.astype(str)), "which no record is"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, column: Any, message: str) -> None:
    path = written(tmp_path / "rows.parquet", {"x": column})
    found = refused(path, IMAGES)
    assert message in found
    assert "model.onnx takes uint8 [rows, 4, 5, 1], which no record is; give such" in found


def test_one_column_asked_for_that_does_not_fit(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", {"x": lists(NUMBERS, pa.list_(pa.float32(), 3))})
    two = TensorInfo(name="x", dtype="float32", shape=("batch", 2))
    assert "column 'x' holds fixed_size_list<" in refused(path, two, "x")


def test_a_name_that_several_columns_have(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    with ipc.new_file(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    assert "has several columns named 'text'" in refused(tmp_path / "rows.arrow", TEXT)


# What is damaged


@EVERY_FORM
def test_files_without_a_row(tmp_path: Path, name: str) -> None:
    empty = {"text": pa.array([], pa.string())}
    assert "holds no rows" in refused(written(tmp_path / name, empty), TEXT)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.arrow", b""),
        ("rows.arrow", b"ARROW1 and nothing more"),
        ("rows.ipc", b"something else that is long enough"),
        ("rows.feather", b"FEA1" + bytes(100)),
        ("rows.pq", b"PAR1"),
    ],
)
def test_files_of_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    kind = "Parquet" if name.endswith(".pq") else "Arrow"
    assert f"is no {kind} file to read" in refused(tmp_path / name, TEXT)


@EVERY_FORM
def test_files_that_are_cut_short(tmp_path: Path, name: str) -> None:
    whole = written(tmp_path / name, {"text": [f"text {n}" for n in range(100)]}).read_bytes()
    for size in (8, len(whole) // 2, len(whole) * 3 // 4):
        (tmp_path / name).write_bytes(whole[:size])
        refused(tmp_path / name, TEXT)


@pytest.mark.parametrize("name", FORMS[1:])
def test_offsets_that_lead_out_of_the_file(tmp_path: Path, name: str) -> None:
    """Nobody checks them but who reads; pyarrow would read the memory behind."""
    path = written(tmp_path / name, {"text": ["aaaa"] * 8}, batch=8)
    content = path.read_bytes()
    offsets = np.arange(0, 36, 4, dtype=np.int32).tobytes()
    assert content.count(offsets) == 1
    wrong = offsets[:8] + np.int32(2**30).tobytes() + offsets[12:]
    path.write_bytes(content.replace(offsets, wrong))
    assert "is damaged after row 0: " in refused(path, TEXT)


def test_later_rows_do_not_need_the_groups_before(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", {"x": lists(NUMBERS)}, batch=4, compression="none")
    content = bytearray(path.read_bytes())
    place = parquet.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.parquet cannot be read to its end"):
        opened(path, FEATURES)
    source = opened(written(tmp_path / "more.parquet", {"x": lists(NUMBERS)}, batch=4), FEATURES)
    (tmp_path / "more.parquet").write_bytes(content)
    np.testing.assert_array_equal(rows_of(source, 4, 4), NUMBERS[4:])


# Stdin


def streamed(columns: dict[str, Any], batch: int) -> bytes:
    table, sink = pa.table(columns), io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return sink.getvalue()


def test_a_stream_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    content = streamed({"x": IMAGE_COLUMNS["encoded"], "label": list(range(ROWS))}, batch=3)
    monkeypatch.setattr("sys.stdin", as_stdin(content))
    source = open_arrow(None, target(IMAGES))
    assert source.count is None
    assert source.fingerprint() is None
    chunks = list(source.chunks(4))
    made = [source.decode(chunk) for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in made]), PIXELS)
    assert made[2].ids[0] == "stdin:8"
    digests = [chunk.digest for chunk in chunks]
    assert len(set(digests)) == 3
    monkeypatch.setattr("sys.stdin", as_stdin(content))
    later = open_arrow(None, target(IMAGES))
    assert [chunk.digest for chunk in later.chunks(4, 4)] == digests[1:]
    assert sha256(content) != digests[0]


def test_stdin_that_is_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"a,b\n1,2\n", streamed({"a": [1]}, 1)[:40]):
        monkeypatch.setattr("sys.stdin", as_stdin(content))
        with pytest.raises(InputError, match="stdin is no Arrow file to read"):
            open_arrow(None, target(FEATURES))
    monkeypatch.setattr("sys.stdin", as_stdin(streamed({"text": pa.array([], pa.string())}, 1)))
    with pytest.raises(InputError, match="stdin holds no rows"):
        list(open_arrow(None, target(TEXT)).chunks(4))


# Memory


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_large_file_does_not_fill_the_memory(tmp_path: Path, name: str) -> None:
    """All of it is one record batch, or one row group."""
    rows = 300_000  # 220 MiB
    values = np.random.default_rng(1).integers(0, 256, (1, rows // 100 * 768), np.uint8)
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(768), rows, [None, pa.py_buffer(np.tile(values, (100, 1)))]
    )
    how = {"compression": "none", "use_dictionary": False} if name == "rows.parquet" else {}
    path = written(tmp_path / name, {"x": column}, batch=rows, **how)
    growth = resident_growth(f"""
info = TensorInfo(name="x", dtype="uint8", shape=("n", 768))
source = open_arrow(Path({str(path)!r}), ReadTarget(info, Path("m")))
""")
    assert path.stat().st_size > 200 << 20
    assert growth < 128


def test_rows_outlast_the_file(tmp_path: Path) -> None:
    """Were they mapped, the system would end the process."""
    path = written(tmp_path / "rows.arrow", {"text": [f"text {n}" for n in range(9)]}, batch=4)
    source = open_arrow(path, target(TEXT))
    chunks = list(source.chunks(9))
    path.write_bytes(b"")
    assert source.decode(chunks[0]).rows.tolist() == [f"text {n}" for n in range(9)]


def test_large_record_batches_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.inputs.tables.arrow.MOST_BATCH_BYTES", 0)
    monkeypatch.setattr("serving.inputs.tables.arrow.WINDOW_BYTES", 64)
    path = written(tmp_path / "rows.arrow", {"text": [f"text {n}" for n in range(99)]}, batch=90)
    source = open_arrow(path, target(TEXT))
    texts = [text for one in batches(source, 7) for text in one.rows.tolist()]
    assert texts == [f"text {n}" for n in range(99)]
    chunks = source.chunks(7)
    next(chunks)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=r"rows\.arrow changed while it was read"):
        next(chunks)
