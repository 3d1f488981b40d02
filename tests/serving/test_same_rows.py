"""The same rows give the same answers, whatever file they come in and however it is written."""

import csv
import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto
from pyarrow import parquet
from samples_of_rows import MODEL, faults_of, rows_of
from tiny_classifier import images
from tiny_images import encoded, write
from tiny_kinds import features, passing, table_classifier

from serving.batch.predict import predict
from serving.batch.run import PredictOptions
from serving.errors import FerryError, InputError, OutputError, UsageError
from serving.inputs.inputs import open_inputs
from serving.inputs.sources import ReadOptions, RowSource
from serving.inputs.tables import delimited
from serving.runtime.tensors import TensorInfo

ROWS = features(20).astype(np.float64).round(3)
NAMES = ("width", "height", "depth")
THREE = TensorInfo(name="rows", dtype="float32", shape=("batch", 3))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "table.onnx"
    path.write_bytes(table_classifier())
    return path


def answers(model: Path, path: Path, **options: object) -> list[tuple[str, ...]]:
    """What is written of every row, but for its id."""
    output = path.parent / "out.csv"
    predict(model, [path], output=output, options=PredictOptions(overwrite=True, **options))
    with output.open(newline="", encoding="utf-8") as file:
        return [tuple(row[1:]) for row in csv.reader(file)]


def refused(model: Path, path: Path, **options: object) -> str:
    with pytest.raises(FerryError) as caught:
        answers(model, path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def opened(path: Path, info: TensorInfo, **options: object) -> RowSource:
    """The only source of a path, for a model that is not there."""
    model = SimpleNamespace(input=info, path=MODEL, features=())
    (source,) = open_inputs([path], model, ReadOptions(**options)).sources  # type: ignore[arg-type]
    return source


def text(delimiter: str = ",", decimal: str = ".", index: str | None = None) -> str:
    """The rows as CSV."""
    lines = [[*([] if index is None else [index]), *NAMES]]
    for number, row in enumerate(ROWS.tolist()):
        fields = [str(one).replace(".", decimal) for one in row]
        lines.append(fields if index is None else [str(number), *fields])
    return "".join(f"{delimiter.join(line)}\n" for line in lines)


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def write_all(folder: Path) -> dict[str, Path]:
    """The rows in files of every kind."""
    folder.mkdir()
    records = [dict(zip(NAMES, row, strict=True)) for row in ROWS.tolist()]
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    lists = "".join(f"{json.dumps({'id': 1, 'features': row})}\n" for row in ROWS.tolist())
    table = pa.table(dict(zip(NAMES, ROWS.T, strict=True)))
    files = {
        "a.csv": text(),
        "semicolons.csv": text(";"),
        "commas.csv": text(";", ","),
        "a.tsv": text("\t"),
        "unnamed.csv": text(index=""),
        "unnamed0.csv": text(index="Unnamed: 0"),
        "a.csv.gz": gzip.compress(text().encode()),
        "commas.csv.zst": zstd(text(";", ",").encode()),
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines.encode()),
        "a.ndjson.zst": zstd(lines.encode()),
        "lists.jsonl": lists,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    np.save(folder / "a.npy", ROWS.astype(np.float32))
    parquet.write_table(table, folder / "a.parquet")
    parquet.write_table(
        table.append_column("__index_level_0__", pa.array(range(len(ROWS)))),
        folder / "index.parquet",
    )
    parquet.write_table(pa.table({"features": ROWS.tolist()}), folder / "lists.parquet")
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("first_bytes", [1 << 20, 0])
def test_every_kind_of_file_gives_the_same_answers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_bytes: int
) -> None:
    monkeypatch.setattr(delimited, "FIRST_BYTES", first_bytes)
    files = write_all(tmp_path / "rows")
    expected = answers(model, files["a.npy"])
    assert len(expected) == 21
    for name, path in files.items():
        assert answers(model, path) == expected, name
    np.save(tmp_path / "wide.npy", ROWS)
    assert answers(model, tmp_path / "wide.npy", cast=True) == expected


def test_what_is_guessed_is_said_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.csv").write_text(text(";", ",", index=""))
    expected = answers(model, folder)
    assert capsys.readouterr().err.splitlines() == [
        "a.csv: ';' is taken to divide fields (--delimiter)",
        "a.csv: ',' is taken to stand before decimals (--decimal)",
        "a.csv: '' is the index of pandas and not read; --column names columns",
    ]
    said = {"delimiter": ";", "decimal": ",", "columns": NAMES}
    assert answers(model, folder, **said) == expected
    assert capsys.readouterr().err == ""


def test_what_is_said_wins_over_a_guess(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a;b;c\n1,5;2;3\n")
    assert "not a number" in refused(model, path, decimal=".")
    assert "there are 1 columns (a;b;c)" in refused(model, path, delimiter=",")
    path.write_text("a|b|c\n1|2|3\n")
    assert len(answers(model, path, delimiter="|")) == 2
    path.write_text("a,b,c\n1,2,3\n")
    assert "a comma divides its fields, and --decimal" in refused(model, path, decimal=",")
    with pytest.raises(UsageError, match="--delimiter must be one character or tab, got '::'"):
        PredictOptions(delimiter="::")


def test_an_index_that_is_asked_for_is_read(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(",a,b\n0,1,2\n")
    assert "there are 2 columns (a, b)" in refused(model, tmp_path / "rows.csv")
    assert len(answers(model, tmp_path / "rows.csv", columns=("", "a", "b"))) == 2


# Values that are missing


def with_holes(folder: Path) -> dict[str, Path]:
    """Three rows, of which the second lacks a value, in files of every kind."""
    folder.mkdir()
    cells = ("", "nan", "NA", " null ")
    files = {f"_{one}.csv": f"a,b,c\n1,2,3\n1,{one},3\n4,5,6\n" for one in cells}
    files["null.jsonl"] = '{"a":1,"b":2,"c":3}\n{"a":1,"b":null,"c":3}\n{"a":4,"b":5,"c":6}\n'
    files["list.jsonl"] = '{"input":[1,2,3]}\n{"input":[1,null,3]}\n{"input":[4,5,6]}\n'
    for name, content in files.items():
        (folder / name).write_text(content)
    columns = {"a": [1.0, 1, 4], "b": [2.0, None, 5], "c": [3.0, 3, 6]}
    parquet.write_table(pa.table(columns), folder / "null.parquet")
    whole = pa.table(columns | {"b": [2, None, 5]})
    parquet.write_table(whole, folder / "whole.parquet")
    lists = pa.table({"input": [[1.0, 2, 3], [1, None, 3], [4, 5, 6]]})
    parquet.write_table(lists, folder / "list.parquet")
    rows = np.array([[1, 2, 3], [1, np.nan, 3], [4, 5, 6]], np.float32)
    np.save(folder / "a.npy", rows)
    np.savez_compressed(folder / "a.npz", input=rows)
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("first_bytes", [1 << 20, 0])
def test_a_missing_value_means_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_bytes: int
) -> None:
    monkeypatch.setattr(delimited, "FIRST_BYTES", first_bytes)
    for name, path in with_holes(tmp_path / "rows").items():
        refusing = opened(path, THREE)
        (reason,) = faults_of(refusing).values()
        assert "--missing nan reads it as NaN" in reason, name
        assert rows_of(refusing).tolist() == [[1, 2, 3], [4, 5, 6]], name
        filled = rows_of(opened(path, THREE, missing="nan"))
        np.testing.assert_array_equal(filled, [[1, 2, 3], [1, np.nan, 3], [4, 5, 6]], name)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_what_is_infinite_is_no_missing_value(tmp_path: Path, value: float) -> None:
    np.save(tmp_path / "rows.npy", np.array([[1, value, 3]], np.float32))
    (tmp_path / "rows.csv").write_text(f"a,b,c\n1,{value},3\n")
    for name in ("rows.npy", "rows.csv"):
        for missing in ("refuse", "nan"):
            (reason,) = faults_of(opened(tmp_path / name, THREE, missing=missing)).values()
            assert "inf" in reason
            assert "not a number" in reason


def test_nan_is_for_models_of_floats(tmp_path: Path, model_file: Path) -> None:
    np.save(tmp_path / "rows.npy", images(2))
    message = refused(model_file, tmp_path / "rows.npy", missing="nan")
    assert "--missing nan is for models of floats" in message


# Arrays of another dtype


def test_an_array_of_another_dtype_is_cast_where_that_is_asked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", ROWS)
    assert refused(model, tmp_path / "a.npy").endswith("[rows, 3]; --cast converts them")
    options = PredictOptions(cast=True, overwrite=True)
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    assert predict(model, paths, output=tmp_path / "out.csv", options=options).rows == 40
    assert capsys.readouterr().err == "a.npy: float64 is cast to float32\n"
    np.save(tmp_path / "wide.npy", ROWS[:, :2])
    assert "--cast" not in refused(model, tmp_path / "wide.npy", cast=True)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.BOOL])
def test_what_is_no_number_of_numpy_is_not_cast(tmp_path: Path, kind: int) -> None:
    model = tmp_path / "other.onnx"
    model.write_bytes(passing(kind, ["rows", 3]))
    np.save(tmp_path / "rows.npy", ROWS)
    assert "rows.npy holds float64 [20, 3]; " in refused(model, tmp_path / "rows.npy", cast=True)
    (tmp_path / "rows.csv").write_text(text())
    assert "which no record is" in refused(model, tmp_path / "rows.csv")


def test_a_value_that_the_dtype_cannot_hold_spoils_its_row_alone(tmp_path: Path) -> None:
    info = TensorInfo(name="images", dtype="uint8", shape=("batch", 2))
    np.save(tmp_path / "rows.npy", np.array([[1, 2], [3, 4.5], [256, 6], [7, 8]]))
    source = opened(tmp_path / "rows.npy", info, cast=True)
    assert faults_of(source) == {
        1: "a value is 4.5, which is no uint8",
        2: "a value is 256.0, which is no uint8",
    }
    assert rows_of(source).tolist() == [[1, 2], [7, 8]]


# Lists in JSON Lines


def test_lists_of_json_lines_are_rows_as_those_of_parquet(tmp_path: Path) -> None:
    info = TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 5, 1))
    rows = images(3)
    made = {"flat": (3, 20), "whole": (3, 4, 5, 1), "grey": (3, 4, 5)}
    for name, shape in made.items():
        lists = rows.reshape(shape).tolist()
        lines = "".join(f"{json.dumps({'label': 1, 'image': one})}\n" for one in lists)
        (tmp_path / f"{name}.jsonl").write_text(lines)
        found = rows_of(opened(tmp_path / f"{name}.jsonl", info))
        np.testing.assert_array_equal(found, rows, name)
        parquet.write_table(pa.table({"label": [1] * 3, "image": lists}), tmp_path / "a.parquet")
        np.testing.assert_array_equal(found, rows_of(opened(tmp_path / "a.parquet", info)), name)


def test_lists_of_json_lines_that_are_no_rows(tmp_path: Path) -> None:
    info = TensorInfo(name="ids", dtype="int64", shape=("batch", 2))
    values = [[1, 2], [3], [[1], [2, 3]], ["a", "b"], [1.5, 2], 7, None, [True, None], [3.0, 4]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps({'x': value})}\n" for value in values))
    faults = faults_of(opened(path, info))
    assert faults == {
        1: "line 2: column 'x' has values [1] where the model takes [2]",
        2: "line 3: column 'x' holds lists of different lengths",
        3: "line 4: column 'x' is 'a', not a number",
        4: "line 5: column 'x' is 1.5, which is no int64",
        5: "line 6: column 'x' has values [] where the model takes [2]",
        6: "line 7: column 'x' has values [] where the model takes [2]",
        7: "line 8: column 'x' is True, not a number",
    }
    assert rows_of(opened(path, info)).tolist() == [[1, 2], [3, 4]]
    path.write_text('{"a": [1, 2], "b": [3, 4]}\n')
    with pytest.raises(InputError, match="has the columns a, b with rows for the model"):
        opened(path, info)
    assert rows_of(opened(path, info, columns=("b",))).tolist() == [[3, 4]]


# Folders of tables


def test_a_folder_of_tables_is_read_by_name_and_what_is_none_is_named(
    model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    for name in ("b.csv", "a.csv.gz", "more/c.parquet"):
        (folder / name).write_bytes(gzip.compress(text().encode()))
    (folder / "b.csv").write_text(text())
    parquet.write_table(pa.table(dict(zip(NAMES, ROWS.T, strict=True))), folder / "more/c.parquet")
    for name in ("README.md", ".hidden.csv", "_SUCCESS"):
        (folder / name).write_text("nothing")
    output = tmp_path / "out.csv"
    report = predict(model, [folder], output=output)
    assert (report.rows, report.errors) == (60, 2)
    with output.open(newline="") as file:
        names = [row[0].rpartition(":")[0] for row in csv.reader(file)][1:]
    files = [f"{folder}/{name}" for name in ("a.csv.gz", "b.csv", "more/c.parquet")]
    assert names == [name for name in files for _ in range(20)]
    listed = (tmp_path / "out.csv.errors.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in listed] == [
        {"id": f"{folder}/README.md", "reason": "it is no table"},
        {"id": f"{folder}/_SUCCESS", "reason": "it is no table"},
    ]


def test_a_folder_of_images_names_the_tables_in_it(model_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for index, pixels in enumerate(images(3)):
        write(folder / f"{index}.png", encoded(pixels, "PNG"))
    (folder / "labels.csv").write_text("path,label\n")
    report = predict(model_file, [folder], output=tmp_path / "out.csv")
    assert (report.rows, report.errors) == (3, 1)
    assert report.first_error.startswith(f"{folder}/labels.csv: it is not an image")


# Compressed files


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_damaged_is_named(tmp_path: Path, suffix: str) -> None:
    content = (text() + "1,2,3\n" * 50_000).encode()
    packed = gzip.compress(content) if suffix == ".gz" else zstd(content)
    path = tmp_path / f"rows.csv{suffix}"
    path.write_bytes(packed[:-20])
    assert len(next(opened(path, THREE).chunks(1000)).content) == 1000  # what is before the damage
    for broken in (packed[:-20], b"nothing", packed + b"nothing"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=rf"rows\.csv{suffix} is damaged: "):
            list(opened(path, THREE).chunks(1000))
    path.write_bytes(packed * 2)  # several in one are one
    assert "line 50022: column 'width' is 'width', not a number" in str(
        faults_of(opened(path, THREE))
    )


# A run is told by how it reads


@pytest.mark.parametrize(
    "changed",
    [
        {"delimiter": ","},
        {"decimal": "."},
        {"missing": "nan"},
        {"csv_safe": True},
        {"cast": True},
    ],
)
def test_a_run_that_reads_or_writes_otherwise_is_another_one(
    model: Path, tmp_path: Path, changed: dict[str, object]
) -> None:
    (tmp_path / "rows.csv").write_text(text())
    np.save(tmp_path / "rows.npy", ROWS.astype(np.float32))
    (name,), output = changed, tmp_path / "out.csv"
    rows = tmp_path / ("rows.npy" if name == "cast" else "rows.csv")
    predict(model, [rows], output=output)
    with pytest.raises(OutputError, match=f"was begun with {name.replace('_', ' ')}"):
        predict(model, [rows], output=output, options=PredictOptions(**changed))
