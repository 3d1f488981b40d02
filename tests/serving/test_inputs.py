"""All inputs of a run: what their names stand for, in which order they come, where to go on."""

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet
from samples_of_rows import as_stdin, ids, opened, rows, sha256, write_inputs
from tiny_classifier import images
from tiny_images import encoded, write
from tiny_kinds import TEXTS, features, passing, table_classifier, text_classifier
from tiny_onnx import FLOAT

from serving.errors import (
    FerryError,
    InputError,
    IntegrityError,
    MissingInputError,
    UnknownNameError,
    UsageError,
)
from serving.inputs.images import Images
from serving.inputs.inputs import Inputs, Place, open_inputs
from serving.inputs.sources import InputRow, ReadOptions
from serving.inputs.tars import TarImages
from serving.model import Model

PIXELS = images(10)


@pytest.fixture
def of_text(tmp_path: Path) -> Model:
    return opened(tmp_path, text_classifier())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files of every kind for a model of images."""
    folder = tmp_path / "here"
    write_inputs(folder, PIXELS)
    listed = "".join(f"photos/{'ab'[index % 2]}/{index}.png\n" for index in range(10))
    (folder / "rows.lst").write_text(listed)
    monkeypatch.chdir(folder)
    return folder


def refused(inputs: list[str], model: Model, **options: object) -> str:
    with pytest.raises(FerryError) as caught:
        list(open_inputs(inputs, model, ReadOptions(**options)))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


KINDS = [
    *("rows.npy", "rows.npz", "rows-idx3-ubyte", "rows-idx3-ubyte.gz", "rows.parquet"),
    *("packed.npz", "rows.arrow", "rows.tar", "rows.tar.gz", "rows.lst"),
]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(here: Path, of_images: Model, name: str) -> None:
    inputs = open_inputs([name], of_images)
    np.testing.assert_array_equal(rows(inputs), PIXELS)
    assert inputs.count in (10, None)


def test_a_folder_gives_its_images(here: Path, of_images: Model) -> None:
    inputs = open_inputs(["photos"], of_images)
    np.testing.assert_array_equal(rows(inputs), np.concatenate([PIXELS[0::2], PIXELS[1::2]]))
    assert open_inputs(["rows.npy", "photos"], of_images).count == 20


# Where to go on


def test_chunks_go_on_from_any_place(here: Path, of_images: Model) -> None:
    inputs = open_inputs(["rows.npy", "photos/a", "rows-idx3-ubyte.gz"], of_images)
    cut = list(inputs.chunks(4))
    places = [(number, chunk.start, chunk.count) for number, chunk in cut]
    assert places == [(0, 0, 4), (0, 4, 4), (0, 8, 2), (1, 0, 4), (1, 4, 1), (2, 0, 4), (2, 4, 4), (2, 8, 2)]  # fmt: skip  # noqa: E501
    for done in range(len(cut) + 1):
        end = Place(cut[done - 1][0], cut[done - 1][1].start + cut[done - 1][1].count)
        left = inputs.chunks(4, end if done else Place(0, 0))
        assert [(number, chunk.start, chunk.count) for number, chunk in left] == places[done:]


def test_inputs_can_be_sent_to_other_processes(here: Path, of_images: Model) -> None:
    inputs = open_inputs([*KINDS, "photos"], of_images)
    there = pickle.loads(pickle.dumps(inputs))
    assert there == inputs
    assert ids(there) == ids(inputs)


def test_the_fingerprint_is_of_all_inputs(here: Path, of_images: Model) -> None:
    names = ["rows.npy", "rows.parquet"]
    before = open_inputs(names, of_images).fingerprint()
    assert before == open_inputs(names, of_images).fingerprint()
    assert before != open_inputs(names[::-1], of_images).fingerprint()
    np.save("rows.npy", PIXELS[:5])
    assert before != open_inputs(names, of_images).fingerprint()


def test_images_in_a_row_are_cut_together(here: Path, of_images: Model) -> None:
    """A shell gives every image by itself; a chunk of each alone would be a batch of one."""
    singles = sorted(str(path) for path in Path("photos").rglob("*.png"))
    inputs = open_inputs([*singles, "photos/a", "rows.npy", "rows.tar", "rows.tar"], of_images)
    first, _, last = inputs.sources
    assert isinstance(first, Images)
    assert first.count == 15
    assert isinstance(last, TarImages)
    assert [chunk.count for _, chunk in inputs.chunks(8)] == [8, 7, 8, 2, 8, 8, 4]
    assert ids(inputs)[:10] == singles


# Names


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("photos/a/*.png", [f"photos/a/{index}.png" for index in (0, 2, 4, 6, 8)]),
        ("photos/?/[01].png", ["photos/a/0.png", "photos/b/1.png"]),
        ("photos/**/*[23].png", ["photos/a/2.png", "photos/b/3.png"]),
        ("**/a/**/[04].png", ["photos/a/0.png", "photos/a/4.png"]),
        ("phot*/**/a/*6.png", ["photos/a/6.png"]),
        ("phot*", [f"photos/{'ab'[i % 2]}/{i}.png" for i in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]),
        ("photos/**", [f"photos/{'ab'[i % 2]}/{i}.png" for i in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]),
    ],
)
def test_a_pattern_is_expanded_as_a_shell_does(
    here: Path, of_images: Model, pattern: str, found: list[str]
) -> None:
    write(here / "photos/a/.hidden.png", b"no image")
    assert ids(open_inputs([pattern], of_images)) == found


def test_links_that_lead_back_are_not_followed(here: Path, of_images: Model) -> None:
    """Of two there are more paths than anybody can look at."""
    for name in ("one", "other"):
        (here / "photos" / name).symlink_to(".")
    assert ids(open_inputs(["photos/**/2.png"], of_images)) == ["photos/a/2.png"]
    assert ids(open_inputs([f"{here}/**/**/2.png"], of_images)) == [f"{here}/photos/a/2.png"]


@pytest.mark.parametrize("name", ["rows.npy", "rows.csv.gz", "rows.jsonl", "rows.lst"])
def test_a_pipe_is_not_waited_for(here: Path, of_images: Model, name: str) -> None:
    (here / "pipes").mkdir()
    os.mkfifo(here / "pipes" / name)
    reason = f"pipes/{name} is a pipe or a device, not a file"
    assert refused([f"pipes/{name}"], of_images) == reason
    last, *others = reversed(list(open_inputs(["photos", f"pipes/{name}"], of_images)))
    assert (last.id, len(others)) == (f"pipes/{name}", 10)


def test_a_file_whose_name_looks_like_a_pattern(here: Path, of_images: Model) -> None:
    write(here / "a[1].png", encoded(PIXELS[0], "PNG"))
    write(here / "a1.png", encoded(PIXELS[1], "PNG"))
    assert ids(open_inputs(["a[1].png"], of_images)) == ["a[1].png"]


def test_nothing_matches(here: Path, of_images: Model) -> None:
    with pytest.raises(InputError, match=r"^no input matches 'photos/\*\.jpg'$"):
        open_inputs(["photos/*.jpg"], of_images)


def split(folder: Path, array: np.ndarray) -> Path:
    """A preprocessed data set, as `ferry preprocess` leaves it."""
    path = folder / "data/ready/toy/test_inputs.npy"
    path.parent.mkdir(parents=True)
    np.save(path, array)
    arrays = {path.name: {"sha256": sha256(path.read_bytes())}}
    (path.parent / "manifest.json").write_text(json.dumps({"arrays": arrays}))
    return path


def test_a_split_of_a_data_set(here: Path, of_images: Model) -> None:
    split(here, PIXELS)
    inputs = open_inputs(["toy:test"], of_images)
    np.testing.assert_array_equal(rows(inputs), PIXELS)
    assert ids(inputs)[3] == "data/ready/toy/test_inputs.npy:3"
    write(here / "toy:test" / "a.png", encoded(PIXELS[0], "PNG"))
    assert ids(open_inputs(["toy:test"], of_images)) == ["toy:test/a.png"]


def test_a_split_is_found_from_a_folder_below(
    here: Path, of_images: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    split(here, PIXELS)
    (here / "photos").mkdir(exist_ok=True)
    monkeypatch.chdir(here / "photos")
    inputs = open_inputs(["toy:test"], of_images)
    assert ids(inputs)[0] == "../data/ready/toy/test_inputs.npy:0"


def test_splits_that_are_not_there(here: Path, of_images: Model) -> None:
    path = split(here, PIXELS)
    with pytest.raises(UnknownNameError) as unknown:
        open_inputs(["toy:all"], of_images)
    assert str(unknown.value) == ("no split of toy named 'all'; there are test, train, validation")
    for name in ("toy:train", "mnist:test"):
        with pytest.raises(MissingInputError, match=f"`ferry preprocess {name.partition(':')[0]}`"):
            open_inputs([name], of_images)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"test_inputs\.npy has sha256 .* was recorded"):
        open_inputs(["toy:test"], of_images)
    (path.parent / "manifest.json").write_text('{"arrays": {}}')
    with pytest.raises(IntegrityError, match=r"manifest\.json does not tell of test_inputs\.npy"):
        open_inputs(["toy:test"], of_images)


def test_what_no_input_is(here: Path, of_images: Model) -> None:
    with pytest.raises(MissingInputError, match=r"^gone\.npy is not there$"):
        open_inputs(["gone.npy"], of_images)
    for name in ("notes.doc", "noends"):
        (here / name).touch()
    assert "unknown suffix ''" in refused(["noends"], of_images)
    message = refused(["notes.doc"], of_images)
    assert "unknown suffix '.doc'; give a folder of images, or .txt, .csv" in message
    for known in (".parquet", ".arrow", ".npz", ".png", ".tar.gz", ".lst", "*-ubyte"):
        assert known in message


# Options


def test_options_that_no_input_has_a_use_for(here: Path, of_images: Model, of_text: Model) -> None:
    with pytest.raises(UsageError, match=r"^--column is for \.csv, .*; no input is one of these$"):
        open_inputs(["rows.npy"], of_images, ReadOptions(columns=("a",)))
    with pytest.raises(UsageError, match=r"^--column is for"):
        open_inputs(["-"], of_text, ReadOptions(columns=("a",)))
    with pytest.raises(UsageError, match="--input-format is for stdin; no input is -"):
        open_inputs(["rows.npy"], of_images, ReadOptions(input_format="npy"))
    with pytest.raises(UsageError, match="- is stdin, which can be read once only"):
        open_inputs(["-", "rows.npy", "-"], of_images)
    assert "holds no array named 'x'" in refused(["rows.npz"], of_images, array="x")


def test_images_are_fitted_wherever_they_come_from(here: Path, of_images: Model) -> None:
    large = encoded(np.zeros((9, 9, 3), np.uint8), "PNG")
    write(here / "large.png", large)
    parquet.write_table(pa.table({"image": [large]}), "large.parquet")
    for name in ("large.png", "large.parquet"):
        assert len(list(open_inputs([name], of_images, ReadOptions(resize=True)))) == 1
        (item,) = open_inputs([name], of_images)
        assert not isinstance(item, InputRow)


# Stdin


def from_stdin(
    monkeypatch: pytest.MonkeyPatch, content: bytes, model: Model, **options: object
) -> Inputs:
    monkeypatch.setattr("sys.stdin", as_stdin(content))
    return open_inputs(["-"], model, ReadOptions(**options))


def test_stdin_holds_what_the_model_takes(
    here: Path, tmp_path: Path, of_images: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = from_stdin(monkeypatch, (here / "rows.lst").read_bytes(), of_images)
    np.testing.assert_array_equal(rows(inputs), PIXELS)
    texts = "".join(f"{text}\n" for text in TEXTS).encode()
    inputs = from_stdin(monkeypatch, texts, opened(tmp_path, text_classifier()))
    assert [item.value.item() for item in inputs if isinstance(item, InputRow)] == TEXTS
    table = b"a,b,c\n1,2,3\n"
    inputs = from_stdin(monkeypatch, table, opened(tmp_path, table_classifier()))
    assert rows(inputs).tolist() == [[1, 2, 3]]
    cube = opened(tmp_path, passing(FLOAT, ["n", 2, 2, 2]))
    assert "say what comes, npy or arrow, with --input-format" in refused(["-"], cube)


def arrow(columns: dict[str, object]) -> bytes:
    sink, table = io.BytesIO(), pa.table(columns)
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_stdin_holds_what_is_said(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, values = opened(tmp_path, table_classifier()), features(5)
    file = io.BytesIO()
    np.save(file, values)
    columns = {name: values[:, index] for index, name in enumerate("abc")}
    records = "".join(
        f"{json.dumps(dict(zip('abc', row, strict=True)))}\n" for row in values.tolist()
    )
    sent = {"npy": file.getvalue(), "arrow": arrow(columns), "jsonl": records.encode()}
    for form, content in sent.items():
        inputs = from_stdin(monkeypatch, content, model, input_format=form)
        assert inputs.fingerprint() is None
        np.testing.assert_array_equal(rows(inputs), values)
    with pytest.raises(
        UnknownNameError, match=r"no input format named 'cvs'; did you mean 'csv'\?"
    ):
        from_stdin(monkeypatch, b"", model, input_format="cvs")


def test_columns_of_stdin(here: Path, of_text: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    table = b"title,body\na,good\nb,bad\n"
    inputs = from_stdin(monkeypatch, table, of_text, input_format="csv", columns=("body",))
    assert [item.value.item() for item in inputs if isinstance(item, InputRow)] == ["good", "bad"]


def test_stdin_among_files(here: Path, of_images: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", as_stdin(b"photos/b/3.png\nphotos/a/4.png\n"))
    inputs = open_inputs(["photos/a", "-", "rows.npy"], of_images)
    assert inputs.count is None
    assert inputs.fingerprint() is None
    found = ids(inputs)
    assert found[5:8] == ["photos/b/3.png", "photos/a/4.png", "rows.npy:0"]
    assert len(found) == 17


def test_a_path_that_is_not_utf8(here: Path, of_images: Model) -> None:
    name = os.fsdecode(b"caf\xe9.npy")
    np.save(name, PIXELS)
    assert ids(open_inputs([name], of_images))[0] == "caf\\xe9.npy:0"
