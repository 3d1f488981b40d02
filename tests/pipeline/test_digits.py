import gzip
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline import datasets
from pipeline.stages.pull import pull
from serving.errors import InputError
from serving.files import sha256_of_bytes

DIGITS = datasets.get("digits")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "digits"
    pull(folder, name="digits", mirrors=())
    return folder


def lines(rows: int = 100) -> list[list[str]]:
    """Rows of a file that can be read: 64 pixels and the digits in turn."""
    return [["3"] * 64 + [str(row % 10)] for row in range(rows)]


def refused(folder: Path, table: list[list[str]]) -> str:
    text = "\n".join(",".join(row) for row in table)
    return refused_bytes(folder, gzip.compress(text.encode()))


def refused_bytes(folder: Path, content: bytes) -> str:
    path = folder / "digits.csv.gz"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        DIGITS.read(folder)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).lstrip(": ")


def test_the_rows_are_those_of_scikit_learn(raw: Path) -> None:
    rows = DIGITS.read(raw)
    reference = load_digits()
    images = np.concatenate([rows.train.inputs, rows.test.inputs])
    labels = np.concatenate([rows.train.labels, rows.test.labels])
    assert images.dtype == np.uint8
    assert images.shape == (1797, 8, 8, 1)
    assert images.max() == 16

    def sorted_rows(pixels: np.ndarray, answers: np.ndarray) -> list[tuple[float, ...]]:
        return sorted(map(tuple, np.column_stack([pixels.reshape(1797, 64), answers]).tolist()))

    assert sorted_rows(images, labels) == sorted_rows(reference.data, reference.target)


def test_the_test_set_is_a_fixed_stratified_fifth(raw: Path) -> None:
    rows = DIGITS.read(raw)
    assert rows.test.inputs.shape == (360, 8, 8, 1)
    assert rows.train.inputs.shape == (1437, 8, 8, 1)
    everything = np.bincount(np.concatenate([rows.train.labels, rows.test.labels]))
    assert np.abs(np.bincount(rows.test.labels) - everything / 5).max() < 1
    # Were this to change, no accuracy could be compared with one measured before.
    assert sha256_of_bytes(rows.test.inputs.tobytes())[:16] == "10cbdd9b1d83cc43"


@pytest.mark.parametrize(
    ("row", "column", "value", "said"),
    [
        (3, 5, "17", "row 3, column 5 must be a whole number from 0 to 16, got 17"),
        (0, 0, "-1", "row 0, column 0 must be a whole number from 0 to 16, got -1"),
        (1, 2, "1.5", "row 1, column 2 must be a whole number from 0 to 16, got 1.5"),
        (1, 2, "nan", "row 1, column 2 must be a whole number from 0 to 16, got nan"),
        (7, 64, "10", "row 7, column 64 must be a whole number from 0 to 9, got 10"),
    ],
)
def test_a_value_out_of_range_is_refused(
    tmp_path: Path, row: int, column: int, value: str, said: str
) -> None:
    table = lines()
    table[row][column] = value
    assert refused(tmp_path, table) == said


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    table = lines()
    table[4][4] = "four"
    assert refused(tmp_path, table).startswith("is not a table of numbers: could not convert")
    table[4] = table[4][:4]
    assert refused(tmp_path, table).startswith("is not a table of numbers: ")
    assert refused(tmp_path, [row[1:] for row in lines()]) == "must have 65 columns, it has 64"
    assert refused(tmp_path, []) == "is empty"


def test_a_digit_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    table = [row for row in lines() if row[-1] != "6"]
    assert refused(tmp_path, table) == "every digit must have 5 rows or more, digit 6 has 0"


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    assert refused_bytes(tmp_path, bomb) == "unpacks to more than the 1048576 bytes it may have"
