"""Photographs are unlike digits; digits are not, few or many, in whatever order."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drift_samples import classified, reference
from sklearn.datasets import load_digits
from tiny_classifier import contents, forge, images

from serving.batch.predict import predict
from serving.batch.run import PredictOptions
from serving.bundles.bundle import REFERENCE, FileInfo, read_manifest
from serving.bundles.reference import Reference
from serving.bundles.writing import write_bundle
from serving.drift import first_rows
from serving.drift.first_rows import FirstRows
from serving.files import sha256_of_bytes

Array = np.ndarray[Any, Any]
DIGITS, CLASSES = (np.asarray(one) for one in load_digits(return_X_y=True))
TRAINING = 1257


@pytest.fixture
def of_digits(monkeypatch: pytest.MonkeyPatch) -> Reference:
    """The reference of the digits, which stands for that of any bundle."""
    made = reference(digits(slice(TRAINING)), classified(CLASSES[:TRAINING]))
    monkeypatch.setattr(first_rows, "read_reference_of", lambda _: made)
    return made


def digits(which: Any) -> Array:
    """Some of them as the model takes them, uint8 [rows, 8, 8, 1]."""
    return DIGITS[which].reshape(-1, 8, 8, 1).astype(np.uint8)


def warning(*batches: Array) -> str | None:
    checked = FirstRows(Path("bundle"))
    for rows in batches:
        checked.add(rows)
    return checked.warning()


@pytest.mark.usefixtures("of_digits")
def test_digits_do_not_warn() -> None:
    rest = np.arange(TRAINING, len(DIGITS))
    by_class = rest[np.argsort(CLASSES[rest], kind="stable")]
    assert warning(digits(rest)) is None
    assert warning(*np.array_split(digits(by_class), 9)) is None
    for one in range(10):
        assert warning(digits(rest[CLASSES[rest] == one])) is None
        assert warning(digits(np.flatnonzero(one == CLASSES))) is None
    for one in rest:
        assert warning(digits([one])) is None


@pytest.mark.parametrize("rows", [1, 3, 30, 3000])
@pytest.mark.usefixtures("of_digits")
def test_rows_of_something_else_do(rows: int) -> None:
    photographs = np.random.default_rng(1).integers(40, 220, (rows, 8, 8, 1)).astype(np.uint8)
    found = warning(photographs)
    looked = min(rows, 1000)
    assert found is not None
    start = f"{looked:,} of the first {looked:,} rows are unlike the training data (toy)"
    assert found.startswith(start)
    assert "; --no-reference leaves this out" in found
    # One stranger among many is nothing to warn of.
    assert warning(digits(slice(TRAINING, None)), photographs[:1]) is None


@pytest.fixture
def dark(tmp_path: Path) -> Path:
    """A bundle of a model that was trained on dark images."""
    rows = images(60) // 20
    made = reference(rows, classified(np.arange(60) % 3), classes=3)
    write_bundle(tmp_path / "tiny", contents(reference=made))
    return tmp_path / "tiny"


def test_a_run_warns_once(dark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "rows.npy", images(3000))
    output, rows = tmp_path / "out.csv", [tmp_path / "rows.npy"]
    report = predict(dark, rows, output=output)
    said = capsys.readouterr().err
    assert said.count("Warning: 1,000 of the first 1,000 rows are unlike the training data") == 1
    assert report.unlike is not None
    assert report.unlike in said
    for reference_ in (False, True):
        options = PredictOptions(reference=reference_, overwrite=True)
        assert predict(dark, rows, output=output, options=options).unlike is None
    assert "unlike" not in capsys.readouterr().err
    np.save(tmp_path / "rows.npy", images(9) // 20)
    assert predict(dark, rows, output=tmp_path / "dark.csv").unlike is None


def test_a_batch_of_which_nothing_can_be_read_is_passed_over(dark: Path) -> None:
    first = FirstRows(dark)
    first.add(images(9)[:0])
    assert first.warning() is None
    first.add(images(30))
    assert "30 of the first 30 rows are unlike" in str(first.warning())


def test_a_reference_of_another_ferry_stops_no_run(
    dark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = json.loads((dark / REFERENCE).read_text()) | {"schema_version": 1}
    content = json.dumps(old).encode()
    (dark / REFERENCE).write_bytes(content)
    info = FileInfo(size=len(content), sha256=sha256_of_bytes(content))
    forge(dark, files={**read_manifest(dark).files, REFERENCE: info})
    np.save(tmp_path / "rows.npy", images(30))
    assert predict(dark, [tmp_path / "rows.npy"], output=tmp_path / "out.csv").rows == 30
    assert "Warning: " in capsys.readouterr().err
