from pathlib import Path

import numpy as np
import pytest

from pipeline import datasets
from pipeline.config.experiment import DatasetConfig
from pipeline.records.ready import open_split
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import pull

MOONS = datasets.get("moons")


def test_the_points_lie_around_two_half_circles() -> None:
    rows = MOONS.read(Path())
    points = np.concatenate([rows.train_inputs, rows.test_inputs])
    labels = np.concatenate([rows.train_labels, rows.test_labels])
    assert (points.shape, points.dtype, labels.dtype) == ((2000, 2), np.float32, np.int64)
    centres = np.where(labels[:, None] == 0, (0, 0), (1, 0.5))
    distances = np.linalg.norm(points - centres, axis=1)
    assert distances.mean() == pytest.approx(1, abs=0.02)
    assert distances.std() == pytest.approx(0.1, abs=0.01)
    upper = points[labels == MOONS.labels.index("upper")]
    assert upper[:, 1].mean() > points[:, 1].mean()


def test_they_are_the_same_each_time() -> None:
    one, two = MOONS.read(Path()), MOONS.read(Path())
    np.testing.assert_array_equal(one.test_inputs, two.test_inputs)
    # Were these to change, no accuracy could be compared with one measured before.
    np.testing.assert_allclose(
        one.test_inputs[:2], [[0.497784, -0.356984], [0.976905, -0.525995]], atol=1e-6
    )


def test_from_pull_to_arrays(tmp_path: Path) -> None:
    raw, ready = tmp_path / "raw/moons", tmp_path / "ready/moons"
    pull(raw, name="moons", mirrors=())
    config = DatasetConfig(validation_rows=300, seed=1)
    manifest = preprocess(raw, ready, name="moons", config=config)
    assert manifest.class_counts == {
        "train": (600, 600),
        "validation": (150, 150),
        "test": (250, 250),
    }
    train = open_split(ready, "train").inputs
    assert manifest.mean == pytest.approx(train.mean(axis=0, dtype=np.float64))
    assert manifest.std == pytest.approx(train.std(axis=0, dtype=np.float64))
    assert (manifest.kind, manifest.vocabulary) == ("table", ())
