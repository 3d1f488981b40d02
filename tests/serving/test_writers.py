import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from serving.batch.answers import Columns
from serving.batch.writers import format_of, open_writer
from serving.errors import ModelError, UsageError

LABELS = ("cat", 'a "b", c', "émeu\n")
METADATA = {"ferry.model_sha256": "ab" * 32, "ferry.version": "0.1.0"}
FORMS = pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "arrow"])


def columns(rows: int, seed: int = 0) -> Columns:
    """Text, whole numbers and floats."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, 3, rows)
    return {
        "id": np.array([f"dir/ü,{seed}-{row}.png" for row in range(rows)], object),
        "label": np.array([LABELS[at] for at in index], object),
        "label_index": index,
        "probability": rng.random(rows).astype(np.float32),
        'probability_a "b", c': rng.random(rows),
    }


def pictures(rows: int) -> Columns:
    """A number a row, a block of floats a row, and words."""
    rng = np.random.default_rng(4)
    return {
        "id": np.array([f"x:{row}" for row in range(rows)], object),
        "error": rng.random(rows).astype(np.float32),
        "reconstruction": rng.random((rows, 2, 3, 1)).astype(np.float32),
        "words": np.array([["a", 'b"c']] * rows, object),
    }


def test_what_a_spreadsheet_would_run_is_a_text_in_a_safe_csv(tmp_path: Path) -> None:
    words = ["=1+1", "+1", "-1", "@a", "\ta", "a=1", "", "'"]
    made: Columns = {
        "id": np.array(words, object),
        "=label": np.array(words, object),
        "score": np.full(len(words), -0.5, np.float32),
        "list": np.full((len(words), 2), -1.5, np.float32),
    }
    for safe in (False, True):
        with open_writer(tmp_path / "out.csv", "csv", made, METADATA, safe=safe) as write:
            write(made)
        shown = [f"'{word}" if safe and index < 5 else word for index, word in enumerate(words)]
        with (tmp_path / "out.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["id", "'=label" if safe else "=label", "score", "list"]
        assert rows == [[word, word, "-0.5", "[-1.5, -1.5]"] for word in shown]


def write(output: Path, form: str, batches: int = 3) -> Columns:
    """Write some batches of 5 rows, and return the columns of them all."""
    parts = [columns(5, seed) for seed in range(batches)]
    with open_writer(output, form, parts[0], METADATA) as write:
        for part in parts:
            write(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read(path: Path, form: str) -> Iterator[dict[str, object]]:
    if form == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    elif form == "jsonl":
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            yield json.loads(line)
    elif form == "arrow":
        with pyarrow.OSFile(str(path)) as source:
            yield from pyarrow.ipc.open_file(source).read_all().to_pylist()
    else:
        yield from pyarrow.parquet.read_table(path).to_pylist()


@FORMS
def test_what_is_written_reads_back_to_the_bit(tmp_path: Path, form: str) -> None:
    written = write(tmp_path / "out", form)
    rows = list(read(tmp_path / "out", form))
    assert list(rows[0]) == list(written)
    for name, values in written.items():
        found = [row[name] for row in rows]
        if values.dtype == object:
            assert found == values.tolist()
        else:
            np.testing.assert_array_equal(np.array(found).astype(values.dtype), values)


@FORMS
def test_many_values_a_row(tmp_path: Path, form: str) -> None:
    written = pictures(4)
    with open_writer(tmp_path / "out", form, written, METADATA) as write:
        write(written)
    rows = list(read(tmp_path / "out", form))
    cells = [row["reconstruction"] for row in rows]
    words = [row["words"] for row in rows]
    if form == "csv":
        cells, words = list(map(json.loads, cells)), list(map(json.loads, words))
    assert words == written["words"].tolist()
    shape = (4, 2, 3, 1) if form == "jsonl" else (4, 6)
    assert np.shape(cells) == shape
    found = np.array(cells, np.float32).reshape(4, 2, 3, 1)
    np.testing.assert_array_equal(found, written["reconstruction"])


def test_parquet_tells_the_shape_of_a_list(tmp_path: Path) -> None:
    with open_writer(tmp_path / "out", "parquet", pictures(2), METADATA) as write:
        write(pictures(2))
        write(pictures(3))
    schema = pyarrow.parquet.read_schema(tmp_path / "out")
    assert schema.metadata[b"ferry.shape.reconstruction"] == b"[2, 3, 1]"
    assert b"ferry.shape.error" not in schema.metadata
    assert str(schema.field("reconstruction").type) == "list<element: float>"
    table = pyarrow.parquet.read_table(tmp_path / "out")
    expected = [row.ravel().tolist() for rows in (2, 3) for row in pictures(rows)["reconstruction"]]
    assert table["reconstruction"].to_pylist() == expected


def test_parquet_refuses_a_shape_that_changes(tmp_path: Path) -> None:
    def changing() -> None:
        first = pictures(2)
        with open_writer(tmp_path / "out", "parquet", first, METADATA) as write:
            write(first)
            write(first | {"reconstruction": np.zeros((2, 5), np.float32)})

    with pytest.raises(
        ModelError, match=r"reconstruction has rows of shape \[5\] after \[2, 3, 1\]"
    ):
        changing()
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    tenth = {
        "id": np.array(["a"], object),
        "score": np.array([0.1], np.float32),
        "many": np.array([[0.05, 1e-9]], np.float32),
    }
    with open_writer(tmp_path / "out.csv", "csv", tenth, {}) as write:
        write(tenth)
    assert (tmp_path / "out.csv").read_text().splitlines()[-1] == 'a,0.1,"[0.05, 1e-09]"'


def test_parquet_has_types_and_says_which_model(tmp_path: Path) -> None:
    write(tmp_path / "out.parquet", "parquet")
    schema = pyarrow.parquet.read_schema(tmp_path / "out.parquet")
    assert [str(field.type) for field in schema] == ["string", "string", "int64", "float", "double"]
    assert schema.metadata[b"ferry.model_sha256"] == b"ab" * 32
    assert schema.metadata[b"ferry.version"] == b"0.1.0"


def test_small_batches_make_no_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out.parquet", "parquet", batches=9)
    assert pyarrow.parquet.read_metadata(tmp_path / "out.parquet").num_row_groups == 1
    monkeypatch.setattr("serving.batch.writers.GROUP_CELLS", 5 * 20)
    write(tmp_path / "out.parquet", "parquet", batches=9)
    metadata = pyarrow.parquet.read_metadata(tmp_path / "out.parquet")
    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [20, 20, 5]


@FORMS
def test_an_interrupted_run_leaves_the_old_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "out"
    path.write_text("old")

    def interrupted() -> None:
        with open_writer(path, form, columns(2), METADATA) as write:
            write(columns(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_full_disk_is_told_with_the_files_name(tmp_path: Path, form: str) -> None:
    """A limit on the size of files stands for the full disk."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from test_writers import columns\n"
        "from serving.batch.writers import open_writer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        f"    with open_writer(Path('out'), {form!r}, columns(99), {{}}) as write:\n"
        "        for batch in range(200):\n"
        "            write(columns(99, batch))\n"
        "except OSError as error:\n"
        "    print('OSError', error.filename)\n"
    )
    root, here = Path(__file__).parents[2], Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            "-B",
            "-c",
            f"import sys; sys.path[:0] = [{str(root)!r}, {str(here)!r}]\n{code}",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.stdout, done.stderr) == ("OSError out\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "asked", "form"),
    [
        ("a.csv", None, "csv"),
        ("a.NDJSON", None, "jsonl"),
        ("a.txt", "csv", "csv"),
        ("a.csv", "parquet", "parquet"),
        ("a.arrow", None, "arrow"),
        ("a.feather", None, "arrow"),
        ("a", None, "parquet"),
        ("a", "csv", "csv"),
        ("a.csv.gz", None, "csv.gz"),
        ("a.JSONL.ZST", None, "jsonl.zst"),
        ("a.txt.gz", "csv", "csv.gz"),
        (None, None, "csv"),
        (None, "jsonl", "jsonl"),
    ],
)
def test_the_format_of_an_output(output: str | None, asked: str | None, form: str) -> None:
    assert format_of(Path(output) if output else None, asked, default="csv") == form


@pytest.mark.parametrize("name", ["out.txt", "out.json", "out.gz", "out.csv.bz2"])
def test_a_suffix_that_says_nothing(name: str) -> None:
    with pytest.raises(UsageError, match=r"none of \.csv, \.jsonl, .*choose with --format"):
        format_of(Path(name), None, default="csv")


def test_what_is_compressed_already_is_not_once_more() -> None:
    with pytest.raises(UsageError, match=r"only CSV and JSON Lines are written as \.gz"):
        format_of(Path("out.parquet.gz"), None, default="csv")


def test_parquet_needs_a_file() -> None:
    with pytest.raises(UsageError, match="name a file with --output"):
        format_of(None, "parquet", default="csv")
