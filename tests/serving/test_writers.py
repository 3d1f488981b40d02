import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from serving.errors import UsageError
from serving.model import Prediction
from serving.writers import Columns, format_of, open_writer

LABELS = ("cat", 'a "b", c', "émeu\n")
METADATA = {"ferry.model_sha256": "ab" * 32, "ferry.version": "0.1.0"}


def prediction(rows: int, seed: int = 0) -> Prediction:
    scores = np.random.default_rng(seed).random((rows, 3)).astype(np.float32)
    return Prediction(
        labels=LABELS,
        label_index=scores.argmax(axis=1).astype(np.int64),
        scores=scores,
        are_probabilities=True,
    )


def columns(*, all_classes: bool = False, score: str = "probability") -> Columns:
    return Columns(score=score, classes=LABELS if all_classes else ())


def write(output: Path, form: str, shown: Columns, batches: int = 3) -> Prediction:
    """Write some batches of 5 rows, and return all their rows as one prediction."""
    parts = [prediction(5, seed) for seed in range(batches)]
    with open_writer(output, form, shown, METADATA) as writer:
        for number, part in enumerate(parts):
            writer.write([f"dir/ü,{number}-{row}.png" for row in range(5)], part)
    return Prediction(
        labels=LABELS,
        label_index=np.concatenate([part.label_index for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        are_probabilities=True,
    )


def ids(batches: int = 3) -> list[str]:
    return [f"dir/ü,{number}-{row}.png" for number in range(batches) for row in range(5)]


def read(path: Path, form: str) -> Iterator[dict[str, object]]:
    if form == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    elif form == "jsonl":
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            yield json.loads(line)
    else:
        yield from pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_what_is_written_reads_back_to_the_bit(tmp_path: Path, form: str) -> None:
    path = tmp_path / "out"
    written = write(path, form, columns(all_classes=True))
    rows = list(read(path, form))
    assert [row["id"] for row in rows] == ids()
    assert [row["label"] for row in rows] == written.label
    assert [int(row["label_index"]) for row in rows] == written.label_index.tolist()
    np.testing.assert_array_equal(
        np.array([row["probability"] for row in rows], np.float32), written.probability
    )
    for index, label in enumerate(LABELS):
        values = np.array([row[f"probability_{label}"] for row in rows], np.float32)
        np.testing.assert_array_equal(values, written.scores[:, index])


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_without_the_classes_there_are_four_columns(tmp_path: Path, form: str) -> None:
    write(tmp_path / "out", form, columns(score="score"))
    (first, *_) = read(tmp_path / "out", form)
    assert list(first) == ["id", "label", "label_index", "score"]


def test_numbers_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    tenth = Prediction(
        labels=LABELS,
        label_index=np.zeros(1, np.int64),
        scores=np.array([[0.1, 0.05, 1e-9]], np.float32),
        are_probabilities=True,
    )
    with open_writer(tmp_path / "out.csv", "csv", columns(all_classes=True), {}) as writer:
        writer.write(["a"], tenth)
    assert (tmp_path / "out.csv").read_text().splitlines()[-1] == "a,cat,0,0.1,0.1,0.05,1e-09"


def test_parquet_has_types_and_says_which_model(tmp_path: Path) -> None:
    write(tmp_path / "out.parquet", "parquet", columns(all_classes=True))
    schema = pyarrow.parquet.read_schema(tmp_path / "out.parquet")
    assert [str(field.type) for field in schema] == [
        "string",
        "string",
        "int64",
        "float",
        "float",
        "float",
        "float",
    ]
    assert schema.metadata[b"ferry.model_sha256"] == b"ab" * 32
    assert schema.metadata[b"ferry.version"] == b"0.1.0"


def test_small_batches_make_no_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out.parquet", "parquet", columns(), batches=9)
    assert pyarrow.parquet.read_metadata(tmp_path / "out.parquet").num_row_groups == 1
    monkeypatch.setattr("serving.writers.GROUP_CELLS", 4 * 20)
    write(tmp_path / "out.parquet", "parquet", columns(), batches=9)
    metadata = pyarrow.parquet.read_metadata(tmp_path / "out.parquet")
    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [20, 20, 5]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_leaves_the_old_file(
    tmp_path: Path, form: str, error: type[BaseException]
) -> None:
    path = tmp_path / "out"
    path.write_text("old")

    def interrupted() -> None:
        with open_writer(path, form, columns(), METADATA) as writer:
            writer.write(["a", "b"], prediction(2))
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_full_disk_is_told_with_the_files_name(tmp_path: Path, form: str) -> None:
    """A limit on the size of files stands for the full disk."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from test_writers import columns, prediction\n"
        "from serving.writers import open_writer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        f"    with open_writer(Path('out'), {form!r}, columns(), {{}}) as writer:\n"
        "        for batch in range(200):\n"
        "            writer.write([f'{batch}-{row}' for row in range(99)], prediction(99, batch))\n"
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
        ("a.CSV", None, "csv"),
        ("a.jsonl", None, "jsonl"),
        ("a.ndjson", None, "jsonl"),
        ("a.parquet", None, "parquet"),
        ("a.txt", "csv", "csv"),
        ("a.csv", "parquet", "parquet"),
        (None, None, "csv"),
        (None, "jsonl", "jsonl"),
    ],
)
def test_the_format_of_an_output(output: str | None, asked: str | None, form: str) -> None:
    assert format_of(Path(output) if output else None, asked, default="csv") == form


@pytest.mark.parametrize("name", ["out.txt", "out", "out.json", "out.csv.gz"])
def test_a_suffix_that_says_nothing(name: str) -> None:
    with pytest.raises(UsageError, match=r"none of \.csv, \.jsonl, .*choose with --format"):
        format_of(Path(name), None, default="csv")


def test_parquet_needs_a_file() -> None:
    with pytest.raises(UsageError, match="name a file with --output"):
        format_of(None, "parquet", default="csv")
