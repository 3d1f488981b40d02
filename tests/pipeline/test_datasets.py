import ast
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline import datasets
from pipeline.config.params import load
from pipeline.datasets import stratified
from pipeline.stages.pull import pull
from serving.errors import MissingInputError, UnknownNameError

ROOT = Path(datasets.__file__).parents[2]
EVERY = pytest.mark.parametrize("name", datasets.names())
EMBEDDED = ("digits", "moons", "xor")


def described_by(name: str) -> str:
    """The docstring of a data set's file, on one line."""
    source = (Path(datasets.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return " ".join(str(ast.get_docstring(ast.parse(source))).split())


def test_the_data_sets_are_the_files_of_the_folder() -> None:
    assert set(datasets.names()) == {
        "cifar10", "diabetes", "digits", "fashion_mnist", "mnist", "moons", "rt_polarity", "xor",
    }  # fmt: skip
    assert not any(name.startswith("_") for name in datasets.names())


@EVERY
def test_what_is_known_is_told(name: str) -> None:
    dataset = datasets.get(name)
    assert dataset.title
    assert dataset.licence
    assert len(dataset.citation) > 40
    assert dataset.homepage.startswith(("http://", "https://"))
    names = dataset.labels or dataset.targets
    assert len(set(names)) == len(names) >= 1 + bool(dataset.labels)
    assert not (dataset.labels and dataset.targets)


@EVERY
def test_every_file_can_be_checked_and_got(name: str) -> None:
    dataset = datasets.get(name)
    members = {member.name for archive in dataset.archives for member in archive.members}
    for file in (*dataset.raw_files(), *dataset.archives):
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256), file.name
        assert file.size > 0
        assert ".." not in Path(file.name).parts
        assert not Path(file.name).is_absolute()
        assert file.name in members or file.embedded or file.urls, f"{file.name} has no address"
    names = [file.name for file in dataset.raw_files()]
    assert len(set(names)) == len(names)


@EVERY
def test_official_addresses_end_in_the_files_name(name: str) -> None:
    dataset = datasets.get(name)
    for file in (*dataset.files, *dataset.archives):
        for url in file.urls:
            assert url.startswith(("http://", "https://"))
            assert url.endswith(f"/{file.name}")


@EVERY
def test_params_has_a_section_or_the_docstring_tells_it(name: str) -> None:
    if name not in load(ROOT / "params.yaml").datasets:
        assert f"`{name}: {{validation_rows:" in described_by(name)


@pytest.mark.parametrize("name", EMBEDDED)
def test_rows_are_what_their_kind_says(name: str, tmp_path: Path) -> None:
    pull(tmp_path / name, name=name, mirrors=())
    dataset = datasets.get(name)
    rows = dataset.read(tmp_path / name)
    for inputs, labels in (
        (rows.train.inputs, rows.train.labels),
        (rows.test.inputs, rows.test.labels),
    ):
        expected = {"image": (np.uint8, 4), "table": (np.float32, 2)}[dataset.kind]
        assert (inputs.dtype, inputs.ndim) == expected
        if dataset.targets:
            assert (labels.dtype, labels.shape) == (np.float32, (len(inputs), len(dataset.targets)))
            continue
        assert labels.dtype == np.int64
        assert np.unique(labels).tolist() == list(range(len(dataset.labels)))


@pytest.mark.parametrize("name", sorted(set(datasets.names()) - {"moons", "xor"}))
def test_a_missing_file_names_the_command_that_makes_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=f"is not there; `ferry pull {name}` makes it"):
        datasets.get(name).read(tmp_path / name)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no data set named 'digit'; did you mean 'digits'"):
        datasets.get("digit")
    with pytest.raises(UnknownNameError):
        datasets.get("_download")


LABELS = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [600, 300, 100]))


def test_each_class_gives_its_share() -> None:
    left, taken = stratified(LABELS, 100, 1)
    assert np.bincount(LABELS[taken]).tolist() == [60, 30, 10]
    assert np.bincount(LABELS[left]).tolist() == [540, 270, 90]


def test_every_row_goes_one_way_and_keeps_its_order() -> None:
    left, taken = stratified(LABELS, 100, 1)
    assert (np.diff(left) > 0).all()
    assert (np.diff(taken) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate([left, taken])), np.arange(1000))


def test_the_seed_alone_decides() -> None:
    np.testing.assert_array_equal(stratified(LABELS, 100, 1)[1], stratified(LABELS, 100, 1)[1])
    assert (stratified(LABELS, 100, 1)[1] != stratified(LABELS, 100, 2)[1]).any()


@pytest.mark.parametrize("rows", [2, 998])
def test_fewer_rows_than_classes_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="should be greater or equal to the number of classes"):
        stratified(LABELS, rows, 1)


MOONS = datasets.get("moons")


def test_the_points_lie_around_two_half_circles() -> None:
    rows = MOONS.read(Path())
    points = np.concatenate([rows.train.inputs, rows.test.inputs])
    labels = np.concatenate([rows.train.labels, rows.test.labels])
    assert (points.shape, points.dtype, labels.dtype) == ((2000, 2), np.float32, np.int64)
    centres = np.where(labels[:, None] == 0, (0, 0), (1, 0.5))
    distances = np.linalg.norm(points - centres, axis=1)
    assert distances.mean() == pytest.approx(1, abs=0.02)
    assert distances.std() == pytest.approx(0.1, abs=0.01)
    upper = points[labels == MOONS.labels.index("upper")]
    assert upper[:, 1].mean() > points[:, 1].mean()


def test_they_are_the_same_each_time() -> None:
    one, two = MOONS.read(Path()), MOONS.read(Path())
    np.testing.assert_array_equal(one.test.inputs, two.test.inputs)
    # Were these to change, no accuracy could be compared with one measured before.
    np.testing.assert_allclose(
        one.test.inputs[:2], [[0.497784, -0.356984], [0.976905, -0.525995]], atol=1e-6
    )


def test_the_rows_are_the_truth_table() -> None:
    rows = datasets.get("xor").read(Path())
    assert (rows.train.inputs.dtype, rows.train.inputs.shape) == (np.float32, (4, 2))
    for (one, other), label in zip(rows.train.inputs, rows.train.labels, strict=True):
        assert label == (bool(one) ^ bool(other))
    assert len({tuple(row) for row in rows.train.inputs.tolist()}) == 4
