import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tiny_classifier import classifier
from tiny_kinds import TEXTS, features, passing, table_classifier, text_classifier
from tiny_onnx import FLOAT, INT64, STRING

from serving.errors import FerryError
from serving.inputs.inputs import ReadOptions, open_inputs
from serving.inputs.sources import InputRow, UnreadableRow
from serving.model import Model, open_model

AWKWARD = ["plain", "", "a, b", 'say "hi"', "two\nlines", "naïve café", " blanks ", "\u2028"]


def opened(tmp_path: Path, content: bytes) -> Model:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    return open_model(path)


@pytest.fixture
def of_text(tmp_path: Path) -> Model:
    return opened(tmp_path, text_classifier())


@pytest.fixture
def of_numbers(tmp_path: Path) -> Model:
    return opened(tmp_path, table_classifier())


def items(path: Path, model: Model, *columns: str) -> list[InputRow | UnreadableRow]:
    return list(open_inputs([path], model, ReadOptions(columns=columns)))


def texts(path: Path, model: Model, *columns: str) -> list[str]:
    found = items(path, model, *columns)
    assert [item.id for item in found] == [f"{path}:{index}" for index in range(len(found))]
    return [item.value.item() for item in found if isinstance(item, InputRow)]


def reasons(path: Path, model: Model, *columns: str) -> dict[int, str]:
    """Why rows cannot be read, by their index."""
    found = items(path, model, *columns)
    return {
        index: item.reason for index, item in enumerate(found) if isinstance(item, UnreadableRow)
    }


def refused(path: Path, model: Model, *columns: str) -> str:
    with pytest.raises(FerryError) as caught:
        items(path, model, *columns)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def write(path: Path, columns: dict[str, list]) -> Path:
    """The same columns as a file of the path's suffix."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path)
        return path
    rows = zip(*columns.values(), strict=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([list(columns), *rows])
        else:
            for row in rows:
                file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")
    return path


SUFFIXES = pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])


# Lines


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_line_is_a_row(tmp_path: Path, of_text: Model, end: str, last: bool) -> None:
    lines = [text for text in AWKWARD if "\n" not in text]
    path = tmp_path / "rows.txt"
    path.write_bytes((end.join(lines) + (end if last else "")).encode())
    assert texts(path, of_text) == lines


def test_a_byte_order_mark_is_no_text(tmp_path: Path, of_text: Model) -> None:
    (tmp_path / "rows.txt").write_text("good\nbad\n", encoding="utf-8-sig")
    assert texts(tmp_path / "rows.txt", of_text) == ["good", "bad"]
    (tmp_path / "rows.txt").write_text("", encoding="utf-8-sig")
    assert "holds no rows" in refused(tmp_path / "rows.txt", of_text)


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path, of_text: Model) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(b"good\ncaf\xe9 noir\n\xc3\xa9\nends\x00\n")
    assert reasons(path, of_text) == {
        1: "line 2 is not UTF-8: byte 0xe9 after 3 characters",
        3: "line 4 holds a NUL byte; it is not UTF-8 text",
    }
    path.write_text("good\nbad", encoding="utf-16")
    assert len(reasons(path, of_text)) == 2


def test_lines_for_a_model_of_something_else(tmp_path: Path, of_numbers: Model) -> None:
    (tmp_path / "rows.txt").write_text("good\n")
    message = refused(tmp_path / "rows.txt", of_numbers)
    assert "takes float32 [rows, 3], which no line of text is; give such rows as .npy" in message


def test_texts_in_a_column_of_their_own(tmp_path: Path) -> None:
    """Some converters give a text model an input of [rows, 1]."""
    model = opened(tmp_path, passing(STRING, ["n", 1], out_type=FLOAT))
    (tmp_path / "rows.txt").write_text("1\n2.5\n")
    values = np.stack([item.value for item in items(tmp_path / "rows.txt", model)])
    assert model.answers(values)["out0"].tolist() == [[1.0], [2.5]]


# One column of text


@SUFFIXES
@pytest.mark.parametrize(
    "names", [("whatever",), ("id", "text"), ("sentence", "id"), ("text", "sentence")]
)
def test_the_column_with_the_text_is_found(
    tmp_path: Path, of_text: Model, suffix: str, names: tuple[str, ...]
) -> None:
    columns = {name: ["no"] * len(AWKWARD) for name in names}
    found = names[0] if len(names) == 1 else ("text" if "text" in names else "sentence")
    path = write(tmp_path / f"rows{suffix}", columns | {found: AWKWARD})
    assert texts(path, of_text) == AWKWARD


@SUFFIXES
def test_the_column_asked_for(tmp_path: Path, of_text: Model, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {"text": ["a", "b"], "review": ["good", "bad"]})
    assert texts(path, of_text, "review") == ["good", "bad"]
    assert "has no column 'reviews'; did you mean 'review'?" in refused(path, of_text, "reviews")
    assert "the model takes one text" in refused(path, of_text, "text", "review")


@SUFFIXES
def test_columns_that_leave_a_choice(tmp_path: Path, of_text: Model, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {"title": ["a"], "body": ["b"]})
    message = refused(path, of_text)
    assert "has the columns title, body; name the one with the text with --column" in message


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_values_that_are_no_text(tmp_path: Path, of_text: Model, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {"text": ["a", None, "b"]})
    place = "" if suffix == ".parquet" else "line 2: "
    assert reasons(path, of_text) == {1: f"{place}column 'text' is empty, not text"}
    path = write(tmp_path / f"rows{suffix}", {"text": [1, 2]})
    assert len(reasons(path, of_text)) == 2


def test_a_record_is_told_by_its_line(tmp_path: Path, of_text: Model) -> None:
    """Rows are counted from 0, lines of the file from 1."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n\n2,caf\xe9\n3,a,b\n4\n5,fine\n')
    assert reasons(path, of_text) == {
        1: "line 5: column 'text' is not UTF-8: byte 0xe9 after 3 characters",
        2: "line 6: it has 3 fields, the header has 2",
        3: "line 7: it has 1 fields, the header has 2",
    }
    assert [item.id for item in items(path, of_text)][-1] == f"{path}:4"


def test_lines_that_are_no_json_objects(tmp_path: Path, of_text: Model) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n[1]\n{"text": \n{"other": "b"}\n')
    assert reasons(path, of_text) == {
        1: "line 3: it is not a JSON object",
        2: "line 4: it is not a JSON object",
        3: "line 5: it has no 'text'",
    }
    path.write_text("[1]\n")
    assert "line 1 should be a JSON object" in refused(path, of_text)


# Rows of numbers


@SUFFIXES
def test_numbers_come_as_they_were_written(tmp_path: Path, of_numbers: Model, suffix: str) -> None:
    rows = features(20)
    columns = {name: rows[:, index].tolist() for index, name in enumerate("abc")}
    path = write(tmp_path / f"rows{suffix}", columns)
    values = np.stack([item.value for item in items(path, of_numbers)])
    np.testing.assert_array_equal(values, rows)
    assert values.dtype == np.float32
    turned = np.stack([item.value for item in items(path, of_numbers, "c", "a", "b")])
    np.testing.assert_array_equal(turned, rows[:, [2, 0, 1]])


@SUFFIXES
def test_as_many_columns_as_features(tmp_path: Path, of_numbers: Model, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {name: [1.5, 2.5] for name in "abcd"})
    message = refused(path, of_numbers)
    assert (
        "takes float32 [rows, 3], and there are 4 columns (a, b, c, d); name 3 of them" in message
    )
    assert "there are 2 columns (a, b)" in refused(path, of_numbers, "a", "b")
    assert len(items(path, of_numbers, "d", "b", "a")) == 2


@pytest.mark.parametrize("value", ["abc", "", "nan", "inf", "1_000", "True", "1,5"])
def test_a_value_that_is_no_number_spoils_its_row_alone(
    tmp_path: Path, of_numbers: Model, value: str
) -> None:
    path = write(tmp_path / "rows.csv", {"a": [1, 2], "b": [1, value], "c": [" 2e3 ", "-.5"]})
    shown = repr(value) if value else "empty"
    assert reasons(path, of_numbers) == {1: f"line 3: column 'b' is {shown}, not a number"}
    first = items(path, of_numbers)[0]
    assert isinstance(first, InputRow)
    assert first.value.tolist() == [1.0, 1.0, 2000.0]


def test_numbers_that_the_model_cannot_hold(tmp_path: Path, of_numbers: Model) -> None:
    path = write(
        tmp_path / "rows.jsonl", {"a": [1e39, 10**400, True, "x" * 99], "b": [0] * 4, "c": [0] * 4}
    )
    message = reasons(path, of_numbers)
    assert message[0] == "line 1: column 'a' is 1e+39, more than float32 holds"
    assert message[1].endswith("..., not a number")
    assert message[2] == "line 3: column 'a' is True, not a number"
    assert len(message[3]) < 80


def test_whole_numbers_for_a_model_that_takes_those(tmp_path: Path) -> None:
    model = opened(tmp_path, passing(INT64, ["n", 2], out_type=INT64))
    big = 2**53 + 1
    path = write(tmp_path / "rows.csv", {"a": [big, "3.0", "3.5", 2**63], "b": ["-7"] * 4})
    values = [item.value.tolist() for item in items(path, model) if isinstance(item, InputRow)]
    assert values == [[big, -7], [3, -7]]
    assert reasons(path, model)[2] == "line 4: column 'a' is '3.5', which is no int64"


def test_a_csv_without_a_header(tmp_path: Path, of_numbers: Model) -> None:
    (tmp_path / "rows.csv").write_text("0.5,1.5,2.5\n1,2,3\n")
    assert "its first line is numbers; it should name" in refused(tmp_path / "rows.csv", of_numbers)


# Files that hold nothing, or something else


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"", "is empty; its first line should name the columns"),
        ("rows.csv", b"text\n", "holds no rows"),
        ("rows.csv", b"t\xe9xt\nx\n", "the name of a column is not UTF-8"),
        ("rows.csv", b"text,text\na,b\n", "several columns named 'text'"),
        ("rows.jsonl", b"\n", "line 1 should be a JSON object"),
        ("rows.parquet", b"PAR1 nothing", "is no Parquet file to read"),
        ("rows.parquet", b"", "is no Parquet file to read"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, of_text: Model, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name, of_text)


@SUFFIXES
def test_records_for_a_model_of_images(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {"text": ["a"]})
    message = refused(path, opened(tmp_path, classifier()))
    assert "takes uint8 [rows, 4, 5, 1], which no record is; give such rows as .npy" in message


def test_how_many_there_are_is_told_where_the_file_tells(tmp_path: Path, of_text: Model) -> None:
    table = write(tmp_path / "rows.parquet", {"text": TEXTS})
    (tmp_path / "rows.txt").write_text("good\n")
    assert open_inputs([table, table], of_text).count == 2 * len(TEXTS)
    assert open_inputs([table, tmp_path / "rows.txt"], of_text).count is None


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_a_file_is_never_held_in_memory(tmp_path: Path, of_text: Model, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    line = "a long review of a film " * 20
    if suffix == ".txt":
        path.write_text(f"{line}\n" * 3_000)
    else:
        write(path, {"text": [line] * 3_000})
    tracemalloc.start()
    inputs = open_inputs([path], of_text)
    assert sum(1 for _ in inputs) == 3_000
    assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    tracemalloc.stop()
