"""Arrays and IDX files: mapped or unpacked, from any row on, and no more of them than needed."""

import gzip
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from samples_of_rows import (
    FEATURES,
    IMAGES,
    TEXT,
    as_stdin,
    batches,
    resident_growth,
    rows_of,
    sha256,
    target,
)

from serving.errors import InputError
from serving.inputs.arrays import (
    PlainRows,
    StreamedRows,
    open_array_rows,
    open_idx,
)
from serving.inputs.names import format_of_file
from serving.runtime.tensors import TensorInfo

ROWS = np.random.default_rng(3).normal(size=(11, 3)).astype(np.float32)


def saved(path: Path, rows: np.ndarray, how: str) -> Path:
    """The rows as a file: `how` is npy, stored or packed, and "columns" for Fortran's order."""
    rows = np.asfortranarray(rows) if "columns" in how else rows
    if "npy" in how:
        np.save(path.with_suffix(".npy"), rows)
        return path.with_suffix(".npy")
    (np.savez_compressed if "packed" in how else np.savez)(path.with_suffix(".npz"), input=rows)
    return path.with_suffix(".npz")


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("npy", PlainRows),
        ("npy columns", PlainRows),
        ("stored", StreamedRows),
        ("stored columns", StreamedRows),
        ("packed", StreamedRows),
        ("packed columns", StreamedRows),
    ],
)
@pytest.mark.parametrize("start", [0, 4, 8, 11])
def test_the_rows_from_any_chunk_on(tmp_path: Path, how: str, kind: type, start: int) -> None:
    path = saved(tmp_path / "rows", ROWS, how)
    source = open_array_rows(path, target(FEATURES))
    assert isinstance(source, kind)
    assert source.count == 11
    assert not source.slow
    made = batches(source, 4, start)
    assert sum(len(batch.rows) for batch in made) == 11 - start
    if made:
        np.testing.assert_array_equal(np.concatenate([batch.rows for batch in made]), ROWS[start:])
        assert [one for batch in made for one in batch.ids] == [
            f"{path}:{index}" for index in range(start, 11)
        ]
        assert all(batch.rows.flags.c_contiguous for batch in made)
        assert all(batch.rows.flags.aligned for batch in made)


@pytest.mark.parametrize("how", ["npy", "stored"])
def test_rows_outlast_the_file(tmp_path: Path, how: str) -> None:
    """Were they mapped, the system would end the process."""
    pixels = np.random.default_rng(1).integers(0, 256, (9, 4, 5, 1), np.uint8)
    path = saved(tmp_path / "rows", pixels, how)
    (batch,) = batches(open_array_rows(path, target(IMAGES)), 9)
    path.write_bytes(b"")
    np.testing.assert_array_equal(batch.rows, pixels)


def test_an_archive_behind_something_else(tmp_path: Path) -> None:
    path = saved(tmp_path / "rows", ROWS, "stored")
    path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())
    np.testing.assert_array_equal(rows_of(open_array_rows(path, target(FEATURES))), ROWS)


def test_texts(tmp_path: Path) -> None:
    texts = np.array(["good", "", "naïve"])
    for how in ("npy", "stored", "packed"):
        source = open_array_rows(saved(tmp_path / "rows", texts, how), target(TEXT))
        assert rows_of(source, 2).tolist() == texts.tolist()


# Which array it is


@pytest.mark.parametrize(
    ("arrays", "asked"),
    [
        ({"images": 11, "input": 5}, None),
        ({"labels": 5, "input": 11}, None),
        ({"inputs": 11, "x": 5}, None),
        ({"anything": 11}, None),
        ({"images": 5, "x": 11}, "x"),
    ],
)
def test_which_array_of_an_archive(
    tmp_path: Path, arrays: dict[str, int], asked: str | None
) -> None:
    np.savez(tmp_path / "rows.npz", **{name: ROWS[:count] for name, count in arrays.items()})
    assert open_array_rows(tmp_path / "rows.npz", target(FEATURES, array=asked)).count == 11


def refused(path: Path, name: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        batches(open_array_rows(path, target(FEATURES, array=name)))
    assert len(str(caught.value).splitlines()) == 1
    assert path.name in str(caught.value)
    return str(caught.value)


def test_an_archive_that_leaves_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, a=ROWS, b=ROWS)
    assert "holds the arrays a, b; name one with --array" in refused(path)
    assert "no array named 'c'; there are: a, b" in refused(path, "c")
    np.savez(path)
    assert "holds the arrays none" in refused(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS.astype(np.uint8), "holds uint8 [11, 3]"),
        (ROWS[:, 0], "holds float32 [11]"),
        (ROWS.astype(">f4"), "holds >f4"),
        (np.array(1, np.float32), "holds float32 []"),
    ],
)
def test_arrays_of_another_kind(tmp_path: Path, rows: np.ndarray, message: str) -> None:
    np.save(tmp_path / "rows.npy", rows)
    found = refused(tmp_path / "rows.npy")
    assert message in found
    assert "takes float32 [rows, 3]" in found


def test_no_rows_at_all(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS[:0])
    assert "holds no rows" in refused(tmp_path / "rows.npy")


# What is damaged


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_are_never_unpickled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    evil = np.array([{"a": 1}], dtype=object)
    (np.save if suffix == ".npy" else np.savez)(path, evil)
    assert "can be read" in refused(path)
    path.write_bytes(b"\x80\x04]\x94.")  # a pickle of a list
    assert "can be read" in refused(path)


@pytest.mark.parametrize("how", ["npy", "packed"])
def test_truncated_arrays(tmp_path: Path, how: str) -> None:
    path = saved(tmp_path / "rows", np.tile(ROWS, (50, 1)), how)
    whole = path.read_bytes()
    for size in (0, 5, 60, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        refused(path)


def test_an_array_that_goes_on_after_its_rows(tmp_path: Path) -> None:
    """A byte put into it would move all rows after it."""
    path = saved(tmp_path / "rows", ROWS, "npy")
    content = path.read_bytes()
    path.write_bytes(content[:-20] + b"\0" + content[-20:])
    assert "the array rows.npy goes on after the 11 rows" in refused(path)


@pytest.mark.parametrize("spoilt", [b"", b"{'descr': '<f4', 'shape': ((11, 3), }\n"])
def test_a_header_that_is_none(tmp_path: Path, spoilt: bytes) -> None:
    path = saved(tmp_path / "rows", ROWS, "npy")
    whole = path.read_bytes()
    path.write_bytes(b"\x93NUMPY\1\0" + len(spoilt).to_bytes(2, "little") + spoilt + whole[-132:])
    assert "rows.npy is not a .npy file that can be read" in refused(path)


def test_an_npy_that_calls_itself_npz(tmp_path: Path) -> None:
    with (tmp_path / "rows.npz").open("wb") as file:
        np.save(file, ROWS)
    assert "not a .npz file" in refused(tmp_path / "rows.npz")


def test_an_array_that_becomes_shorter_while_it_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "rows", ROWS, "npy")
    source = open_array_rows(path, target(FEATURES))
    first, *_, last = source.chunks(4)
    path.write_bytes(path.read_bytes()[:-8])
    np.testing.assert_array_equal(source.decode(first).rows, ROWS[:4])
    with pytest.raises(InputError, match=r"rows\.npy changed while it was read"):
        source.decode(last)


@pytest.mark.parametrize("how", ["stored", "packed"])
def test_a_spoilt_member_is_told_when_it_is_read(tmp_path: Path, how: str) -> None:
    path = saved(tmp_path / "rows", np.tile(ROWS, (500, 1)), how)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    source = open_array_rows(path, target(FEATURES))
    with pytest.raises(InputError, match=r"rows\.npz cannot be read to its end: "):
        batches(source, 64)


def test_a_sum_that_is_not_the_content_s(tmp_path: Path) -> None:
    """Nothing else tells what was spoilt and can still be unpacked."""
    path = saved(tmp_path / "rows", ROWS, "packed")
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        content[content.index(signature) + at] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="CRC"):
        batches(open_array_rows(path, target(FEATURES)))


def test_an_array_that_is_shorter_than_its_header_says(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    whole = (tmp_path / "rows.npy").read_bytes()
    for content in (whole[:-1], whole[:20], b""):
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(tmp_path / "rows.npz", "w", method) as archive:
                archive.writestr("input.npy", content)
            with pytest.raises(InputError, match=r"rows\.npz is not a \.npz file that can be read"):
                open_array_rows(tmp_path / "rows.npz", target(FEATURES))


def test_a_member_that_does_not_lie_where_the_archive_says(tmp_path: Path) -> None:
    path = saved(tmp_path / "rows", ROWS, "stored")
    content = bytearray(path.read_bytes())
    content[28:30] = b"\xff\xff"  # an extra field that reaches beyond the end
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.npz is not a \.npz file that can be read"):
        open_array_rows(path, target(FEATURES))


# Stdin


def npy(rows: np.ndarray, tmp_path: Path) -> bytes:
    np.save(tmp_path / "sent.npy", rows)
    return (tmp_path / "sent.npy").read_bytes()


def test_an_array_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = npy(ROWS, tmp_path)
    monkeypatch.setattr("sys.stdin", as_stdin(content))
    source = open_array_rows(None, target(FEATURES))
    assert source.count == 11
    assert source.fingerprint() is None
    chunks = list(source.chunks(4))
    np.testing.assert_array_equal(
        np.concatenate([source.decode(chunk).rows for chunk in chunks]), ROWS
    )
    assert list(source.decode(chunks[-1]).ids) == ["stdin:8", "stdin:9", "stdin:10"]
    header = len(content) - ROWS.nbytes
    assert [chunk.digest for chunk in chunks] == [
        sha256(content[: header + rows * 12]) for rows in (4, 8, 11)
    ]


def test_an_array_from_stdin_from_a_later_row_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = npy(ROWS, tmp_path)
    monkeypatch.setattr("sys.stdin", as_stdin(content))
    source = open_array_rows(None, target(FEATURES))
    (chunk,) = source.chunks(8, 8)
    np.testing.assert_array_equal(source.decode(chunk).rows, ROWS[8:])
    assert chunk.digest == sha256(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "stdin ends after 10 rows, its header tells of 11"),
        (lambda content: content + b"x", "stdin goes on after the 11 rows of its header"),
        (lambda content: content[:9], "stdin is not a .npy file that can be read"),
        (lambda content: b"a,b,c\n", "stdin is not a .npy file that can be read"),
    ],
)
def test_stdin_that_is_no_whole_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object, message: str
) -> None:
    content = npy(ROWS, tmp_path)
    monkeypatch.setattr("sys.stdin", as_stdin(change(content)))  # type: ignore[operator]
    with pytest.raises(InputError) as caught:
        list(open_array_rows(None, target(FEATURES)).chunks(4))
    assert message in str(caught.value)


def test_objects_from_stdin_are_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = npy(np.array([{"a": 1}], dtype=object), tmp_path)
    monkeypatch.setattr("sys.stdin", as_stdin(content))
    with pytest.raises(InputError, match="pickled objects"):
        open_array_rows(None, target(FEATURES))


# Memory


@pytest.mark.parametrize("in_columns", [False, True])
def test_a_large_array_does_not_fill_the_memory(tmp_path: Path, in_columns: bool) -> None:
    path = tmp_path / "rows.npy"
    rows = 400_000  # 200 MiB, none of which is on the disk
    header = {"descr": "|u1", "fortran_order": in_columns, "shape": (rows, 512)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + rows * 512)
    growth = resident_growth(f"""
info = TensorInfo(name="x", dtype="uint8", shape=("n", 512))
source = open_array_rows(Path({str(path)!r}), ReadTarget(info, Path("m")))
""")
    assert growth < 64


# IDX

PIXELS = np.random.default_rng(1).integers(0, 256, (11, 4, 5), np.uint8)
MNIST = TensorInfo(name="images", dtype="uint8", shape=("batch", 28, 28, 1))
LABELS = TensorInfo(name="labels", dtype="uint8", shape=("batch",))
NAMES = ("t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz")


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes()


def idx_file(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def refused_idx(path: Path, info: TensorInfo = IMAGES) -> str:
    with pytest.raises(InputError) as caught:
        batches(open_idx(path, target(info)))
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "whether"),
    [
        ("t10k-images-idx3-ubyte", True),
        ("train-images-idx3-ubyte.gz", True),
        ("train-images.idx3-ubyte", True),
        ("TRAIN.IDX", True),
        ("a.idx1.gz", True),
        ("a.idx.zip", False),
        ("ubyte", False),
        ("a.idx.npy", False),
        ("a.gz", False),
    ],
)
def test_what_is_named_as_idx(name: str, whether: bool) -> None:
    assert (format_of_file(name) == "idx") == whether


@pytest.mark.parametrize(("name", "kind"), list(zip(NAMES, (PlainRows, StreamedRows), strict=True)))
@pytest.mark.parametrize("start", [0, 4, 8, 11])
def test_grey_images_get_their_axis_of_channels(
    tmp_path: Path, name: str, kind: type, start: int
) -> None:
    path = idx_file(tmp_path / name, idx(PIXELS))
    source = open_idx(path, target(IMAGES))
    assert isinstance(source, kind)
    assert source.count == 11
    made = batches(source, 4, start)
    assert [one for batch in made for one in batch.ids] == [
        f"{path}:{index}" for index in range(start, 11)
    ]
    if made:
        rows = np.concatenate([batch.rows for batch in made])
        np.testing.assert_array_equal(rows, PIXELS[start:, ..., np.newaxis])


def test_axes_are_taken_as_they_are_where_they_fit(tmp_path: Path) -> None:
    path = idx_file(tmp_path / "rows.idx", idx(PIXELS))
    flat = TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 5))
    np.testing.assert_array_equal(rows_of(open_idx(path, target(flat))), PIXELS)
    assert "takes uint8 [rows, 4, 6]" in refused_idx(
        path, TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 6))
    )
    assert "takes float32 [rows, 4, 5]" in refused_idx(
        path, TensorInfo(name="images", dtype="float32", shape=("batch", 4, 5))
    )


def test_labels_are_no_images(tmp_path: Path) -> None:
    path = idx_file(tmp_path / "t10k-labels-idx1-ubyte", idx(np.arange(11, dtype=np.uint8)))
    message = refused_idx(path)
    assert "holds uint8 [11], one value a row, as labels are; model.onnx takes uint8 [" in message
    assert rows_of(open_idx(path, target(LABELS))).tolist() == list(range(11))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin as an IDX file does"),
        (b"\0\0\x08\x03\0\0", "does not begin as an IDX file does"),
        (b"\x93NUMPY\x01\x00v\x00", "does not begin as an IDX file does, but with 93 4e 55 4d"),
        (b"\0\0\x08\0", "does not begin as an IDX file does"),
        (idx(PIXELS.astype(">f4"), 0x0D), "holds values of type 0x0d; only bytes, 0x08, are read"),
        (idx(PIXELS[:0]), "holds no rows"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in refused_idx(idx_file(tmp_path / name, content))


def test_a_header_is_held_against_the_size_of_the_file(tmp_path: Path) -> None:
    for content in (idx(PIXELS)[:-1], idx(PIXELS) + b"x"):
        message = refused_idx(idx_file(tmp_path / "rows.idx", content))
        assert f"has {len(content)} bytes, by its header they must be 236" in message


def test_a_compressed_file_is_held_against_its_header_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "rows.idx.gz"
    assert "ends after 10 rows, its header tells of 11" in refused_idx(
        idx_file(path, idx(PIXELS)[:-1])
    )
    assert "goes on after the 11 rows" in refused_idx(idx_file(path, idx(PIXELS) + b"x"))


def test_a_compressed_file_that_is_not_whole(tmp_path: Path) -> None:
    path = idx_file(tmp_path / "rows.idx.gz", idx(np.tile(PIXELS, (100, 1, 1))))
    whole = path.read_bytes()
    for size in (5, 25, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused_idx(path)
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    assert "cannot be read to its end: CRC check failed" in refused_idx(path)
    path.write_bytes(b"no gzip at all")
    assert "is not a whole gzip file" in refused_idx(path)


def test_the_official_files_of_mnist(tmp_path: Path) -> None:
    folder = Path(os.environ.get("FERRY_MIRROR", "")) / "mnist"
    packed = folder / "t10k-images-idx3-ubyte.gz"
    if not packed.is_file():
        pytest.skip("FERRY_MIRROR has no MNIST")
    source = open_idx(packed, target(MNIST))
    assert source.count == 10_000
    rows = rows_of(source, 512)
    assert rows.shape == (10_000, 28, 28, 1)
    assert round(float(rows.mean()), 2) == 33.79
    plain = tmp_path / "t10k-images-idx3-ubyte"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    np.testing.assert_array_equal(rows_of(open_idx(plain, target(MNIST)), 4096), rows)
    assert "as labels are" in refused_idx(folder / "t10k-labels-idx1-ubyte.gz", MNIST)
