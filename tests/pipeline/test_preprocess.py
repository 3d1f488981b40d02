import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_mnist

from pipeline import datasets
from pipeline.config.experiment import DatasetConfig
from pipeline.datasets import Dataset, RawFile, RawRows
from pipeline.errors import ConfigError
from pipeline.records.ready import Split, open_manifest, open_split
from pipeline.stages.preprocess import channel_statistics, preprocess, vocabulary
from serving.errors import InputError, IntegrityError, MissingInputError
from serving.files import sha256_of_file

CONFIG = DatasetConfig(validation_rows=20, seed=1)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in MNIST's format, which the record of MNIST is made to expect."""
    folder = tmp_path / "raw/mnist"
    write_mnist(folder, train=200, test=50)
    expect_what_is_there(folder, monkeypatch)
    return folder


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    return tmp_path / "ready/mnist"


def expect_what_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes) -> Dataset:
    mnist = datasets.get("mnist")
    files = tuple(
        RawFile(
            name=file.name,
            size=(folder / file.name).stat().st_size,
            sha256=sha256_of_file(folder / file.name),
        )
        for file in mnist.files
    )
    made = replace(mnist, files=files, **changes)
    monkeypatch.setattr(datasets, "get", lambda name: made)
    return made


def install(
    monkeypatch: pytest.MonkeyPatch, rows: RawRows, labels: tuple[str, ...], **changes
) -> None:
    """Make a data set without files whose reader gives these rows."""
    made = replace(
        datasets.get("digits"), files=(), labels=labels, read=lambda folder: rows, **changes
    )
    monkeypatch.setattr(datasets, "get", lambda name: made)


def rows_of(train: list[int], test: list[int], channels: int = 1) -> RawRows:
    random = np.random.default_rng(1)
    parts = [
        Split(random.integers(0, 256, (len(labels), 4, 4, channels), np.uint8), np.array(labels))
        for labels in (train, test)
    ]
    return RawRows(train=parts[0], test=parts[1])


def test_the_splits_are_written_and_open(raw: Path, ready: Path) -> None:
    manifest = preprocess(raw, ready, name="mnist", config=CONFIG)
    rows = datasets.get("mnist").read(raw)
    train, validation, test = (open_split(ready, part) for part in ("train", "validation", "test"))
    assert (len(train.labels), len(validation.labels), len(test.labels)) == (180, 20, 50)
    np.testing.assert_array_equal(test.inputs, rows.test.inputs)
    np.testing.assert_array_equal(test.labels, rows.test.labels)
    together = np.concatenate([train.inputs, validation.inputs]).reshape(200, -1)
    official = rows.train.inputs.reshape(200, -1)
    assert sorted(together.tolist()) == sorted(official.tolist())
    assert train.inputs.dtype == np.uint8
    assert train.labels.dtype == np.int64
    assert isinstance(train.inputs, np.memmap)
    assert open_manifest(ready) == manifest


def test_images_keep_their_labels_and_their_order(raw: Path, ready: Path) -> None:
    preprocess(raw, ready, name="mnist", config=CONFIG)
    rows = datasets.get("mnist").read(raw)
    where = {image.tobytes(): row for row, image in enumerate(rows.train.inputs)}
    for part in ("train", "validation"):
        split = open_split(ready, part)
        indices = [where[image.tobytes()] for image in split.inputs]
        assert indices == sorted(indices)
        np.testing.assert_array_equal(split.labels, rows.train.labels[indices])


def test_the_manifest_counts_and_measures_the_training_split_alone(raw: Path, ready: Path) -> None:
    manifest = preprocess(raw, ready, name="mnist", config=CONFIG)
    assert manifest.class_counts == {
        "train": (18,) * 10,
        "validation": (2,) * 10,
        "test": (5,) * 10,
    }
    train = open_split(ready, "train").inputs
    assert manifest.mean == pytest.approx((train.mean(dtype=np.float64),), rel=1e-12)
    assert manifest.std == pytest.approx((train.std(dtype=np.float64),), rel=1e-12)
    assert manifest.labels == tuple("0123456789")
    assert (manifest.dataset, manifest.seed) == ("mnist", 1)


def test_the_same_inputs_give_the_same_bytes_and_another_seed_does_not(
    raw: Path, tmp_path: Path
) -> None:
    def sums(folder: str, seed: int) -> dict[str, str]:
        config = DatasetConfig(validation_rows=20, seed=seed)
        preprocess(raw, tmp_path / folder, name="mnist", config=config)
        files = sorted((tmp_path / folder).iterdir())
        assert len(files) == 8
        return {file.name: sha256_of_file(file) for file in files}

    first = sums("one", 1)
    assert sums("two", 1) == first
    other = sums("three", 2)
    differ = {name for name in first if first[name] != other[name]}
    assert {"train_inputs.npy", "validation_inputs.npy", "manifest.json"} <= differ
    assert not differ & {"test_inputs.npy", "test_labels.npy"}


def test_a_changed_raw_file_is_refused_before_anything_is_written(raw: Path, ready: Path) -> None:
    path = raw / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        IntegrityError, match=r"t10k-labels-idx1-ubyte\.gz has sha256 .*; `ferry pull mnist` repl"
    ):
        preprocess(raw, ready, name="mnist", config=CONFIG)
    assert not ready.exists()


@pytest.mark.parametrize("rows", [0, 1, 9, 191, 200, 1000])
def test_validation_rows_that_do_not_fit_are_refused(raw: Path, ready: Path, rows: int) -> None:
    config = DatasetConfig(validation_rows=rows, seed=1)
    with pytest.raises(ConfigError) as caught:
        preprocess(raw, ready, name="mnist", config=config)
    assert str(caught.value) == (
        "datasets.mnist.validation_rows must be from 10 to 190, "
        f"a row of each class or more on either side, got {rows}"
    )
    assert not ready.exists()


@pytest.mark.parametrize("rows", [10, 190])
def test_the_limits_themselves_fit(raw: Path, ready: Path, rows: int) -> None:
    config = DatasetConfig(validation_rows=rows, seed=1)
    manifest = preprocess(raw, ready, name="mnist", config=config)
    assert manifest.class_counts["validation"] == (rows // 10,) * 10


def test_a_class_that_would_be_missing_is_refused(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DatasetConfig(validation_rows=4, seed=1)
    cases = {
        "class 'b' has 1 training rows": rows_of([0] * 50 + [1], [0, 1]),
        "class 'b' has 0 training rows": rows_of([0] * 50, [0, 1]),
        "the test part of toy has no row of class 'a'": rows_of([0, 1] * 20, [1, 1]),
    }
    for said, rows in cases.items():
        install(monkeypatch, rows, ("a", "b"))
        with pytest.raises(InputError, match=said):
            preprocess(ready, ready, name="toy", config=config)
    assert not ready.exists()


def test_a_rare_class_is_in_every_split(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, rows_of([0] * 98 + [1] * 2, [0, 1]), ("a", "b"))
    config = DatasetConfig(validation_rows=4, seed=1)
    manifest = preprocess(ready, ready, name="toy", config=config)
    assert manifest.class_counts == {"train": (95, 1), "validation": (3, 1), "test": (1, 1)}


@pytest.mark.parametrize(("share", "rows"), [(0.1, 10), (0.001, 2), (7, 7)])
def test_validation_rows_may_be_a_share_with_a_row_of_each_class(
    ready: Path, monkeypatch: pytest.MonkeyPatch, share: float, rows: int
) -> None:
    install(monkeypatch, rows_of([0, 1] * 50, [0, 1]), ("a", "b"))
    config = DatasetConfig(validation_rows=share, seed=1)
    assert preprocess(ready, ready, name="toy", config=config).rows["validation"] == rows


def test_a_constant_channel_is_refused(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of([0, 1] * 20, [0, 1], channels=3)
    rows.train.inputs[..., 1] = 7
    install(monkeypatch, rows, ("a", "b"))
    with pytest.raises(InputError, match="toy: channel 1 has the same value in every training row"):
        preprocess(ready, ready, name="toy", config=DatasetConfig(validation_rows=4, seed=1))


def table_of(values: np.ndarray) -> RawRows:
    """Rows of a table, with two classes in turn, for training as for the test."""
    rows = Split(values, np.arange(len(values)) % 2)
    return RawRows(train=rows, test=rows)


def test_a_table_is_measured_by_feature(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal((1, -200), (2, 30), (40, 2)).astype(np.float32)
    install(monkeypatch, table_of(values), ("a", "b"), kind="table")
    manifest = preprocess(ready, ready, name="toy", config=DatasetConfig(validation_rows=4, seed=1))
    train = open_split(ready, "train").inputs
    assert (train.dtype, train.shape) == (np.float32, (36, 2))
    assert manifest.mean == pytest.approx(train.mean(axis=0, dtype=np.float64))
    assert manifest.std == pytest.approx(train.std(axis=0, dtype=np.float64))
    assert (manifest.kind, manifest.vocabulary) == ("table", ())


def test_a_constant_feature_is_told_and_a_table_of_them_refused(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    values[:, 2] = 0.1  # whose sum is no multiple of it
    config = DatasetConfig(validation_rows=4, seed=1)
    install(monkeypatch, table_of(values), ("a", "b"), kind="table", features=("x", "y", "z"))
    manifest = preprocess(ready, ready, name="toy", config=config)
    assert (manifest.mean[2], manifest.std[2]) == (pytest.approx(0.1), 1)
    assert "toy: column z has the same value in every training row" in capsys.readouterr().err
    install(monkeypatch, table_of(values * 0), ("a", "b"), kind="table")
    with pytest.raises(InputError, match="toy: column x has the same value in every training row"):
        preprocess(ready, ready, name="toy", config=config)
    install(monkeypatch, table_of(values), ("a", "b"), kind="table", standardized=False)
    manifest = preprocess(ready, ready, name="toy", config=config)
    assert (manifest.mean, manifest.std) == ((0.0,) * 3, (1.0,) * 3)


def test_the_words_of_a_text_are_those_of_its_training_rows(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = np.array(["b a  a", " a c b", "B d\t", "a"] * 10)
    rows = table_of(texts)
    rows = replace(rows, test=replace(rows.test, inputs=np.array(["only here", "b"] * 20)))
    install(monkeypatch, rows, ("a", "b"), kind="text")
    manifest = preprocess(ready, ready, name="toy", config=DatasetConfig(validation_rows=4, seed=1))
    # 36 of the 40 rows; "d" and the tab after it are one word, and no word of the test counts.
    assert set(manifest.vocabulary) == {"a", "b", "B", "c", "d\t"}
    assert manifest.vocabulary[:2] == ("a", "b")
    assert (manifest.kind, manifest.mean, manifest.std) == ("text", (), ())
    assert open_split(ready, "test").inputs.tolist() == rows.test.inputs.tolist()
    assert open_manifest(ready) == manifest


def test_words_of_the_same_number_are_in_alphabetical_order() -> None:
    texts = np.array(["z m a", "m z é", "  ", "z Z "])
    assert vocabulary(texts) == ("z", "m", "Z", "a", "é")


def test_all_the_rows_there_can_be_are_in_every_split(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    install(monkeypatch, table_of(values), ("a", "b"), kind="table", complete=True)
    manifest = preprocess(ready, ready, name="toy", config=DatasetConfig(validation_rows=0, seed=1))
    assert set(manifest.class_counts) == {"train", "validation", "test"}
    for part in manifest.class_counts:
        np.testing.assert_array_equal(open_split(ready, part).inputs, values)
    with pytest.raises(ConfigError, match=r"^datasets\.toy\.validation_rows must be 0, .*, got 2$"):
        preprocess(ready, ready, name="toy", config=DatasetConfig(validation_rows=2, seed=1))


def test_statistics_are_per_channel() -> None:
    images = np.random.default_rng(1).integers(0, 256, (3000, 9, 9, 3), np.uint8)
    images[..., 1] //= 2
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(images.mean(axis=(0, 1, 2), dtype=np.float64), rel=1e-12)
    assert std == pytest.approx(images.std(axis=(0, 1, 2), dtype=np.float64), rel=1e-12)


def test_statistics_make_no_float_copy_of_the_whole() -> None:
    images = np.zeros((60_000, 28, 28, 1), np.uint8)
    images[::2] = 200
    tracemalloc.start()
    mean, std = channel_statistics(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (mean, std) == ((100.0,), (100.0,))
    assert peak < images.nbytes  # a float64 copy would be eight times as large


def test_an_interrupted_run_leaves_no_manifest(
    raw: Path, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(raw, ready, name="mnist", config=CONFIG)
    blocked = ready / "test_labels.npy"
    blocked.unlink()
    blocked.mkdir()  # a file cannot be renamed over a folder
    with pytest.raises(IsADirectoryError):
        preprocess(raw, ready, name="mnist", config=DatasetConfig(validation_rows=20, seed=2))
    with pytest.raises(MissingInputError, match=r"manifest\.json is not there"):
        open_split(ready, "train")
    assert not list(ready.glob(".*.tmp"))


def regression_of(targets: np.ndarray) -> RawRows:
    """Rows of one feature with the targets float32 [rows, 2]."""
    inputs = np.random.default_rng(1).normal(size=(len(targets), 1)).astype(np.float32)
    rows = Split(inputs, targets.astype(np.float32))
    return RawRows(train=rows, test=rows)


def test_targets_are_split_by_chance_and_measured(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = np.random.default_rng(2).normal((5, -300), (2, 40), (40, 2))
    install(monkeypatch, regression_of(targets), (), kind="table", targets=("near", "far"))
    config = DatasetConfig(validation_rows=7, seed=1)
    manifest = preprocess(ready, ready, name="toy", config=config)
    train, validation = (open_split(ready, part).labels for part in ("train", "validation"))
    assert (train.dtype, train.shape, validation.shape) == (np.float32, (33, 2), (7, 2))
    assert sorted(np.concatenate([train, validation])[:, 0]) == sorted(np.float32(targets[:, 0]))
    assert (manifest.labels, manifest.targets) == ((), ("near", "far"))
    assert set(manifest.class_counts.values()) == {()}
    assert manifest.target_mean == pytest.approx(train.mean(axis=0, dtype=np.float64))
    assert manifest.target_std == pytest.approx(train.std(axis=0, dtype=np.float64))


def test_targets_that_teach_nothing_are_refused(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = np.random.default_rng(2).normal(size=(40, 2))
    constant, hole = targets.copy(), targets.copy()
    constant[:, 1], hole[3, 0] = 7, np.nan
    cases = {
        "toy: target 'b' has the same value in every training row": regression_of(constant),
        "toy: target 'a' is nan in row 3 of the test split": replace(
            regression_of(targets), test=regression_of(hole).test
        ),
    }
    config = DatasetConfig(validation_rows=4, seed=2)
    for said, rows in cases.items():
        install(monkeypatch, rows, (), kind="table", targets=("a", "b"))
        with pytest.raises(InputError, match=said):
            preprocess(ready, ready, name="toy", config=config)
    install(monkeypatch, regression_of(targets), (), kind="table", targets=("a", "b"))
    with pytest.raises(ConfigError, match=r"validation_rows must be from 1 to 38, .*, got 39$"):
        preprocess(ready, ready, name="toy", config=DatasetConfig(validation_rows=39, seed=1))
    assert not ready.exists()
