from pathlib import Path

import numpy as np

from pipeline import datasets
from pipeline.config.experiment import DatasetConfig
from pipeline.records.ready import open_manifest, open_split
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import pull


def test_the_rows_are_the_truth_table() -> None:
    rows = datasets.get("xor").read(Path())
    assert (rows.train_inputs.dtype, rows.train_inputs.shape) == (np.float32, (4, 2))
    for (one, other), label in zip(rows.train_inputs, rows.train_labels, strict=True):
        assert label == (bool(one) ^ bool(other))
    assert len({tuple(row) for row in rows.train_inputs.tolist()}) == 4


def test_from_pull_to_arrays_every_split_has_every_row(tmp_path: Path) -> None:
    raw, ready = tmp_path / "raw/xor", tmp_path / "ready/xor"
    report = pull(raw, name="xor", mirrors=())
    assert (report.files, list(raw.iterdir())) == ((), [])
    preprocess(raw, ready, name="xor", config=DatasetConfig(validation_rows=0, seed=1))
    manifest = open_manifest(ready)
    assert set(manifest.class_counts.values()) == {(2, 2)}
    # Truth values go into the network as they are.
    assert (manifest.kind, manifest.mean, manifest.std) == ("table", (0.0, 0.0), (1.0, 1.0))
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(open_split(ready, part).labels, [0, 1, 1, 0])
