"""Lines and tables of lines as sources: from any row on, from files and from stdin."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples_of_rows import (
    FEATURES,
    IDS,
    IMAGES,
    MODEL,
    ROOT,
    TEXT,
    as_stdin,
    batches,
    faults_of,
    rows_of,
    sha256,
)

from serving.errors import InputError
from serving.inputs import tables
from serving.inputs.inputs import ReadOptions, open_inputs
from serving.inputs.sources import RowSource
from serving.inputs.tables import open_table
from serving.inputs.text import open_lines
from serving.runtime.tensors import TensorInfo

TEXTS = ["good", "", "naïve", " b ", "\u2028", "x,y", "7", "8", "9", "10", "last"]
CSV = 'id,text\n0,good\n1,\n\n2,naïve\n3,"two\nlines"\n4,a\n5\n6,b\n'
JSONL = '{"a": 1, "b": 2, "c": 3}\n\n{"a": 4, "b": 5, "c": "6"}\n[]\n{"a": 7, "b": 8, "c": 9.5}\n'


def lines(path: Path) -> RowSource:
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8-sig")
    return open_lines(path, TEXT, MODEL)


@pytest.mark.parametrize("start", [0, 4, 8, 11])
def test_the_lines_from_any_chunk_on(tmp_path: Path, start: int) -> None:
    source = lines(tmp_path / "rows.txt")
    made = batches(source, 4, start)
    assert [text for batch in made for text in batch.rows] == TEXTS[start:]
    assert all(batch.rows.dtype == object for batch in made)
    assert [one for batch in made for one in batch.ids] == [
        f"{tmp_path / 'rows.txt'}:{index}" for index in range(start, 11)
    ]


@pytest.mark.parametrize("start", [0, 2, 4, 6])
def test_the_records_from_any_chunk_on(tmp_path: Path, start: int) -> None:
    """A fault tells its line, however the file was cut."""
    path = tmp_path / "rows.csv"
    path.write_text(CSV)
    made = batches(open_table(path, TEXT, MODEL), 2, start)
    texts = ["good", "", "naïve", "two\nlines", "a", None, "b"]
    left = [text for text in texts[start:] if text is not None]
    assert [text for batch in made for text in batch.rows] == left
    message = [batch.unreadable for batch in made if batch.faults]
    assert [(one.id, one.reason) for (one,) in message] == (
        [(f"{path}:5", "line 9: it has 1 fields, the header has 2")] if start < 6 else []
    )


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_the_objects_from_any_chunk_on(tmp_path: Path, start: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(JSONL)
    made = batches(open_table(path, FEATURES, MODEL), 1, start)
    rows = [[1, 2, 3], [4, 5, 6], None, [7, 8, 9.5]]
    assert [batch.rows.tolist() for batch in made] == [[row] if row else [] for row in rows[start:]]
    if start <= 2:
        assert made[2 - start].faults == {0: "line 4: it is not a JSON object"}


def test_more_than_is_there_was_read_before(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.txt holds 11 rows, and 16 were read of it before"):
        batches(lines(tmp_path / "rows.txt"), 4, 16)


def test_what_comes_before_a_fault_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\na\nb\nc\n"never closed\n' + "x" * 200_000)
    chunks = open_table(path, TEXT, MODEL).chunks(2)
    assert [next(chunks).count, next(chunks).count] == [2, 1]
    with pytest.raises(InputError, match="line 6: field larger than field limit"):
        next(chunks)


def test_a_chunk_with_a_spoilt_row_gives_the_same_numbers(tmp_path: Path) -> None:
    """A chunk of good rows is read at once, one with a fault row by row."""
    rows = np.random.default_rng(1).normal(size=(8, 3)) * 1e3
    text = [",".join(map(repr, row.tolist())) for row in rows]
    for spoilt in ("x,1,2", "1,2", "1_0,2,3", "nan,2,3", "1e39,2,3"):
        (tmp_path / "rows.csv").write_text("\n".join(["a,b,c", *text, spoilt]))
        source = open_table(tmp_path / "rows.csv", FEATURES, MODEL)
        for size in (8, 16):
            np.testing.assert_array_equal(rows_of(source, size), rows.astype(np.float32))
            assert list(faults_of(source, size)) == [8]


def test_whole_numbers_beyond_the_53_bits_of_a_float(tmp_path: Path) -> None:
    big = 2**53 + 1
    for spoilt in ("", "1.5,1\n"):
        (tmp_path / "rows.csv").write_text(f"a,b\n{big},-{big}\n{spoilt}")
        rows = rows_of(open_table(tmp_path / "rows.csv", IDS, MODEL))
        assert rows.tolist() == [[big, -big]]


# Stdin


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes | str, form: str, info=TEXT) -> RowSource:
    content = content.encode() if isinstance(content, str) else content
    monkeypatch.setattr("sys.stdin", as_stdin(content))
    return open_stdin(form, info)


def open_stdin(form: str, info: TensorInfo = TEXT) -> RowSource:
    model = SimpleNamespace(input=info, path=MODEL)
    (source,) = open_inputs(["-"], model, ReadOptions(input_format=form)).sources
    return source


def test_lines_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    source = piped(monkeypatch, content, "text")
    assert source.count is None
    assert source.fingerprint() is None
    chunks = list(source.chunks(4))
    assert [text for chunk in chunks for text in source.decode(chunk).rows] == TEXTS
    assert source.decode(chunks[1]).ids[0] == "stdin:4"
    ends = ["".join(f"{text}\n" for text in TEXTS[:end]).encode() for end in (4, 8, 11)]
    assert [chunk.digest for chunk in chunks] == [sha256(end) for end in ends]


def test_a_later_part_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    source = piped(monkeypatch, content, "text")
    (chunk,) = source.chunks(8, 8)
    assert source.decode(chunk).rows.tolist() == TEXTS[8:]
    assert chunk.digest == sha256(content)
    with pytest.raises(InputError, match="stdin holds 11 rows, and 12 were read of it before"):
        list(piped(monkeypatch, content, "text").chunks(4, 12))


def test_a_table_on_stdin_is_read_up_to_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of a chunk is that of all lines up to its end, the header's as well."""
    source = piped(monkeypatch, CSV, "csv")
    chunks = list(source.chunks(4))
    assert [text for chunk in chunks for text in source.decode(chunk).rows] == [
        *("good", "", "naïve", "two\nlines", "a", "b"),
    ]
    assert source.decode(chunks[1]).faults == {1: "line 9: it has 1 fields, the header has 2"}
    end = CSV.index("4,a")
    assert [chunk.digest for chunk in chunks] == [
        sha256(CSV[:end].encode()),
        sha256(CSV.encode()),
    ]


def test_objects_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    source = piped(monkeypatch, JSONL, "jsonl", FEATURES)
    chunks = list(source.chunks(8))
    assert source.decode(chunks[0]).rows.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9.5]]
    assert chunks[0].digest == sha256(JSONL.encode())


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        ("", "text", "stdin holds no rows"),
        ("", "csv", "stdin is empty; its first line should name the columns"),
        ("text\n", "csv", "stdin holds no rows"),
        ("\n[]\n", "jsonl", "stdin: line 1 should be a JSON object"),
        ("a,b\n1,2\n", "csv", "stdin has the columns a, b; name the one with the text"),
    ],
)
def test_stdin_that_holds_nothing_to_read(
    monkeypatch: pytest.MonkeyPatch, content: str, form: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        list(piped(monkeypatch, content, form).chunks(4))
    assert message in str(caught.value)


def test_stdin_for_a_model_of_something_else() -> None:
    for form, message in (("text", "no line of text is"), ("csv", "no record is")):
        with pytest.raises(
            InputError, match=rf"^stdin: model\.onnx takes uint8 .*, which {message}"
        ):
            open_stdin(form, IMAGES)


@pytest.mark.parametrize(
    ("form", "sent"),
    [("text", b"a\nb\n"), ("csv", b"text\na\nb\n"), ("jsonl", b'{"text": "a"}\n{"text": "b"}\n')],
)
def test_rows_are_there_as_soon_as_they_came(
    monkeypatch: pytest.MonkeyPatch, form: str, sent: bytes
) -> None:
    """The writer's end stays open: whoever waited for more would wait for ever."""
    reading, writing = os.pipe()
    with open(reading, "rb") as file, open(writing, "wb", buffering=0) as pipe:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        pipe.write(sent)
        source = open_stdin(form)
        chunks = source.chunks(2)
        assert source.decode(next(chunks)).rows.tolist() == ["a", "b"]
        pipe.write(sent.splitlines(keepends=True)[-1])
        pipe.close()
        assert source.decode(next(chunks)).rows.tolist() == ["b"]
        assert next(chunks, None) is None


def test_stdin_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    content = io.BytesIO(b"a long review of a film\n" * 100_000)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=content))
    source = open_stdin("text")
    tracemalloc.start()
    assert sum(len(source.decode(chunk).rows) for chunk in source.chunks(64)) == 100_000
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()


# Blocks of CSV, which pyarrow reads

FIELDS = st.one_of(
    st.floats().map(repr),
    st.integers(-300, 300).map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(
        ["", " 7 ", "\t7", "+7", "1_000", "1e3", "1e400", "1e-400", "-.5", "5.", "3.0"]
    ),
    st.sampled_from(["0x10", "nan", "-inf", "Infinity", "٣", "1 2", "true", "NULL", "a\x00"]),
    st.sampled_from(['"4"', '"5\n"', '4"', "\r"]),
)
RECORDS = st.lists(st.lists(FIELDS, min_size=2, max_size=2).map(",".join), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    records=st.lists(st.one_of(RECORDS.map("\n".join), st.sampled_from(["", "1", "1,2,3", '1,"2'])))
    .map("\n".join)
    .filter(str.strip),
    end=st.sampled_from(["\n", "\r\n"]),
    dtype=st.sampled_from(["float32", "float64", "int64", "uint8"]),
    size=st.integers(1, 5),
)
def test_blocks_give_the_rows_and_the_reasons_of_records(
    tmp_path_factory: pytest.TempPathFactory, records: str, end: str, dtype: str, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "blocks.csv"
    path.write_bytes(f"a,b\n{records}\n".replace("\n", end).encode())
    info = TensorInfo(name="rows", dtype=dtype, shape=("batch", 2))
    found = []
    for first in (1 << 20, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "FIRST_BYTES", first)
            found.append(read(path, info, size))
    assert found[0] == found[1]


def read(path: Path, info: TensorInfo, size: int) -> tuple[list[object], str]:
    """What can be read of a table, and the fault that ends it."""
    made: list[object] = []
    try:
        source = open_table(path, info, MODEL)
        for chunk in source.chunks(size):
            batch = source.decode(chunk)
            made.append((list(batch.ids), batch.rows.tolist(), batch.faults, chunk.count))
    except InputError as error:
        return made, str(error)
    return made, ""


@pytest.mark.parametrize("start", [0, 1024, 2048])
def test_a_block_that_pyarrow_refuses_is_read_by_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    monkeypatch.setattr(tables, "FIRST_BYTES", 0)
    lines = [f"{index},0.5,{-index}" for index in range(3000)]
    lines[1500] = "1500,x,2"
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c", *lines, ""]))
    source = open_table(tmp_path / "rows.csv", FEATURES, MODEL)
    chunks = list(source.chunks(1024, start))
    assert all(isinstance(chunk.content, tables.CsvBlock) for chunk in chunks)
    rows = np.concatenate([source.decode(chunk).rows for chunk in chunks])
    expected = [[index, 0.5, -index] for index in range(start, 3000) if index != 1500]
    assert rows.tolist() == expected
    faults = [source.decode(chunk).faults for chunk in chunks]
    assert [fault for fault in faults if fault] == (
        [{476: "line 1502: column 'b' is 'x', not a number"}] if start <= 1024 else []
    )


def test_a_small_table_does_not_wait_for_pyarrow(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,c\n" + "1,2,3\n" * 2000)
    program = f"""
import sys
from pathlib import Path
from serving.inputs.tables import open_table
from serving.runtime.tensors import TensorInfo
info = TensorInfo(name="features", dtype="float32", shape=("batch", 3))
source = open_table(Path({str(tmp_path / "rows.csv")!r}), info, Path("model.onnx"))
print(sum(len(source.decode(chunk).rows) for chunk in source.chunks(1024)))
print({{"pyarrow", "PIL"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "2000\nset()\n", done.stderr
