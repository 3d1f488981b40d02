import contextlib
import hashlib
import io
import os
import pty
import signal
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from file_server import FileServer
from raw_server import FAULTS, RawServer

import pipeline
from pipeline import datasets
from pipeline.datasets import Archive, Dataset, RawFile, _download
from pipeline.errors import ConfigError, DownloadError
from pipeline.stages.pull import pull
from serving.errors import UsageError

RANDOM = np.random.default_rng(1)
IMAGES, LABELS = RANDOM.bytes(200_000), RANDOM.bytes(1000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def raw_file(name: str, content: bytes, *urls: str) -> RawFile:
    return RawFile(name=name, size=len(content), sha256=sha256(content), urls=urls)


def dataset(*files: RawFile, archives: tuple[Archive, ...] = ()) -> Dataset:
    return replace(datasets.get("digits"), files=files, archives=archives)


def tar_of(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"set/{name}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_download, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        running.files["/official/images.bin"] = IMAGES
        running.files["/official/labels.bin"] = LABELS
        yield running


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "data/raw/toy"


@pytest.fixture
def toy(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A data set of two files whose official address is the server."""
    made = dataset(
        raw_file("images.bin", IMAGES, f"{server.url}/official/images.bin"),
        raw_file("labels.bin", LABELS, f"{server.url}/official/labels.bin"),
    )
    install(made, monkeypatch)
    return made


def install(made: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    real = datasets.get
    monkeypatch.setattr(datasets, "get", lambda name: made if name == "toy" else real(name))


def mirror_folder(tmp_path: Path, **files: bytes) -> Path:
    folder = tmp_path / "mirror"
    for name, content in files.items():
        path = folder / "toy" / f"{name}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_official_files_are_pulled_and_nothing_else_is_left(
    toy: Dataset, server: FileServer, raw: Path
) -> None:
    report = pull(raw, name="toy", mirrors=())
    assert (raw / "images.bin").read_bytes() == IMAGES
    assert names_in(raw) == ["images.bin", "labels.bin"]
    assert [file.source for file in report.files] == [url for f in toy.files for url in f.urls]
    assert [file.sha256 for file in report.files] == [sha256(IMAGES), sha256(LABELS)]


def test_a_good_file_is_left_alone_and_a_bad_one_replaced(
    toy: Dataset, server: FileServer, raw: Path
) -> None:
    pull(raw, name="toy", mirrors=())
    before = (raw / "images.bin").stat()
    (raw / "labels.bin").write_bytes(b"x" * len(LABELS))
    server.seen.clear()
    report = pull(raw, name="toy", mirrors=())
    assert (raw / "images.bin").stat().st_mtime_ns == before.st_mtime_ns
    assert (raw / "images.bin").stat().st_ino == before.st_ino
    assert (raw / "labels.bin").read_bytes() == LABELS
    assert [path for path, _ in server.seen] == ["/official/labels.bin"]
    assert report.files[0].source is None


def test_a_part_file_beside_a_good_file_is_removed(toy: Dataset, raw: Path) -> None:
    pull(raw, name="toy", mirrors=())
    (raw / "images.bin.part").write_bytes(b"left over")
    pull(raw, name="toy", mirrors=())
    assert names_in(raw) == ["images.bin", "labels.bin"]


def test_the_named_mirror_comes_first_then_the_official_then_the_others(
    toy: Dataset, server: FileServer, raw: Path, tmp_path: Path
) -> None:
    folder = mirror_folder(tmp_path, images=IMAGES)
    del server.files["/official/labels.bin"]
    server.files["/third/toy/labels.bin"] = LABELS
    mirrors = (f"{server.url}/second", f"{server.url}/third/")
    report = pull(raw, name="toy", mirrors=mirrors, mirror=str(folder))
    assert [file.source for file in report.files] == [
        f"{folder}/toy/images.bin",
        f"{server.url}/third/toy/labels.bin",
    ]
    assert [path for path, _ in server.seen] == [
        "/official/labels.bin",
        "/second/toy/labels.bin",
        "/third/toy/labels.bin",
    ]


def test_a_mirror_with_wrong_bytes_is_passed_over(
    toy: Dataset, raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = mirror_folder(tmp_path, images=b"x" * len(IMAGES), labels=LABELS)
    report = pull(raw, name="toy", mirrors=(), mirror=str(folder))
    assert (raw / "images.bin").read_bytes() == IMAGES
    assert report.files[0].source == toy.files[0].urls[0]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "the sha256 is not the recorded one; trying http://" in captured.err


def test_what_a_server_says_commands_no_terminal_and_the_next_mirror_is_tried(
    toy: Dataset, raw: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [
        *("reason with control characters", "chunk of size -5", "redirect to half an address"),
        *("redirect to bytes", "redirect to control characters"),
    ]
    official = dict(server.files)
    server.files.clear()
    with contextlib.ExitStack() as stack:
        mirrors = [stack.enter_context(RawServer(b"other", FAULTS[name])).url for name in broken]
        for path, body in official.items():
            server.files[path.replace("official", "mirror/toy")] = body
        report = pull(raw, name="toy", mirrors=[*mirrors, f"{server.url}/mirror"])
    assert all(file.source and "/mirror/" in file.source for file in report.files)
    shown = capsys.readouterr().err
    assert r"404 \x1b]0;owned\x07\x9b31m" in shown
    assert shown.count("trying http") == len(report.files) * (len(broken) + 1)
    assert shown.replace("\n", "").isprintable()


def test_offline_is_one_line_that_names_everything(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileServer() as stopped:
        url = f"{stopped.url}/official/images.bin"
    install(dataset(raw_file("images.bin", IMAGES, url)), monkeypatch)
    with pytest.raises(DownloadError) as caught:
        pull(raw, name="toy", mirrors=("https://user:secret@127.0.0.1:1/m",), mirror="nowhere")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "images.bin of toy",
        "nowhere/toy/images.bin: there is no folder nowhere",
        f"{url}: Connection refused (3 tries)",
        "https://user:***@127.0.0.1:1/m/toy/images.bin: Connection refused",
        "--mirror or FERRY_MIRROR",
        "needs no network: diabetes, digits, moons, xor",
    ):
        assert part in message
    assert "secret" not in message
    assert "mnist" not in message
    assert names_in(raw) == []


@pytest.mark.parametrize(
    "mirror", ["ftp://host/data", "file:///data", "http://", "https://[", "s3://b"]
)
def test_only_http_and_https_urls_are_mirrors(raw: Path, mirror: str) -> None:
    with pytest.raises(UsageError, match=r"--mirror must be an http or https URL or a folder, got"):
        pull(raw, name="digits", mirrors=(), mirror=mirror)
    with pytest.raises(ConfigError, match=r"mirrors\[1\] must be an http"):
        pull(raw, name="digits", mirrors=("http://fine/", mirror))
    assert not raw.exists()


def test_an_embedded_file_with_other_bytes_falls_back_to_a_mirror(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = "sklearn:datasets/data/digits.csv.gz"
    install(dataset(replace(raw_file("labels.bin", LABELS), embedded=embedded)), monkeypatch)
    with pytest.raises(DownloadError, match=r"digits\.csv\.gz: it has \d+ bytes, 1000 expected"):
        pull(raw, name="toy", mirrors=())
    pull(raw, name="toy", mirrors=(), mirror=str(mirror_folder(tmp_path, labels=LABELS)))
    assert (raw / "labels.bin").read_bytes() == LABELS


TAR = tar_of(images=IMAGES, readme=b"read me", labels=LABELS)


@pytest.fixture
def packed(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A data set of two members of one archive, which is at the server."""
    server.files["/official/set.tar.gz"] = TAR
    archive = Archive(
        name="set.tar.gz",
        size=len(TAR),
        sha256=sha256(TAR),
        urls=(f"{server.url}/official/set.tar.gz",),
        members=(raw_file("set/images.bin", IMAGES), raw_file("set/labels.bin", LABELS)),
    )
    install(dataset(archives=(archive,)), monkeypatch)
    return archive


def test_the_members_of_an_archive_are_kept_and_not_the_archive(
    packed: Archive, server: FileServer, raw: Path
) -> None:
    report = pull(raw, name="toy", mirrors=())
    assert names_in(raw) == ["set/images.bin", "set/labels.bin"]
    assert (raw / "set/images.bin").read_bytes() == IMAGES
    assert {file.source for file in report.files} == set(packed.urls)
    server.seen.clear()
    assert {file.source for file in pull(raw, name="toy", mirrors=()).files} == {None}
    assert server.seen == []


def test_one_bad_member_is_taken_from_the_archive_again(packed: Archive, raw: Path) -> None:
    pull(raw, name="toy", mirrors=())
    before = (raw / "set/labels.bin").stat().st_ino
    (raw / "set/images.bin").write_bytes(IMAGES[:-1])
    report = pull(raw, name="toy", mirrors=())
    assert (raw / "set/images.bin").read_bytes() == IMAGES
    assert (raw / "set/labels.bin").stat().st_ino == before
    assert [file.source for file in report.files] == [packed.urls[0], None]


@pytest.mark.parametrize("holds", ["archive", "members"])
@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_mirror_may_hold_the_archive_or_its_members(
    packed: Archive, server: FileServer, raw: Path, tmp_path: Path, holds: str, kind: str
) -> None:
    contents = {"set.tar.gz": TAR, "set/images.bin": IMAGES, "set/labels.bin": LABELS}
    chosen = [name for name in contents if (holds == "archive") == name.endswith("gz")]
    for name in chosen:
        path = tmp_path / "mirror/toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[name])
        server.files[f"/mirror/toy/{name}"] = contents[name]
    mirror = str(tmp_path / "mirror") if kind == "folder" else f"{server.url}/mirror"
    report = pull(raw, name="toy", mirrors=(), mirror=mirror)
    assert names_in(raw) == ["set/images.bin", "set/labels.bin"]
    assert all(str(file.source).startswith(mirror) for file in report.files)
    assert not any(path.startswith("/official") for path, _ in server.seen)


@pytest.mark.parametrize("holds", ["set.tar.gz", "set/labels.bin"])
def test_a_data_set_may_have_another_name_below_a_mirror(
    packed: Archive, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: str
) -> None:
    install(replace(datasets.get("toy"), mirrored_as="the-toy"), monkeypatch)
    contents = {"set.tar.gz": TAR, "set/images.bin": IMAGES, "set/labels.bin": LABELS}
    for name in (holds, "set/images.bin"):
        path = tmp_path / "mirror/the-toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[name])
    report = pull(raw, name="toy", mirrors=(), mirror=str(tmp_path / "mirror"))
    assert all(f"{tmp_path}/mirror/the-toy" in str(file.source) for file in report.files)
    assert names_in(raw) == ["set/images.bin", "set/labels.bin"]


def test_what_is_missing_is_told_by_its_name_below_a_mirror(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = dataset(raw_file("images.bin", IMAGES))
    install(replace(toy, mirrored_as="the-toy"), monkeypatch)
    with pytest.raises(
        DownloadError, match=r"images\.bin of toy could .* holds the-toy/images\.bin"
    ):
        pull(raw, name="toy", mirrors=())


def test_an_archive_left_by_a_killed_run_is_used_and_removed(
    packed: Archive, server: FileServer, raw: Path
) -> None:
    raw.mkdir(parents=True)
    (raw / "set.tar.gz").write_bytes(TAR)
    (raw / "set").mkdir()
    (raw / "set/images.bin.part").write_bytes(b"half")
    pull(raw, name="toy", mirrors=())
    assert server.seen == []
    assert names_in(raw) == ["set/images.bin", "set/labels.bin"]


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from pipeline import datasets
from pipeline.datasets import RawFile
url, raw, size, sha256 = sys.argv[1:]
file = RawFile(name="images.bin", size=int(size), sha256=sha256, urls=(url,))
toy = replace(datasets.get("digits"), files=(file,))
datasets.get = lambda name: toy
from pipeline.stages.pull import pull
print(pull(Path(raw), name="toy", mirrors=()).files[0].source)
"""


def start(server: FileServer, raw: Path, **options) -> subprocess.Popen[str]:
    arguments = (f"{server.url}/official/images.bin", raw, len(IMAGES), sha256(IMAGES))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        cwd=Path(pipeline.__file__).parents[1],
        text=True,
        stdout=subprocess.PIPE,
        **{"stderr": subprocess.PIPE, **options},
    )


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_two_processes_at_once_do_no_harm(server: FileServer, raw: Path) -> None:
    server.goes_on.clear()
    first = start(server, raw)
    wait_until(lambda: server.seen)
    second = start(server, raw)
    assert second.stderr is not None
    assert second.stderr.readline() == "another process pulls toy; waiting for it\n"
    server.goes_on.set()
    url = f"{server.url}/official/images.bin"
    assert first.communicate(timeout=60)[0] == f"{url}\n"
    assert second.communicate(timeout=60)[0] == "None\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.seen) == 1
    assert names_in(raw) == ["images.bin"]


def test_a_killed_pull_goes_on_where_it_was(toy: Dataset, server: FileServer, raw: Path) -> None:
    server.goes_on.clear()
    part = raw / "images.bin.part"
    process = start(server, raw)
    wait_until(lambda: part.exists() and part.stat().st_size > 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    had = part.stat().st_size
    assert 0 < had < len(IMAGES)
    assert not (raw / "images.bin").exists()
    server.goes_on.set()
    server.seen.clear()
    pull(raw, name="toy", mirrors=())
    assert server.seen[0] == ("/official/images.bin", f"bytes={had}-")
    assert (raw / "images.bin").read_bytes() == IMAGES
    assert names_in(raw) == ["images.bin", "labels.bin"]


def test_a_terminal_sees_a_progress_bar(server: FileServer, raw: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    os.set_blocking(ours, False)
    process = start(server, raw, stderr=theirs)
    process.communicate(timeout=60)
    drawn = os.read(ours, 65536).decode()  # while our end is open, what was written is kept
    os.close(theirs)
    os.close(ours)
    assert "images.bin:" in drawn
    assert "200k" in drawn
