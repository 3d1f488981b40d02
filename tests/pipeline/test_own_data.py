"""A user's own data: read where they lie, by readers that params.yaml names."""

import csv
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from project import REPOSITORY
from training import run

from pipeline.config.experiment import OwnSection, Params
from pipeline.config.fitting import check
from pipeline.config.params import load
from pipeline.datasets import readers, stratified
from pipeline.errors import ConfigError
from pipeline.records.ready import DatasetManifest, open_split
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import PullReport, pull_own
from pipeline.training.tuning import search
from serving.errors import FerryError, InputError, IntegrityError, MissingInputError
from serving.files import sha256_of_bytes

RANDOM = np.random.default_rng(1)
IMAGES = {"reader": "image_folder", "path": "flowers", "size": [8, 12], "color": "rgb"}
TABLE = {"reader": "table", "path": "rows.csv", "label": "kind"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of params.yaml, to which the paths of a section are relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(**settings: Any) -> OwnSection:
    section = {"validation_rows": 0.1, "test_rows": 0.1, "seed": 1, **settings}
    return OwnSection(reader=section["reader"], settings=section)


def pulled(**settings: Any) -> PullReport:
    return pull_own(Path("data/raw/mine"), name="mine", section=own(**settings))


def made(**settings: Any) -> DatasetManifest:
    """Pull and preprocess, as a user would."""
    pulled(**settings)
    raw, ready = Path("data/raw/mine"), Path("data/ready/mine")
    return preprocess(raw, ready, name="mine", config=own(**settings))


def write_images(root: str, counts: dict[str, int], size: tuple[int, int] = (10, 14)) -> None:
    for label, count in counts.items():
        for index in range(count):
            pixels = RANDOM.integers(0, 256, (*size, 3), np.uint8)
            save(Image.fromarray(pixels), f"{root}/{label}/{index}.png")


def save(image: Image.Image, path: str, **settings: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)


def write_csv(path: str, header: list[str], rows: list[list[Any]], delimiter: str = ",") -> None:
    with Path(path).open("w", newline="", errors="surrogateescape") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def two_kinds(count: int = 20) -> list[list[Any]]:
    return [[index / 4, -index, "ab"[index % 2]] for index in range(count)]


# Each reader, from the files to the arrays


def test_images_of_class_folders() -> None:
    write_images("flowers", {"rose": 20, "tulip": 20})
    manifest = made(**IMAGES)
    assert (manifest.kind, manifest.labels) == ("image", ("rose", "tulip"))
    assert manifest.class_counts == {"train": (16, 16), "validation": (2, 2), "test": (2, 2)}
    train = open_split(Path("data/ready/mine"), "train")
    assert train.names is not None
    for row in (0, -1):
        name = str(train.names[row])
        assert name.startswith(manifest.labels[train.labels[row]])
        with Image.open(f"flowers/{name}") as image:
            expected = image.resize((12, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(train.inputs[row], expected)


def test_images_are_seen_as_a_person_sees_them() -> None:
    write_images("flowers", {"a": 3, "b": 3}, size=(4, 2))
    half = Image.new("RGB", (4, 2), "black")  # lies on its side, says the camera
    half.paste("white", (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    save(half, "flowers/a/turned.png", exif=exif)
    save(Image.new("RGBA", (2, 4), (0, 0, 0, 0)), "flowers/a/clear.png")
    hidden = {"a/.hidden.png": b"", "a/notes.txt": b"", "cover.png": b"", ".cache/x.png": b""}
    for name, content in hidden.items():
        Path(f"flowers/{name}").parent.mkdir(exist_ok=True)
        Path(f"flowers/{name}").write_bytes(content)
    config = readers.settings(own(**IMAGES | {"color": "grey", "size": None}), "datasets.mine")
    part, _ = readers.read(config)
    assert part.inputs.shape == (8, 4, 2, 1)
    found = dict(zip(part.names, part.inputs[..., 0].tolist(), strict=True))
    assert found["a/turned.png"] == [[255, 255], [255, 255], [0, 0], [0, 0]]
    assert found["a/clear.png"] == [[255, 255]] * 4
    assert part.notes == ("left out what is no image of a class: 2 (cover.png, a/notes.txt)",)


def test_images_of_a_list_with_a_test_part_of_its_own() -> None:
    for part, count in (("train", 12), ("test", 4)):
        write_images(f"pictures/{part}", {"x": count})
        names = [f"./{part}/x/{index}.png" for index in range(count)]
        rows = [[name, 2 + 8 * (index % 2)] for index, name in enumerate(names)]
        write_csv(f"pictures/{part}.csv", ["file", "digit"], rows)
    manifest = made(
        **IMAGES | {"path": "pictures/train.csv", "test": "pictures/test.csv"},
        image="file",
        label="digit",
    )
    assert manifest.labels == ("2", "10")  # as numbers, and not as texts
    assert manifest.class_counts["test"] == (2, 2)
    names = [file.name for file in pulled(**IMAGES | {"path": "pictures/train.csv"}, image="file",
             label="digit").files]  # fmt: skip
    assert names == sorted(names)
    assert {"path/train.csv", "path/./train/x/0.png"} <= set(names)


@pytest.mark.parametrize(("delimiter", "decimal"), [(",", "."), (";", ","), ("\t", ".")])
def test_a_table_with_classes(
    delimiter: str, decimal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[index, *row, "text", 7] for index, row in enumerate(two_kinds())]
    for row in rows:
        row[1] = str(row[1]).replace(".", decimal)
    write_csv("rows.csv", ["", "x", "y", "kind", "city", "same"], rows, delimiter)
    manifest = made(**TABLE, decimal=decimal, citation="Me, 2026", licence="CC0")
    assert manifest.features == ("x", "y", "same")  # neither the numbers of rows nor a text
    assert (manifest.labels, manifest.citation, manifest.licence) == (("a", "b"), "Me, 2026", "CC0")
    train = open_split(Path("data/ready/mine"), "train")
    assert train.names is not None
    for inputs, label, name in zip(train.inputs, train.labels, train.names, strict=True):
        x, y, kind = two_kinds()[int(name.removeprefix("row ")) - 1]
        assert (inputs.tolist(), manifest.labels[label]) == ([x, y, 7], kind)
    said = capsys.readouterr().err
    assert "mine: left out columns of no numbers: 1 (city: 'text')" in said
    assert "mine: column same has the same value in every training row" in said


def test_what_divides_the_fields_is_what_predict_takes_to_divide_them() -> None:
    rows = [[index, -index, "ab"[index % 2]] for index in range(20)]
    write_csv("rows.csv", ["height, m", "y", "kind"], rows, ";")
    assert made(**TABLE).features == ("height, m", "y")


def test_a_table_with_numbers_to_be_predicted() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = RANDOM.normal(size=(60, 3))
    values[5, 0] = np.nan
    names = ("x", "y", "z")
    columns: dict[str, Any] = dict(zip(names, values.T, strict=True))
    pq.write_table(pa.table(columns | {"ok": [True, False] * 30}), "rows.parquet")
    settings = {"reader": "table", "path": "rows.parquet", "target": ["z", "y"], "missing": -1}
    manifest = made(**settings, features=["ok", "x"])
    assert (manifest.labels, manifest.targets) == ((), ("z", "y"))
    assert manifest.rows == {"train": 49, "validation": 5, "test": 6}
    parts = [open_split(Path("data/ready/mine"), part) for part in manifest.rows]
    labels = np.concatenate([part.labels for part in parts])
    inputs = np.concatenate([part.inputs for part in parts])
    order = np.concatenate([[int(str(name)[4:]) - 1 for name in part.names] for part in parts])
    assert labels.dtype == np.float32
    assert sorted(order) == list(range(60))
    np.testing.assert_array_equal(labels, values[order][:, [2, 1]].astype(np.float32))
    assert inputs[order == 5].tolist() == [[0, -1]]


def test_texts_of_class_files_and_of_columns() -> None:
    Path("reviews").mkdir()
    good, bad = ([f"{word} film {index}" for index in range(10)] for word in ("good", "bad"))
    Path("reviews/pos.txt").write_text("\n".join(good) + "\n")
    Path("reviews/neg.txt").write_bytes("\ufeff".encode() + "\r\n\r\n".join(bad).encode())
    absolute = str(Path("reviews/pos.txt").resolve())
    files = made(reader="text", path="reviews", classes={"up": absolute, "down": "neg.txt"})
    assert (files.kind, files.labels) == ("text", ("down", "up"))
    train = open_split(Path("data/ready/mine"), "train")
    assert set(train.inputs[train.labels == 0]) < set(bad)
    assert set(train.inputs[train.labels == 1]) < set(good)
    write_csv("reviews.csv", ["t", "l"], [*([text, 1] for text in good), *([t, 0] for t in bad)])
    columns = made(reader="text", path="reviews.csv", text="t", label="l")
    assert (columns.labels, columns.rows) == (("0", "1"), files.rows)


def test_arrays_of_a_file_and_of_a_folder() -> None:
    images = RANDOM.integers(0, 256, (40, 6, 5), np.uint8)
    labels = np.arange(40) % 2
    Path("mine").mkdir()
    parts = {"x_train": images[:30], "y_train": labels[:30], "x_test": images[30:]}
    parts["y_test"] = labels[30:]
    np.savez("mine.npz", **parts)
    for name, array in parts.items():
        np.save(f"mine/{name}.npy", array)
    keys = ("inputs", "labels", "test_inputs", "test_labels")
    names = dict(zip(keys, ("x_train", "y_train", "x_test", "y_test"), strict=True))
    one = made(reader="arrays", path="mine.npz", **names)
    names = {key: f"{name}.npy" for key, name in names.items()}
    other = made(reader="arrays", path="mine", **names)
    assert (one.kind, one.labels, one.arrays) == ("image", ("0", "1"), other.arrays)
    test = open_split(Path("data/ready/mine"), "test")
    np.testing.assert_array_equal(test.inputs, images[30:, :, :, np.newaxis])
    np.save("mine/y_train.npy", RANDOM.normal(size=30))
    np.save("mine/x_train.npy", RANDOM.normal(size=(30, 3)))
    numbers = made(reader="arrays", path="mine", inputs="x_train.npy", labels="y_train.npy")
    assert (numbers.kind, numbers.targets) == ("table", ("y_train.npy_0",))


# What was hashed


def test_a_changed_picture_makes_another_manifest_and_must_be_pulled_first() -> None:
    write_images("flowers", {"rose": 5, "tulip": 5})
    made(**IMAGES)
    manifest = Path("data/raw/mine/manifest.json")
    before = manifest.read_bytes()
    assert [path.name for path in manifest.parent.iterdir()] == ["manifest.json"]  # no copies
    pulled(**IMAGES)
    assert manifest.read_bytes() == before
    raw, ready = Path("data/raw/mine"), Path("data/ready/mine")
    changes: dict[str, Callable[[], object]] = {
        r"flowers/rose/0\.png has changed since it was hashed; `ferry pull mine`": lambda: (
            write_images("flowers", {"rose": 1})
        ),
        r"flowers/tulip/9\.png is new since mine was hashed; `ferry pull mine`": lambda: Path(
            "flowers/rose/1.png"
        ).rename("flowers/tulip/9.png"),
        r"path/rose/2\.png of mine is gone since it was hashed; `ferry": lambda: Path(
            "flowers/rose/2.png"
        ).unlink(),
    }
    for said, change in changes.items():
        pulled(**IMAGES)
        change()
        with pytest.raises(IntegrityError, match=said if "gone" in said else f"{said}|is gone"):
            preprocess(raw, ready, name="mine", config=own(**IMAGES))
    pulled(**IMAGES)
    assert manifest.read_bytes() != before


def test_sums_are_kept_for_files_that_have_not_changed() -> None:
    write_csv("rows.csv", ["x", "y", "kind"], two_kinds())
    first = pulled(**TABLE)
    sums = Path("data/raw/.mine.sums.json")
    digest, text = sums.read_text().splitlines(keepends=True)
    assert list(json.loads(text).values()) == [first.files[0].sha256]
    other = text.replace(first.files[0].sha256, "0" * 64)
    sums.write_text(f"{sha256_of_bytes(other.encode())}\n{other}")
    assert pulled(**TABLE).files[0].sha256 == "0" * 64  # not read again
    sums.write_text(digest + other)  # it has rotted
    assert pulled(**TABLE) == first
    Path("rows.csv").write_bytes(Path("rows.csv").read_bytes())
    assert pulled(**TABLE) == first
    sums.write_text("{")
    assert pulled(**TABLE) == first
    times = Path("rows.csv").stat()
    Path("rows.csv").write_bytes(Path("rows.csv").read_bytes().replace(b"-1,", b"-2,"))
    os.utime("rows.csv", ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` leaves it
    assert pulled(**TABLE) != first


def test_data_that_moved_are_the_same_data() -> None:
    write_images("flowers", {"rose": 5, "tulip": 5})
    before = made(**IMAGES)
    Path("flowers").rename("elsewhere")
    assert made(**IMAGES | {"path": str(Path("elsewhere").resolve())}) == before


def test_what_was_read_elsewhere_is_kept_where_the_files_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_images("flowers", {"rose": 5, "tulip": 5})
    with pytest.raises(MissingInputError, match="`ferry pull mine` makes it"):
        preprocess(Path("data/raw/mine"), Path("ready"), name="mine", config=own(**IMAGES))
    before = pulled(**IMAGES)
    Path("flowers").rename("elsewhere")
    assert pulled(**IMAGES) == before
    assert "Warning: mine: flowers is not there; data/raw/mine/man" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^datasets\.mine: flowers is not there$"):
        preprocess(Path("data/raw/mine"), Path("ready"), name="mine", config=own(**IMAGES))
    Path("data/raw/mine/manifest.json").unlink()
    with pytest.raises(InputError, match=r"^datasets\.mine: flowers is not there$"):
        pulled(**IMAGES)


# What is wrong


def few(label: str) -> None:
    write_images("flowers", {"rose": 3, label: 3})


def table(*rows: list[Any], header: str = "x y kind") -> Callable[[], None]:
    return lambda: write_csv("rows.csv", header.split(), [*two_kinds(6), *rows])


def broken() -> None:
    few("tulip")
    content = Path("flowers/tulip/1.png").read_bytes()
    Path("flowers/tulip/1.png").write_bytes(content[: len(content) // 2])


def empty_class() -> None:
    few("tulip")
    Path("flowers/aster").mkdir()


def arrays_of(**arrays: Any) -> Callable[[], None]:
    return lambda: np.savez("mine.npz", **arrays)


def texts(content: bytes) -> Callable[[], None]:
    def write() -> None:
        Path("texts").mkdir()
        Path("texts/a.txt").write_bytes(b"one\ntwo\nthree\n")
        Path("texts/b.txt").write_bytes(content)

    return write


def huge_array() -> None:
    with Path("x.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1)}
        np.lib.format.write_array_header_1_0(file, header)


SIZELESS = IMAGES | {"size": None}
TEXTS = {"reader": "text", "path": "texts"}
ARRAYS = {"reader": "arrays", "path": "mine.npz", "inputs": "x", "labels": "y"}
ROWS = np.zeros((6, 2))
DOT = Image.new("RGB", (1, 1))
WRONG: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (lambda: None, IMAGES, "datasets.mine: flowers is not there"),
    (lambda: few("x"), IMAGES | {"colour": "rgb"}, "datasets.mine.colour is not a key; did you "),
    (lambda: few("x"), IMAGES | {"reader": "image_foldr"}, "did you mean 'image_folder'?"),
    (lambda: few("x"), IMAGES | {"test_rows": 1.5}, "datasets.mine.test_rows must be a whole num"),
    (lambda: few("x"), IMAGES | {"test_rows": 5}, "test_rows comes to 5 of 6 rows, and must be fr"),
    (lambda: few("Rose "), IMAGES, "flowers has the classes 'Rose ' and 'rose', which differ in"),
    (
        lambda: (few("a"), save(DOT, "flowers/a/\udcff.png")),
        IMAGES,
        "flowers/a/\\xff.png: its name is",
    ),
    (lambda: write_images("flowers", {"a": 9}), IMAGES, "flowers has one class, 'a'; a model te"),
    (
        lambda: write_images("flowers", {"a": 9, "b": 2}),
        IMAGES,
        "class 'b' has 2 of the 3 rows that it needs, one",
    ),
    (lambda: write_images("flowers", {"train": 3, "Test": 3}), IMAGES, "which are splits and no c"),
    (lambda: write_images("x", {"a": 3}), IMAGES | {"path": "x/a"}, "x/a holds no folders of ima"),
    (empty_class, IMAGES, "flowers/aster holds no images; fill the folder, or "),
    (broken, IMAGES, "flowers/tulip/1.png cannot be read: "),
    (
        lambda: (few("a"), write_images("flowers", {"b": 3}, (10, 9))),
        SIZELESS,
        "flowers: a/0.png is 10 x 14 pixels and b/0.png 10 x 9, high and wide; say size:",
    ),
    (
        lambda: (few("a"), write_images("more", {"fern": 3})),
        IMAGES | {"test": "more"},
        "more: fern/0.png is of class 'fern', of which no training row is",
    ),
    (table(header="x y kid"), TABLE, "rows.csv has no column 'kind'; did you mean 'kid'?"),
    (table(header="x y z"), TABLE, "rows.csv has no column 'kind'; there are x, y, z"),
    (table(["", 1, "a"]), TABLE, "row 7 has nothing in column 'x'; so have 1 of "),
    (table([1, 1, ""]), TABLE, "rows.csv: row 7 has nothing in column 'kind'"),
    (table(["1e39", 1, "a"]), TABLE, "row 7 has 1e+39 in column 'x', which float32 does not hold"),
    (table(header="x x kind"), TABLE, "rows.csv has several columns named 'x'"),
    (table(header="gr\udcf6\udcdfe y kind"), TABLE, "the names of the columns are not UTF-8"),
    (table(["z", 1, "a"]), TABLE | {"features": ["x"]}, "column 'x' holds '0.0', not numbers"),
    (table(), TABLE | {"features": ["x", "kind"]}, "column 'kind' is chosen twice, as a feature"),
    (table(), TABLE | {"features": ["x", "x"]}, "rows.csv: column 'x' is chosen twice, as a feat"),
    (table(), TABLE | {"label": "x"}, "labels such as 0.25 are numbers and no classes; to predict"),
    (
        table(),
        {"reader": "table", "path": "rows.csv"},
        "say either label: or target:, what is to be predicted of its columns: 3 (x, y, kind)",
    ),
    (table(), IMAGES | {"path": "rows.csv"}, "rows.csv has the columns x, y, kind; say image: and"),
    (
        table(["no.png", 1, "a"]),
        IMAGES | {"path": "rows.csv", "image": "x", "label": "kind"},
        "rows.csv: row 1 names 0.0, and 0.0 is not there, or no file",
    ),
    (texts(b"\xff\n"), TEXTS, "texts/b.txt: line 1 is not UTF-8: byte 0xff after 0 characters"),
    (texts(b" \n\n"), TEXTS, "texts/b.txt holds no text; write one a line, or take the file away"),
    (
        texts(b"y" * 10_000_000 + b"\nz" * 50_000),
        TEXTS,
        "texts: texts of up to 10,000,000 characters (b.txt line 1) take 3,725.6 GiB of memory, ",
    ),
    (lambda: few("a"), IMAGES | {"size": [10**6, 10**6]}, "flowers: 6 images of 1000000 x 1000000"),
    (texts(b"x"), TEXTS | {"classes": {"c": "c.txt"}}, "texts/c.txt is not there, or no file"),
    (arrays_of(z=ROWS), ARRAYS, "mine.npz has no array 'x'; there are z"),
    (arrays_of(x=ROWS, y=ROWS[:3]), ARRAYS, "both must have the same number of rows, one or more"),
    (
        arrays_of(x=ROWS * np.nan, y=ROWS[:, 0]),
        ARRAYS,
        "mine.npz: x: row 0 holds a value that is no",
    ),
    (
        arrays_of(x=np.zeros((6, 2, 2)), y=ROWS[:, 0]),
        ARRAYS,
        "x holds float64 [6, 2, 2]; images ar",
    ),
    (
        huge_array,
        ARRAYS | {"path": ".", "inputs": "x.npy", "labels": "x.npy"},
        ".: x.npy is no arr",
    ),
    (arrays_of(x=np.array([{}] * 6), y=ROWS), ARRAYS, "mine.npz: x is no array that can be read; "),
]


@pytest.mark.parametrize(("write", "settings", "said"), WRONG, ids=[case[2] for case in WRONG])
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(
    write: Callable[[], Any], settings: dict[str, Any], said: str
) -> None:
    write()
    with pytest.raises(FerryError) as caught:
        made(**settings)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert not Path("data/ready").exists()


# Its section of params.yaml


def params_with(line: str) -> Params:
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("  xor: {validation_rows: 0}\n", "")
    Path("params.yaml").write_text(text.replace("datasets:\n", f"datasets:\n  {line}\n", 1))
    return load(Path("params.yaml"))


def test_a_section_may_be_short_and_takes_the_defaults() -> None:
    write_csv("rows.csv", ["x", "y", "kind"], two_kinds())
    section = params_with("mine: {reader: table, path: rows.csv, label: kind}").dataset("mine")
    assert isinstance(section, OwnSection)
    config = readers.settings(section, "datasets.mine")
    assert (config.validation_rows, config.test_rows, config.seed) == (0.1, 0.1, 1)
    pull_own(Path("raw"), name="mine", section=section)
    manifest = preprocess(Path("raw"), Path("ready"), name="mine", config=section)
    assert manifest.rows == {"train": 16, "validation": 2, "test": 2}
    assert json.loads(Path("raw/manifest.json").read_text())["files"][0]["name"] == "path/rows.csv"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("xor: {reader: table, path: x}", "datasets.xor is a data set of ferry's; choose another"),
        ("../x: {reader: table, path: x}", "datasets.../x is not a name of letters, digits, '-' "),
    ],
)
def test_a_name_that_cannot_be_taken_is_refused(line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        params_with(line)


def test_a_model_that_does_not_fit_is_refused_once_the_data_are_known(params: Params) -> None:
    write_csv("rows.csv", ["x", "y", "kind"], [*two_kinds(), [1, 1, "c"], [2, 2, "c"], [3, 3, "c"]])
    manifest = made(**TABLE)
    digits = params.experiment("digits-mlp")
    experiment = replace(digits, dataset="mine")
    check(experiment)
    check(experiment, manifest)
    two = replace(experiment, train=replace(digits.train, loss="binary_cross_entropy"))
    with pytest.raises(ConfigError, match="tells two classes apart, mine has 3"):
        check(two, manifest)
    losses = replace(experiment, search={"train.loss": ("cross_entropy", "binary_cross_entropy")})
    said = r"search\.train\.loss: binary_cross_entropy will not do: .*apart, mine has 3"
    with pytest.raises(ConfigError, match=said):
        search.check(losses, manifest)
    with pytest.raises(ConfigError, match="tells two classes apart, mine has 3"):
        run(Path(), two, Path("run"))
    network = replace(params.experiment("rt-lstm"), dataset="mine")
    with pytest.raises(ConfigError, match="text_lstm takes text rows, mine has table rows"):
        check(network, manifest)


def test_a_rare_class_goes_to_both_sides() -> None:
    labels = np.array([0] * 300 + [1] * 2 + [2] * 3)
    left, taken = stratified(labels, 5, 1)
    assert sorted([*left, *taken]) == list(range(305))
    assert len(taken) == 5
    assert set(labels[left]) == set(labels[taken]) == {0, 1, 2}
