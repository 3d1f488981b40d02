import os
from pathlib import Path

import numpy as np
import pytest

from pipeline import datasets
from pipeline.config.experiment import DatasetConfig
from pipeline.records.ready import open_split
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import pull
from serving.errors import InputError

CIFAR10 = datasets.get("cifar10")
FILES = [file.name for file in CIFAR10.raw_files()]
RECORD = 3073


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The six files with 20 records each, of labels in turn and random pixels."""
    random = np.random.default_rng(1)
    for name in FILES:
        records = random.integers(0, 256, (20, RECORD), np.uint8)
        records[:, 0] = np.arange(20) % 10
        path = tmp_path / "cifar10" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(records.tobytes())
    return tmp_path / "cifar10"


def test_records_become_images_and_labels(raw: Path) -> None:
    rows = CIFAR10.read(raw)
    assert (rows.train.inputs.shape, rows.train.inputs.dtype) == ((100, 32, 32, 3), np.uint8)
    assert rows.test.inputs.shape == (20, 32, 32, 3)
    assert rows.train.labels.dtype == np.int64
    np.testing.assert_array_equal(rows.train.labels, np.arange(100) % 10)
    record = (raw / FILES[1]).read_bytes()[3 * RECORD : 4 * RECORD]
    image = rows.train.inputs[23]
    for row, column, channel in ((0, 0, 0), (5, 7, 1), (31, 30, 2)):
        assert image[row, column, channel] == record[1 + 1024 * channel + 32 * row + column]


def test_the_test_part_is_its_own_file(raw: Path) -> None:
    last = np.frombuffer((raw / FILES[-1]).read_bytes(), np.uint8).reshape(-1, RECORD)
    image = CIFAR10.read(raw).test.inputs[2]
    np.testing.assert_array_equal(image.transpose(2, 0, 1).ravel(), last[2, 1:])


@pytest.mark.parametrize("change", [-1, 1, -RECORD * 20])
def test_a_wrong_length_is_refused(raw: Path, change: int) -> None:
    path = raw / FILES[2]
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"x" * change)
    with pytest.raises(InputError) as caught:
        CIFAR10.read(raw)
    size = len(content) + change
    assert str(caught.value) == (
        f"{path} must hold whole records of 3073 bytes, its {size} bytes are "
        f"{size // RECORD} records and {size % RECORD} bytes"
    )


def test_a_label_over_9_is_refused_with_its_record(raw: Path) -> None:
    path = raw / FILES[-1]
    content = bytearray(path.read_bytes())
    content[7 * RECORD] = 10
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"test_batch\.bin: label 10 in record 7, but labels go from 0 to 9"
    ):
        CIFAR10.read(raw)


def test_the_official_files_from_pull_to_arrays(tmp_path: Path) -> None:
    mirror = os.environ.get("FERRY_MIRROR", "")
    if not mirror or not (Path(mirror) / "cifar10").is_dir():
        pytest.skip("FERRY_MIRROR names no mirror with the official CIFAR-10 files")
    raw, ready = tmp_path / "raw/cifar10", tmp_path / "ready/cifar10"
    pull(raw, name="cifar10", mirrors=(), mirror=mirror)
    config = DatasetConfig(validation_rows=5000, seed=1)
    manifest = preprocess(raw, ready, name="cifar10", config=config)
    assert manifest.class_counts == {
        "train": (4500,) * 10,
        "validation": (500,) * 10,
        "test": (1000,) * 10,
    }
    # What every tutorial divides by: 0.4914, 0.4822, 0.4465.
    assert manifest.mean == pytest.approx((125.3, 123.0, 113.9), abs=0.15)
    assert open_split(ready, "test").labels[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]
