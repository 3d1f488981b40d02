"""Texts, CSV and JSON Lines: which columns are read, what is no value, from any row on, stdin."""

import csv
import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
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
    target,
)
from tiny_kinds import features

from serving.errors import InputError
from serving.inputs.inputs import open_inputs
from serving.inputs.sources import ReadOptions, RowSource
from serving.inputs.tables import delimited
from serving.inputs.tables.delimited import open_csv
from serving.inputs.tables.json_lines import open_json_lines
from serving.inputs.text import BYTE_ORDER_MARK, open_lines
from serving.runtime.tensors import TensorInfo

TEXTS = ["good", "", "naïve", " b ", "\u2028", "x,y", "7", "8", "9", "10", "last"]
CSV = 'id,text\n0,good\n1,\n\n2,naïve\n3,"two\nlines"\n4,a\n5\n6,b\n'
JSONL = '{"a": 1, "b": 2, "c": 3}\n\n{"a": 4, "b": 5, "c": "6"}\n[]\n{"a": 7, "b": 8, "c": 9.5}\n'
AWKWARD = ["plain", "", "a, b", 'say "hi"', "two\nlines", "naïve café", " blanks ", "\u2028"]
SUFFIXES = pytest.mark.parametrize("suffix", [".csv", ".jsonl"])


def opened(
    path: Path | str,
    info: TensorInfo,
    *columns: str,
    form: str | None = None,
    features: tuple[str, ...] = (),
) -> RowSource:
    model = SimpleNamespace(input=info, path=MODEL, features=features)
    options = ReadOptions(columns=columns, input_format=form)
    (source,) = open_inputs([path], model, options).sources  # type: ignore[arg-type]
    return source


def texts(path: Path, *columns: str) -> list[str]:
    return list(rows_of(opened(path, TEXT, *columns)))


def reasons(path: Path, info: TensorInfo) -> dict[int, str]:
    """Why rows cannot be read, by their index."""
    return faults_of(opened(path, info))


def refused(path: Path, info: TensorInfo, *columns: str) -> str:
    with pytest.raises(InputError) as caught:
        batches(opened(path, info, *columns))
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def write(path: Path, columns: dict[str, list]) -> Path:
    """The same columns as a file of the path's suffix."""
    rows = zip(*columns.values(), strict=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([list(columns), *rows])
        else:
            for row in rows:
                file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")
    return path


# Lines


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_line_is_a_row(tmp_path: Path, end: str, last: bool) -> None:
    lines = [text for text in AWKWARD if "\n" not in text]
    path = tmp_path / "rows.txt"
    path.write_bytes((end.join(lines) + (end if last else "")).encode())
    assert texts(path) == lines
    column = TensorInfo(name="text", dtype="object", shape=("batch", 1))
    assert rows_of(opened(path, column)).tolist() == [[line] for line in lines]


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(b"good\ncaf\xe9 noir\n\xc3\xa9\nends\x00\n")
    assert reasons(path, TEXT) == {
        1: "line 2 is not UTF-8: byte 0xe9 after 3 characters",
        3: "line 4 holds a NUL byte; it is not UTF-8 text",
    }
    path.write_text("good\nbad", encoding="utf-16")
    assert len(reasons(path, TEXT)) == 2


def test_lines_for_a_model_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("good\n")
    message = refused(tmp_path / "rows.txt", FEATURES)
    assert "takes float32 [rows, 3], which no line of text is; give such rows as .npy" in message


# One column of text


@SUFFIXES
@pytest.mark.parametrize(
    "names", [("whatever",), ("id", "text"), ("sentence", "id"), ("text", "sentence")]
)
def test_the_column_with_the_text_is_found(
    tmp_path: Path, suffix: str, names: tuple[str, ...]
) -> None:
    columns = {name: ["no"] * len(AWKWARD) for name in names}
    found = names[0] if len(names) == 1 else ("text" if "text" in names else "sentence")
    path = write(tmp_path / f"rows{suffix}", columns | {found: AWKWARD})
    assert texts(path) == AWKWARD


@SUFFIXES
def test_the_column_asked_for(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {"text": ["a", "b"], "review": ["good", "bad"]})
    assert texts(path, "review") == ["good", "bad"]
    assert "has no column 'reviews'; did you mean 'review'?" in refused(path, TEXT, "reviews")
    assert "the model takes one text" in refused(path, TEXT, "text", "review")


@SUFFIXES
def test_columns_that_leave_a_choice(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {"title": ["a"], "body": ["b"]})
    message = refused(path, TEXT)
    assert "has the columns title, body; name the one with the text with --column" in message


def test_values_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"text": ["a", None, 1, "b"]})
    assert reasons(path, TEXT) == {
        1: "line 2: column 'text' is empty, not text",
        2: "line 3: column 'text' is 1, not text",
    }


def test_a_nul_of_a_text_is_kept_where_it_is_written_as_one(tmp_path: Path) -> None:
    """In a file of plain text it means that the file is none."""
    path = write(tmp_path / "rows.jsonl", {"text": ["ends\0", "in\0side", "\0"]})
    assert texts(path) == ["ends\0", "in\0side", "\0"]
    path = write(tmp_path / "rows.csv", {"text": ["ends\0", "fine"]})
    assert reasons(path, TEXT) == {
        0: "line 2: column 'text' holds a NUL byte; it is not UTF-8 text"
    }


def test_a_record_is_told_by_its_line(tmp_path: Path) -> None:
    """Rows are counted from 0, lines of the file from 1."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n\n2,caf\xe9\n3,a,b\n4\n5,fine\n')
    assert reasons(path, TEXT) == {
        1: "line 5: column 'text' is not UTF-8: byte 0xe9 after 3 characters",
        2: "line 6: it has 3 fields, the header has 2",
        3: "line 7: it has 1 fields, the header has 2",
    }
    assert batches(opened(path, TEXT), 8)[0].ids[4] == f"{path}:4"


def test_lines_that_are_no_json_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n[1]\n{"text": \n{"other": "b"}\n')
    assert reasons(path, TEXT) == {
        1: "line 3: it is not a JSON object",
        2: "line 4: it is not a JSON object",
        3: "line 5: it has no 'text'",
    }
    path.write_text("[1]\n")
    assert "line 1 should be a JSON object" in refused(path, TEXT)


# Rows of numbers


@SUFFIXES
def test_numbers_come_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    rows = features(20)
    columns = {name: rows[:, index].tolist() for index, name in enumerate("abc")}
    path = write(tmp_path / f"rows{suffix}", columns)
    values = rows_of(opened(path, FEATURES))
    np.testing.assert_array_equal(values, rows)
    assert values.dtype == np.float32
    turned = rows_of(opened(path, FEATURES, "c", "a", "b"))
    np.testing.assert_array_equal(turned, rows[:, [2, 0, 1]])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_model_that_names_its_columns_takes_them_by_their_names(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"rows{suffix}"
    columns: dict[str, list[float]] = {"label": [9], "c": [3], "a": [1], "b": [2]}
    if suffix == ".parquet":
        parquet.write_table(pa.table(columns), path)
    else:
        write(path, columns)
    np.testing.assert_array_equal(
        rows_of(opened(path, FEATURES, features=("a", "b", "c"))), [[1, 2, 3]]
    )
    others = opened(path, FEATURES, "c", "b", "label", features=("a", "b", "c"))
    np.testing.assert_array_equal(rows_of(others), [[3, 2, 9]])
    with pytest.raises(InputError, match=r"no column 'lable', which the model takes .*'label'\?$"):
        batches(opened(path, FEATURES, features=("a", "b", "lable")))


@SUFFIXES
def test_as_many_columns_as_features(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {name: [1.5, 2.5] for name in "abcd"})
    message = refused(path, FEATURES)
    assert (
        "takes float32 [rows, 3], and there are 4 columns (a, b, c, d); name 3 of them" in message
    )
    assert "there are 2 columns (a, b)" in refused(path, FEATURES, "a", "b")
    assert len(rows_of(opened(path, FEATURES, "d", "b", "a"))) == 2


@pytest.mark.parametrize("value", ["abc", "", "nan", "inf", "1_000", "True", "1,5"])
def test_a_value_that_is_no_number_spoils_its_row_alone(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "rows.csv", {"a": [1, 2], "b": [1, value], "c": [" 2e3 ", "-.5"]})
    shown = repr(value) if value else "empty"
    hint = "; --missing nan reads it as NaN" if value in ("", "nan") else ""
    hint = "; --decimal , reads it in CSV" if value == "1,5" else hint
    assert reasons(path, FEATURES) == {1: f"line 3: column 'b' is {shown}, not a number{hint}"}
    assert rows_of(opened(path, FEATURES)).tolist() == [[1.0, 1.0, 2000.0]]


def test_numbers_that_the_model_cannot_hold(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", {"a": [1e39, 10**400, True, "x" * 99], "b": [0] * 4, "c": [0] * 4}
    )
    message = reasons(path, FEATURES)
    assert message[0] == "line 1: column 'a' is 1e+39, more than float32 holds"
    assert message[1].endswith("..., not a number")
    assert message[2] == "line 3: column 'a' is True, not a number"
    assert len(message[3]) < 80


def test_whole_numbers_for_a_model_that_takes_those(tmp_path: Path) -> None:
    big = 2**53 + 1
    path = write(tmp_path / "rows.csv", {"a": [big, "3.0", "3.5", 2**63], "b": ["-7"] * 4})
    assert rows_of(opened(path, IDS)).tolist() == [[big, -7], [3, -7]]
    assert reasons(path, IDS)[2] == "line 4: column 'a' is '3.5', which is no int64"


def test_a_csv_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("0.5,1.5,2.5\n1,2,3\n")
    assert "its first line is numbers; it should name" in refused(tmp_path / "rows.csv", FEATURES)


# Files that hold nothing, or something else


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"", "is empty; its first line should name the columns"),
        ("rows.csv", b"text\n", "holds no rows"),
        ("rows.csv", b"t\xe9xt\nx\n", "the name of a column is not UTF-8"),
        ("rows.csv", b"text,text\na,b\n", "several columns named 'text'"),
        ("rows.jsonl", b"\n", "holds no rows"),
        ("rows.jsonl", b"[]\n", "line 1 should be a JSON object"),
        ("rows.txt", BYTE_ORDER_MARK, "holds no rows"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name, TEXT)


@SUFFIXES
def test_records_for_a_model_of_images(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {"text": ["a"]})
    message = refused(path, IMAGES)
    assert "takes uint8 [rows, 4, 5, 1], which no record is; give such rows as .npy" in message


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_a_file_is_never_held_in_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    line = "a long review of a film " * 20
    if suffix == ".txt":
        path.write_text(f"{line}\n" * 3_000)
    else:
        write(path, {"text": [line] * 3_000})
    tracemalloc.start()
    source = opened(path, TEXT)
    assert sum(len(source.decode(chunk).rows) for chunk in source.chunks(64)) == 3_000
    assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    tracemalloc.stop()


# From any row on


def lines(path: Path) -> RowSource:
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8-sig")
    return open_lines(path, target(TEXT))


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
    made = batches(open_csv(path, target(TEXT)), 2, start)
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
    made = batches(open_json_lines(path, target(FEATURES)), 1, start)
    rows = [[1, 2, 3], [4, 5, 6], None, [7, 8, 9.5]]
    assert [batch.rows.tolist() for batch in made] == [[row] if row else [] for row in rows[start:]]
    if start <= 2:
        assert made[2 - start].faults == {0: "line 4: it is not a JSON object"}


def test_what_comes_before_a_fault_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\na\nb\nc\n"never closed\n' + "x" * 200_000)
    chunks = open_csv(path, target(TEXT)).chunks(2)
    assert [next(chunks).count, next(chunks).count] == [2, 1]
    with pytest.raises(InputError, match="line 6: field larger than field limit"):
        next(chunks)


# Stdin


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes | str, form: str, info=TEXT) -> RowSource:
    content = content.encode() if isinstance(content, str) else content
    monkeypatch.setattr("sys.stdin", as_stdin(content))
    return opened("-", info, form=form)


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
    assert list(piped(monkeypatch, content, "text").chunks(4, 8)) == chunks[2:]
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


@pytest.mark.parametrize(
    ("form", "sent"),
    [
        ("text", b"a\nb\n"),
        ("csv", b"text\na\nb\n"),
        ("jsonl", b'{"text": "a"}\n{"text": "b"}\n'),
        ("list", b"a.png\nb.png\n"),
    ],
)
def test_rows_are_there_as_soon_as_they_came(
    monkeypatch: pytest.MonkeyPatch, form: str, sent: bytes
) -> None:
    """The writer's end stays open: whoever waited for more would wait for ever."""
    reading, writing = os.pipe()
    with open(reading, "rb") as file, open(writing, "wb", buffering=0) as pipe:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        pipe.write(sent)
        chunks = opened("-", IMAGES if form == "list" else TEXT, form=form).chunks(2)
        assert next(chunks).count == 2
        pipe.write(sent.splitlines(keepends=True)[-1])
        pipe.close()
        assert next(chunks).count == 1
        assert next(chunks, None) is None


def test_stdin_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO(b"a long review of a film\n" * 100_000)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=content))
    source = opened("-", TEXT, form="text")
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
            patch.setattr(delimited, "FIRST_BYTES", first)
            found.append(read(path, info, size))
    assert found[0] == found[1]


def read(path: Path, info: TensorInfo, size: int) -> tuple[list[object], str]:
    """What can be read of a table, and the fault that ends it."""
    made: list[object] = []
    try:
        source = open_csv(path, target(info))
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
    monkeypatch.setattr(delimited, "FIRST_BYTES", 0)
    lines = [f"{index},0.5,{-index}" for index in range(3000)]
    lines[1500] = "1500,x,2"
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c", *lines, ""]))
    source = open_csv(tmp_path / "rows.csv", target(FEATURES))
    chunks = list(source.chunks(1024, start))
    assert all(isinstance(chunk.content, delimited.CsvBlock) for chunk in chunks)
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
from serving.inputs.sources import ReadTarget
from serving.inputs.tables.delimited import open_csv
from serving.runtime.tensors import TensorInfo
info = TensorInfo(name="features", dtype="float32", shape=("batch", 3))
source = open_csv(Path({str(tmp_path / "rows.csv")!r}), ReadTarget(info, Path("m")))
print(sum(len(source.decode(chunk).rows) for chunk in source.chunks(1024)))
print({{"pyarrow", "PIL"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "2000\nset()\n", done.stderr
