"""Inputs at addresses: what is fetched, how its rows are named, and what goes wrong on the way."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from buckets import buckets
from raw_server import ENDLESS, FAULTS, GREETINGS, Answer, RawServer, good
from samples_of_rows import (
    IMAGES,
    ROOT,
    batches,
    faults_of,
    ids,
    opened,
    rows,
    rows_of,
    target,
    write_inputs,
)
from tiny_classifier import classifier, images
from tiny_images import encoded, write
from tiny_kinds import TEXTS, features, table_classifier, text_classifier
from web_folder import Web, served

from serving.batch import engine
from serving.batch.predict import predict
from serving.batch.run import PredictOptions
from serving.errors import FerryError, InputError, MissingInputError, OutputError
from serving.inputs import decoding, fetching, tars
from serving.inputs.fetching import content_of, fetched, listed, look
from serving.inputs.inputs import Inputs, open_inputs
from serving.inputs.names import PACKAGES
from serving.inputs.remote import RemoteImages, open_remote_images
from serving.inputs.sources import InputRow, ReadOptions, RowSource, UnreadableRow, each_row
from serving.model import Model

PIXELS = images(10)
PNGS = [encoded(pixels, "PNG") for pixels in PIXELS]
FILES = [
    *("rows.npy", "rows.npz", "packed.npz", "rows-idx3-ubyte", "rows-idx3-ubyte.gz"),
    *("rows.parquet", "rows.arrow", "rows.tar", "rows.tar.gz"),
]


@pytest.fixture(autouse=True)
def _near(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting between tries, no proxy, and temporary folders that a test can look for."""
    monkeypatch.setattr(fetching, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A server of files of every kind, for models of images, of texts and of a table."""
    folder = tmp_path / "web"
    write_inputs(folder, PIXELS)
    write(folder / "photos/.hidden.png", b"no image")
    write(folder / "photos/notes.html", b"no image")
    (folder / "bare").mkdir()
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    lines = [dict(zip("abc", row, strict=True)) for row in features(5).tolist()]
    (folder / "table.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    values = "".join(",".join(map(str, line.values())) + "\n" for line in lines)
    (folder / "table.csv").write_text(f"a,b,c\n{values}")
    with served(folder) as found:
        yield found


def temporary(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "temporary").iterdir())


def only(inputs: Inputs) -> RowSource:
    (source,) = inputs.sources
    return source


# Files that are fetched as a whole


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_rows_that_it_gives_here(
    web: Web, of_images: Model, tmp_path: Path, name: str
) -> None:
    address = f"{web.url}/{name}"
    there, here = open_inputs([address], of_images), open_inputs([web.folder / name], of_images)
    assert there.count is None
    assert "GET" not in " ".join(web.asked)
    np.testing.assert_array_equal(rows(there), rows(here))
    assert ids(there) == [one.replace(str(web.folder), web.url) for one in ids(here)]
    # As they are decoded by a process that is behind, after the last one was cut.
    source = only(there)
    assert source.slow == (name in ("rows.parquet", "rows.arrow", "rows.tar", "rows.tar.gz"))
    chunks = list(source.chunks(4, 4))
    assert temporary(tmp_path) == []
    elsewhere = pickle.loads(pickle.dumps(source))
    found = [elsewhere.decode(pickle.loads(pickle.dumps(chunk))) for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in found]), PIXELS[4:])
    assert [one for batch in found for one in batch.ids] == ids(there)[4:]


def test_texts_and_tables(web: Web, tmp_path: Path) -> None:
    texts = open_inputs([f"{web.url}/texts.txt"], opened(tmp_path, text_classifier()))
    assert [item.value.item() for item in texts if isinstance(item, InputRow)] == TEXTS
    model = opened(tmp_path, table_classifier())
    for name in ("table.csv", "table.jsonl"):
        table = open_inputs([f"{web.url}/{name}?version=2"], model)
        np.testing.assert_array_equal(rows(table), features(5))
        assert ids(table)[4] == f"{web.url}/{name}?version=2:4"
    columns = ReadOptions(columns=("c", "b", "a"))
    swapped = open_inputs([f"{web.url}/table.csv?version=2"], model, columns)
    np.testing.assert_array_equal(rows(swapped), features(5)[:, ::-1])


def test_a_stopped_reader_leaves_nothing(web: Web, of_images: Model, tmp_path: Path) -> None:
    inputs = open_inputs([f"{web.url}/rows.tar", f"{web.url}/rows.npy"], of_images)
    chunks = inputs.chunks(4)
    next(chunks)
    (folder,) = temporary(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["rows.tar"]
    chunks.close()  # type: ignore[attr-defined]
    assert temporary(tmp_path) == []
    assert "GET /rows.npy" not in web.asked


def test_large_images_of_a_shard_are_not_held(
    web: Web, of_images: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MOST_PACKED_BYTES", len(PNGS[3]) - 1)
    source = only(open_inputs([f"{web.url}/rows.tar"], of_images))
    faults = faults_of(source)
    assert 3 in faults
    assert faults[3].startswith(f"it has {len(PNGS[3])} bytes, the limit in a shard that is fetch")
    assert set(faults) == {at for at, png in enumerate(PNGS) if len(png) >= len(PNGS[3])}


def test_what_does_not_fit_names_the_address(web: Web, tmp_path: Path) -> None:
    model = opened(tmp_path, table_classifier())
    for name in ("rows.npy", "rows-idx3-ubyte"):
        inputs = open_inputs([f"{web.url}/{name}"], model)
        with pytest.raises(
            InputError, match=rf"^{web.url}/{name} holds uint8 \[10, 4, 5"
        ) as message:
            list(inputs)
        assert str(tmp_path / "temporary") not in str(message.value)
    write(web.folder / "broken.tar", (web.folder / "rows.tar").read_bytes()[:3000])
    broken = only(open_inputs([f"{web.url}/broken.tar"], opened(tmp_path, classifier())))
    *_, rest = each_row(broken)
    assert isinstance(rest, UnreadableRow)
    assert rest.id == f"{web.url}/broken.tar"
    assert rest.reason.startswith("is damaged after ")
    assert temporary(tmp_path) == []


# Images


def test_images_folders_and_patterns(web: Web, of_images: Model) -> None:
    singles = [f"{web.url}/photos/{'ab'[index % 2]}/{index}.png" for index in range(10)]
    source = only(open_inputs(singles, of_images))
    assert isinstance(source, RemoteImages)
    assert source.count == 10
    assert [list(batch.ids) for batch in batches(source, 8)] == [singles[:8], singles[8:]]
    np.testing.assert_array_equal(rows_of(source, 4, 4), PIXELS[4:])
    by_folder = [*singles[0::2], *singles[1::2]]
    for name in ("photos/**/*.png", "photos/[ab]/*"):
        assert ids(open_inputs([f"{web.url}/{name}"], of_images)) == by_folder
    for name in ("photos/", "photos"):  # what is no image is named, and not fetched
        source = only(open_inputs([f"{web.url}/{name}"], of_images))
        assert [image.address for image in source.images] == [
            *by_folder,
            f"{web.url}/photos/notes.html",
        ]
        assert faults_of(source) == {10: "it is not named as an image"}
    assert not any("notes.html" in one for one in web.asked)
    assert ids(open_inputs([f"{web.url}/photos/b/[13].png"], of_images)) == singles[1:5:2]


def test_neighbours_are_joined_with_their_like_only(web: Web, of_images: Model) -> None:
    one, two = f"{web.url}/photos/a/0.png", f"{web.url}/photos/b/"
    here = str(web.folder / "photos/a/0.png")
    inputs = open_inputs([one, two, here, f"{web.url}/rows.npy", one], of_images)
    kinds = [type(source).__name__ for source in inputs.sources]
    assert kinds == ["RemoteImages", "Images", "FetchedRows", "RemoteImages"]
    assert len(ids(inputs)) == 1 + 5 + 1 + 10 + 1


def test_an_image_that_cannot_be_fetched_is_a_row_with_its_reason(
    web: Web, of_images: Model
) -> None:
    source = only(open_inputs([f"{web.url}/photos/a/"], of_images))
    (web.folder / "photos/a/2.png").unlink()
    web.failures = {"GET /photos/a/4.png": [403], "GET /photos/a/0.png": [503, 500]}
    web.short = {"/photos/a/6.png"}
    web.endless = {"/photos/a/8.png"}
    (batch,) = [source.decode(chunk) for chunk in source.chunks(8)]
    assert batch.faults[1] == "it is not there"
    assert batch.faults[2] == "the server answers 403 Forbidden"
    assert "not completed" in batch.faults[3]
    assert sorted(batch.faults) == [1, 2, 3]
    np.testing.assert_array_equal(batch.rows, PIXELS[[0, 8]])
    assert web.asked.count("GET /photos/a/0.png") == 3
    assert web.asked.count("GET /photos/a/4.png") == 1
    assert web.asked.count("GET /photos/a/6.png") == 3


def test_an_image_of_too_many_bytes_is_not_fetched(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (web.folder / "photos/large.png").open("wb") as file:
        file.truncate((256 << 20) + 1)
    large = open_remote_images([f"{web.url}/photos/large.png"], target(IMAGES))
    assert faults_of(large) == {0: "it has 268435457 bytes, the limit is 268435456"}
    assert "GET /photos/large.png" not in web.asked
    monkeypatch.setattr(decoding, "MOST_BYTES", 100)
    web.endless = {"/photos/unknown.png"}
    write(web.folder / "photos/unknown.png", bytes(101))
    unknown = open_remote_images([f"{web.url}/photos/unknown.png"], target(IMAGES))
    assert faults_of(unknown) == {0: "it has 101 bytes, the limit is 100"}


def test_images_whose_size_is_not_told(web: Web) -> None:
    web.endless = {f"/photos/a/{index}.png" for index in range(0, 10, 2)}
    source = open_remote_images([f"{web.url}/photos/a/"], target(IMAGES))
    assert {there.size for there in source.images} == {None}
    np.testing.assert_array_equal(rows_of(source), PIXELS[0::2])


# What is not there


@pytest.mark.parametrize("name", ["gone.npy", "gone.png", "gone/", "gone", "gone/*.png"])
def test_what_is_not_there(web: Web, model_file: Path, tmp_path: Path, name: str) -> None:
    address = f"{web.url}/{name}"
    output = tmp_path / "out.csv"
    with pytest.raises(MissingInputError) as message:
        predict(model_file, [f"{web.url}/rows.npy", address], output=output)
    assert str(message.value) == f"{address} is not there"
    assert [path for path in tmp_path.iterdir() if path.name.startswith("out")] == []
    assert not any(asked.startswith("GET /rows") for asked in web.asked)


def test_what_holds_nothing_or_is_none(web: Web, of_images: Model) -> None:
    message = {
        "bare/": r"/bare/ holds no images \(\.avif",
        "photos/*.jpg": r"^no input matches 'http.*\.jpg'$",
        "*.csv.gz": r"^no input matches",
        "rows.lst": r"unknown suffix '\.lst'",
        "rows.doc": r"unknown suffix '\.doc'",
    }
    for name, pattern in message.items():
        with pytest.raises(InputError, match=pattern):
            open_inputs([f"{web.url}/{name}"], of_images)


def test_a_server_that_refuses_or_is_none(web: Web, of_images: Model) -> None:
    web.failures = {f"{verb} /rows.npy": [403] * 9 for verb in ("HEAD", "GET")}
    with pytest.raises(InputError, match=r"/rows\.npy cannot be read: the server answers 403"):
        open_inputs([f"{web.url}/rows.npy"], of_images)
    web.failures = {f"{verb} /rows.npy": [503] * 9 for verb in ("HEAD", "GET")}
    with pytest.raises(InputError, match=r"/rows\.npy cannot be read: the server answers 503"):
        open_inputs([f"{web.url}/rows.npy"], of_images)
    assert len(web.asked) == 2 + 6
    nobody = "http://127.0.0.1:1/rows.npy"
    with pytest.raises(InputError, match=f"^{nobody} cannot be read: .*[Cc]onnect"):
        open_inputs([nobody], of_images)


def test_half_a_file_is_an_error(web: Web, of_images: Model, tmp_path: Path) -> None:
    inputs = open_inputs([f"{web.url}/rows.npy"], of_images)
    web.short = {"/rows.npy"}
    with pytest.raises(InputError, match=rf"^{web.url}/rows\.npy cannot be read: .*not completed"):
        list(inputs)
    assert web.asked.count("GET /rows.npy") == 3
    assert temporary(tmp_path) == []


def test_servers_that_do_what_no_server_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "WAITS", (0.0,))
    monkeypatch.setattr(fetching, "LISTING_SECONDS", 0.5)
    for module in (fetching, decoding):
        monkeypatch.setattr(module, "MOST_BYTES", 1 << 19)
    with monkeypatch.context() as impatient, ThreadPoolExecutor(32) as pool:
        impatient.setattr(fetching, "PATIENCE", 0.3)
        said = dict(pool.map(partial(refusals, tmp_path), {**FAULTS, **ENDLESS}.items()))
    assert all(len(said[name]) == 3 for name in ENDLESS if "redirect" not in name)
    for name, lines in said.items():
        assert all(one.isprintable() and len(one) < 300 for one in lines), name
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_size > 1 << 20]
    with RawServer(PNGS[0], good) as server:
        assert content_of(look(server.url)) == PNGS[0], "what fetches is as it was"


def refusals(folder: Path, fault: tuple[str, Answer]) -> tuple[str, list[str]]:
    """What is said of a server, by the ways in which something is read of it."""
    name, answer = fault
    said = []
    (folder / name).mkdir()
    with RawServer(PNGS[0], answer) as server:
        server.answers["/good"] = good
        address = f"{server.url}/rows.bin"
        for read in (
            lambda: content_of(look(address)),
            lambda: fetched(look(address), folder / name),
            lambda: listed(f"{server.url}/folder/"),
        ):
            try:
                read()
            except (ValueError, MissingInputError) as error:
                said.append(str(error))
    return name, said


@pytest.mark.parametrize("name", GREETINGS)
def test_what_is_no_tls(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, name: str
) -> None:
    monkeypatch.setattr(fetching, "WAITS", (0.0,))
    monkeypatch.setattr(fetching, "CONNECT_SECONDS", 0.2)
    fetching._file_system.cache_clear()  # it keeps the seconds
    request.addfinalizer(fetching._file_system.cache_clear)
    with RawServer(PNGS[0], GREETINGS[name], waits=False) as server, pytest.raises(InputError) as e:
        look(f"{server.url}/rows.npy")
    assert str(e.value).isprintable()


def test_a_try_that_fails_is_made_again(web: Web, of_images: Model) -> None:
    web.failures = {"GET /rows.npy": [503, 502]}
    np.testing.assert_array_equal(rows(open_inputs([f"{web.url}/rows.npy"], of_images)), PIXELS)
    assert web.asked.count("GET /rows.npy") == 3


def test_what_changes_is_told(web: Web, of_images: Model) -> None:
    names = [f"{web.url}/rows.npy", f"{web.url}/photos/a/"]
    inputs = open_inputs(names, of_images)
    before = inputs.fingerprint()
    assert before == open_inputs(names, of_images).fingerprint()
    write(web.folder / "photos/a/0.png", PNGS[0] + b"more")
    middle = open_inputs(names, of_images).fingerprint()
    np.save(web.folder / "rows.npy", PIXELS[:5])
    assert len({before, middle, open_inputs(names, of_images).fingerprint()}) == 3
    with pytest.raises(InputError, match=r"/rows\.npy has changed since it was looked at"):
        list(inputs)


# Other addresses


def test_what_lies_in_memory(of_images: Model) -> None:
    files = fsspec.filesystem("memory")
    files.pipe({f"/bucket/photos/{index}.png": png for index, png in enumerate(PNGS[:3])})
    files.pipe({"/bucket/photos/.x.png": b"", "/bucket/a.txt": b"a\n", "/bucket/b?.png": PNGS[3]})
    try:
        found = [f"memory://bucket/photos/{index}.png" for index in range(3)]
        for name in ("photos/", "photos", "photos/*", "phot*/?.png", "**/?.png"):
            inputs = open_inputs([f"memory://bucket/{name}"], of_images)
            assert ids(inputs) == found
            np.testing.assert_array_equal(rows(inputs), PIXELS[:3])
        first = inputs.fingerprint()
        files.pipe_file("/bucket/photos/1.png", PNGS[5])
        assert open_inputs(["memory://bucket/**/?.png"], of_images).fingerprint() != first
        with pytest.raises(MissingInputError, match=r"^memory://bucket/none/ is not there$"):
            open_inputs(["memory://bucket/none/"], of_images)
        with pytest.raises(MissingInputError, match=r"^memory://bucket/none\.npy is not there$"):
            open_inputs(["memory://bucket/none.npy"], of_images)
    finally:
        files.rm("/bucket", recursive=True)


def test_a_file_address_is_a_path(web: Web, of_images: Model) -> None:
    write(web.folder / "photos/a b/0.png", PNGS[0])
    for name in ("photos/a", "photos/b/*.png", "rows.npy", "photos/a b"):
        by_path = open_inputs([f"{web.folder}/{name}"], of_images)
        for start in ("file://", "file://localhost"):
            address = f"{start}{web.folder}/{name}".replace(" ", "%20")
            assert open_inputs([address], of_images) == by_path
    with pytest.raises(MissingInputError, match=r"gone\.npy is not there"):
        open_inputs([f"file://{web.folder}/gone.npy"], of_images)


@pytest.mark.parametrize("address", ["file://host/rows.npy", "ftp://host/rows.npy", "x+y://a.png"])
def test_addresses_of_other_kinds(of_images: Model, address: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read; fetch the files, or mount them$"):
        open_inputs([address], of_images)


def test_no_address_leads_to_a_local_file(web: Web, of_images: Model) -> None:
    """fsspec by itself would follow `::` to whatever is named behind it."""
    behind = f"memory://a.npy::file://{web.folder}/rows.npy"
    with pytest.raises(MissingInputError):
        open_inputs([behind], of_images)


MISSING = {
    "fsspec": ("http://127.0.0.1:1/a.npy", "http:// needs fsspec"),
    "aiohttp": ("http://127.0.0.1:1/a.npy", "http:// needs aiohttp"),
    "s3fs": ("s3://bucket/a.npy", "s3:// needs s3fs"),
    "gcsfs": ("gs://bucket/*.png", "gs:// needs gcsfs"),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_library_is_told_in_one_line(model_file: Path, package: str) -> None:
    address, message = MISSING[package]
    program = f"""
import sys
sys.modules[{package!r}] = None
from serving.cli import main
sys.argv = ["ferry", "predict", {str(model_file)!r}, {address!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == f"Error: {message}: pip install 'onnx-ferry[remote]'\n"


def test_nobody_without_addresses_waits_for_the_library() -> None:
    program = "import sys, serving.batch.predict; print({'fsspec', 'aiohttp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n"


def test_s3_without_credentials_or_server(
    of_images: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(FerryError) as message:
        open_inputs(["s3://bucket/rows.npy"], of_images)
    assert "s3://bucket/rows.npy cannot be read: Unable to locate credentials" in str(message.value)
    assert len(str(message.value).splitlines()) == 1


# Whole runs


@pytest.mark.parametrize("name", ["large.npy", "large.tar", "photos/"])
def test_a_run_that_was_cut_short_goes_on(
    web: Web,
    model_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut_short: list[int],
    name: str,
) -> None:
    np.save(web.folder / "large.npy", images(2000))
    with tarfile.open(web.folder / "large.tar", "w") as archive:
        for index in range(2000):
            member = tarfile.TarInfo(f"{index}.png")
            member.size = len(PNGS[index % 10])
            archive.addfile(member, io.BytesIO(PNGS[index % 10]))
    inputs, options = [f"{web.url}/{name}"], PredictOptions(workers=1, batch_rows=8)
    predict(model_file, inputs, output=tmp_path / "whole.csv", options=options)
    monkeypatch.setattr("serving.batch.predict.SHARD_ROWS", 1)
    if name == "photos/":
        monkeypatch.setattr("serving.batch.run.CHUNK_ROWS", 8)
    output = tmp_path / "out.csv"
    cut_short[0] = 1
    with pytest.raises(RuntimeError, match="cut short"):
        predict(model_file, inputs, output=output, options=options)
    cut_short[0] = -1
    assert temporary(tmp_path) == []
    report = predict(model_file, inputs, output=output, options=options)
    assert report.resumed_rows == (8 if name == "photos/" else 1024)
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert temporary(tmp_path) == []
    np.save(web.folder / "large.npy", images(2001))
    if name == "large.npy":
        with pytest.raises(OutputError, match="inputs that have changed since"):
            predict(model_file, inputs, output=output, options=options)


def test_two_processes_decode_what_was_fetched(
    web: Web, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["photos/", "rows.tar", "rows.parquet", "rows.npy", "rows.tar.gz"]
    inputs = [f"{web.url}/{name}" for name in names]
    here = [str(web.folder / name) for name in names]
    monkeypatch.setattr("serving.batch.run.CHUNK_ROWS", 4)
    one, two = (PredictOptions(workers=workers, batch_rows=4) for workers in (1, 2))
    predict(model_file, here, output=tmp_path / "here.csv", options=one)
    predict(model_file, inputs, output=tmp_path / "one.csv", options=one)
    monkeypatch.setattr(engine, "PROCESSES_PAY", 1)
    monkeypatch.setattr(engine, "THREADS_DO", 1)
    report = predict(model_file, inputs, output=tmp_path / "two.csv", options=two)
    assert (report.rows, report.errors) == (50, 1)  # a page beside the images
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    there = (tmp_path / "here.csv").read_text().replace(str(web.folder), web.url)
    assert (tmp_path / "one.csv").read_text() == there
    assert temporary(tmp_path) == []


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_buckets(web: Web, model_file: Path, tmp_path: Path, scheme: str) -> None:
    """In a process of its own, as the environment is looked at once."""
    pytest.importorskip(PACKAGES[scheme])
    names = ["photos/", "photos", "photos/**/*.png", "photos/?/[03].png", "rows.npy", "rows.tar*"]
    here = [*["photos"] * 3, "photos/?/[03].png", "rows.npy", "rows.tar", "rows.tar.gz"]
    options = PredictOptions(workers=1, batch_rows=4)
    inputs = [str(web.folder / name) for name in here]
    predict(model_file, inputs, output=tmp_path / "here.csv", options=options)
    command = [sys.executable, "-m", "serving", "predict", str(model_file)]
    output = ["--output", str(tmp_path / "there.csv"), "--workers", "1", "--batch-size", "4"]
    with buckets(web.folder) as environment:
        for given, message in ((names, ""), (["gone.npy"], "gone.npy is not there")):
            addresses = [f"{scheme}://bucket/{name}" for name in given]
            done = subprocess.run(
                [*command, *addresses, *output],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=os.environ | environment,
                timeout=100,
            )
            assert (done.returncode == 0) is not bool(message), done.stderr
            assert message in done.stderr
            assert len(done.stderr.splitlines()) == 1 or not message
    there = (tmp_path / "there.csv").read_text()
    assert (
        there.replace(f"{scheme}://bucket", str(web.folder)) == (tmp_path / "here.csv").read_text()
    )
