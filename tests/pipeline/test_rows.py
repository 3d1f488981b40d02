"""Rows: every kind of file that holds some, and what is refused by name."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.proof.rows import open_rows, rows_of_split
from serving.errors import InputError, IntegrityError, MissingInputError, UnknownNameError
from serving.runtime.tensors import TensorInfo

IMAGES = TensorInfo(name="images", dtype="uint8", shape=("batch", 8, 8, 1))
FEATURES = TensorInfo(name="features", dtype="float32", shape=("batch", 3))
TEXT = TensorInfo(name="text", dtype="object", shape=("batch",))
IDS = TensorInfo(name="ids", dtype="int64", shape=("batch",))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), np.uint8)


def test_a_npy_is_mapped_and_not_read(tmp_path: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "rows.npy", images)
    rows = open_rows(str(tmp_path / "rows.npy"), [IMAGES])
    assert len(rows) == 5
    assert isinstance(rows.inputs["images"], np.memmap)
    assert rows.labels is None
    np.testing.assert_array_equal(rows.slice(1, 3)["images"], images[1:3])
    np.testing.assert_array_equal(rows.take(np.array([0, 4]))["images"], images[[0, 4]])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_npz_has_an_array_for_each_input_and_labels(tmp_path: Path, save: object) -> None:
    path = tmp_path / "rows.npz"
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    save(path, ids=np.arange(4), features=features, labels=np.array([1, 0, 2, 1], np.uint8))  # type: ignore[operator]
    rows = open_rows(str(path), [IDS, FEATURES])
    assert list(rows.inputs) == ["ids", "features"]
    assert all(isinstance(array, np.memmap) for array in rows.inputs.values())
    np.testing.assert_array_equal(rows.inputs["features"], features)
    assert rows.labels is not None
    assert rows.labels.dtype == np.int64
    assert rows.labels.tolist() == [1, 0, 2, 1]


def test_an_array_in_columns_keeps_its_values(tmp_path: Path) -> None:
    features = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    np.savez(tmp_path / "rows.npz", features)
    rows = open_rows(str(tmp_path / "rows.npz"), [FEATURES])
    np.testing.assert_array_equal(rows.inputs["features"], features)


@pytest.mark.parametrize("name", ["arr_0", "input", "features", "anything"])
def test_the_only_array_is_meant_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "rows.npz", **{name: np.zeros((2, 3), np.float32)})
    assert len(open_rows(str(tmp_path / "rows.npz"), [FEATURES])) == 2


def test_an_array_of_the_usual_name_is_taken_among_others(tmp_path: Path) -> None:
    """As in the golden rows of a bundle: its input, and what it answered."""
    rows = np.ones((2, 3), np.float32)
    np.savez(tmp_path / "golden.npz", input=rows, logits=np.zeros((2, 10), np.float32))
    found = open_rows(str(tmp_path / "golden.npz"), [FEATURES])
    np.testing.assert_array_equal(found.inputs["features"], rows)


def test_a_folder_of_images(tmp_path: Path, images: np.ndarray) -> None:
    for index, image in enumerate(images):
        Image.fromarray(image[:, :, 0]).save(tmp_path / f"{index}.png")
    rows = open_rows(str(tmp_path), [IMAGES])
    np.testing.assert_array_equal(rows.inputs["images"], images)
    assert isinstance(rows.inputs["images"], np.memmap)


def test_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "reviews.txt").write_text("a good film\n\nnaïve\n", encoding="utf-8")
    rows = open_rows(str(tmp_path / "reviews.txt"), [TEXT])
    assert rows.inputs["text"].tolist() == ["a good film", "", "naïve"]


def test_a_table(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,c\n1,2,3\n4,5,6.5\n")
    rows = open_rows(str(tmp_path / "rows.csv"), [FEATURES])
    assert rows.inputs["features"].tolist() == [[1, 2, 3], [4, 5, 6.5]]


def test_a_split_of_a_data_set(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ready)
    rows = open_rows("digits:test", [IMAGES])
    assert rows.name == "digits:test"
    assert len(rows) == 360
    assert rows.labels is not None
    assert rows.labels.shape == (360,)
    with pytest.raises(UnknownNameError, match="no split of digits named 'tset'; did you mean"):
        open_rows("digits:tset", [IMAGES])
    with pytest.raises(UnknownNameError, match="no data set named 'digit'; did you mean 'digits'"):
        open_rows("digit:test", [IMAGES])
    with pytest.raises(MissingInputError, match="ferry preprocess mnist"):
        open_rows("mnist:test", [IMAGES])


def test_a_split_of_another_shape_is_refused(ready: Path) -> None:
    with pytest.raises(InputError, match=r"digits:test holds uint8 \[360, 8, 8, 1\] for the input"):
        rows_of_split(ready / "data/ready/digits", "test", FEATURES)


def test_a_split_that_was_altered_is_refused(ready: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "digits"
    shutil.copytree(ready / "data/ready/digits", folder)
    path = folder / "test_inputs.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=r"test_inputs\.npy has sha256"):
        rows_of_split(folder, "test", IMAGES)


def refused(path: Path, *inputs: TensorInfo) -> str:
    with pytest.raises(InputError) as caught:
        open_rows(str(path), inputs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 3), np.float32))
    assert refused(tmp_path / "none.npy", FEATURES).endswith("none.npy holds no rows")
    np.savez(tmp_path / "none.npz", np.zeros((0, 3), np.float32))
    assert refused(tmp_path / "none.npz", FEATURES).endswith("none.npz holds no rows")
    (tmp_path / "none.txt").write_text("")
    assert "holds no rows" in refused(tmp_path / "none.txt", TEXT)
    (tmp_path / "folder").mkdir()
    assert "holds no images" in refused(tmp_path / "folder", IMAGES)


def test_rows_of_another_dtype_or_shape_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", features=np.zeros((2, 4), np.float64))
    message = refused(tmp_path / "rows.npz", FEATURES)
    assert "holds float64 [2, 4] for the input 'features'" in message
    assert "takes float32 [rows, 3]" in message


def test_inputs_that_are_missing_or_do_not_match_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, ids=np.arange(4), more=np.zeros(4))
    assert "no array named 'features'" in refused(path, IDS, FEATURES)
    assert "there are: ids, more" in refused(path, IDS, FEATURES)
    np.savez(path, ids=np.arange(4), features=np.zeros((3, 3), np.float32))
    assert "as many rows of each input, got 4 of ids, 3 of features" in refused(path, IDS, FEATURES)


def test_a_file_of_one_input_does_not_feed_two(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(4))
    message = refused(tmp_path / "rows.npy", IDS, FEATURES)
    assert "the model has 2 (ids, features); give a .npz" in message


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, features=np.zeros((2, 3), np.float32), labels=np.zeros(2))
    assert "'labels' must be whole numbers [2], got float64 [2]" in refused(path, FEATURES)
    np.savez(path, features=np.zeros((2, 3), np.float32), labels=np.zeros(3, int))
    assert "got int64 [3]" in refused(path, FEATURES)


def test_pickled_and_broken_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, features=np.array([{"a": 1}], object))
    assert "features holds pickled objects" in refused(path, FEATURES)
    path.write_bytes(path.read_bytes()[:100])
    assert "is not a .npz file" in refused(path, FEATURES)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", b"no array")
    assert "is not a .npz file" in refused(path, FEATURES)


def test_one_broken_image_is_named(tmp_path: Path, images: np.ndarray) -> None:
    Image.fromarray(images[0, :, :, 0]).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    assert refused(tmp_path, IMAGES).startswith(str(tmp_path / "1.png"))


def test_what_is_not_there_and_what_nobody_reads(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"is not there; rows are \.npy"):
        open_rows(str(tmp_path / "nowhere.npy"), [FEATURES])
    (tmp_path / "rows.doc").write_text("x")
    assert "unknown suffix '.doc'" in refused(tmp_path / "rows.doc", FEATURES)
