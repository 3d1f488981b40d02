"""Servers that answer as none should, to all that downloads: the faults of tests/raw_server.py.

Each address holds a token twice, which may be in nothing that is shown or left. The deadlines, of a
minute in use, are short here: what counts is that they come.
"""

import contextlib
import hashlib
import io
import os
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from unittest.mock import patch

import numpy as np
from cases import CONTROL, HANG_SECONDS, HELD, TOKEN, Case, Outcome, Task
from raw_server import ENDLESS, FAULTS, Answer, RawServer, good
from tiny_classifier import classifier, images
from tiny_images import encoded

from pipeline import datasets
from pipeline.datasets import Archive, RawFile, _download
from pipeline.stages.pull import pull
from serving.batch.predict import predict
from serving.errors import FerryError
from serving.inputs import decoding, fetching

ROWS = np.random.default_rng(1).bytes(100_000)
SHORT = ("chunk of size -5", "redirect to bytes")
"""The tests of what downloads hold the rest."""
PATIENCE = 0.5


def cases(task: Task) -> Iterator[Case]:
    """Each reader, with all faults."""
    faults = {**FAULTS, **ENDLESS}
    if task.short:
        faults = {name: faults[name] for name in SHORT}
    for name, reader in READERS.items():
        folder = task.scratch / name.replace(" ", "-")
        yield Case(name, partial(every_fault, reader, faults, folder), seconds=1200)


def every_fault(read: "Reader", faults: dict[str, Answer], folder: Path) -> Outcome:
    """One reader with each fault in turn."""
    signal.signal(signal.SIGALRM, _raise_hang)
    os.environ |= {"NO_PROXY": "*"}
    total = Outcome()
    with _impatient():
        for name, answer in faults.items():
            here = folder / str(total.total)
            here.mkdir(parents=True)
            (here / "model.onnx").write_bytes(classifier())
            total += judged(read, answer, here, name)
    return total


def judged(read: "Reader", answer: Answer, folder: Path, name: str) -> Outcome:
    """What came of one fault; a note tells what did not hold."""
    begin, said = time.monotonic(), io.StringIO()
    why, count = "", ""
    signal.alarm(int(HANG_SECONDS))
    try:
        with contextlib.redirect_stderr(said), RawServer(read.body, answer) as server:
            server.answers["/good"] = good
            why = read(server, folder)
            count = "lost" if why else ""
    except FerryError as error:
        why = str(error) if read.must_hold else ""
        count = "lost" if why else ""
        said.write(f"{error}\n")
    except HangError:
        count, why = "hangs", f"no end after {time.monotonic() - begin:.0f} s"
    except Exception as error:  # noqa: BLE001 - a traceback, which is what is counted
        count, why = "tracebacks", repr(error)
    finally:
        signal.alarm(0)
    left = [path for path in folder.rglob("*") if path.is_file() and path.name != "model.onnx"]
    kept = b"".join(path.read_bytes() for path in left) + str(left).encode()
    if control := (set(said.getvalue()) | set(str(left))) & (CONTROL | {"\r"}):
        count, why = "executed", f"a terminal would obey {control}"
    if TOKEN in said.getvalue() or TOKEN.encode() in kept:
        count, why = "secrets", "a token is shown or left"
    if not count:
        return replace(HELD, seen={"refused": int(bool(said.getvalue()))})
    counts: dict[str, int] = {count: 1}
    return Outcome(**counts, notes=(f"{name}: {why}",))


class HangError(BaseException):
    """What takes too long."""


def _raise_hang(_number: int, _frame: FrameType | None) -> None:
    raise HangError


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (_download, "PAUSES", (0.0,)),
            (_download, "TIMEOUT", (PATIENCE, PATIENCE)),
            (_download, "PATIENCE", PATIENCE),
            (fetching, "WAITS", (0.0, 0.0)),
            (fetching, "CONNECT_SECONDS", PATIENCE),
            (fetching, "SILENT_SECONDS", PATIENCE),
            (fetching, "PATIENCE", PATIENCE),
            (fetching, "LISTING_SECONDS", 2 * PATIENCE),
            (fetching, "MOST_BYTES", 1 << 20),
            (decoding, "MOST_BYTES", 1 << 20),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield


# What reads


class Reader:
    """One that downloads `body`; called, it tells what is wrong with what it got."""

    def __init__(
        self, body: bytes, read: Callable[[RawServer, Path], str], *, must_hold: bool = False
    ) -> None:
        """With whether it has to get what it wants from elsewhere."""
        self.body, self._read, self.must_hold = body, read, must_hold

    def __call__(self, server: RawServer, folder: Path) -> str:
        """Read, and tell."""
        return self._read(server, folder)


def address(server: RawServer, name: str) -> str:
    """With a password and a signature."""
    return f"{server.url.replace('//', f'//user:{TOKEN}@')}/{name}?X-Amz-Signature={TOKEN}"


def raw(body: bytes, name: str, *urls: str) -> RawFile:
    """A file of a data set."""
    return RawFile(name=name, size=len(body), sha256=hashlib.sha256(body).hexdigest(), urls=urls)


def pulled(dataset: datasets.Dataset, folder: Path, bodies: dict[str, bytes], mirror: str) -> str:
    """Pull it, and look whether its files are what they must be."""
    with patch.object(datasets, "get", lambda _: dataset):
        pull(folder / "raw", name="toy", mirrors=[mirror])
    found = {path.name: path.read_bytes() for path in (folder / "raw").rglob("*.bin")}
    left = [one.name for one in (folder / "raw").rglob("*.part")]
    return "" if found == bodies and not left else f"{sorted(found)} and {left} are left"


def mirrored(folder: Path, name: str, body: bytes) -> str:
    """A mirror that holds what the server does not give."""
    path = folder / "mirror" / "digits" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(body)
    return str(folder / "mirror")


def pull_file(server: RawServer, folder: Path) -> str:
    """Of a data set of one file, which a mirror has as well."""
    file = raw(ROWS, "rows.bin", address(server, "rows.bin"))
    made = replace(datasets.get("digits"), files=(file,), mirrored_as="digits")
    return pulled(made, folder, {"rows.bin": ROWS}, mirrored(folder, "rows.bin", ROWS))


def resume_file(server: RawServer, folder: Path) -> str:
    """The same, where a pull before was cut."""
    (folder / "raw").mkdir()
    (folder / "raw" / "rows.bin.part").write_bytes(ROWS[: len(ROWS) // 2])
    return pull_file(server, folder)


def pull_archive(server: RawServer, folder: Path) -> str:
    """Of a data set of an archive."""
    archive = Archive(
        name="rows.tar",
        size=len(PACKED),
        sha256=hashlib.sha256(PACKED).hexdigest(),
        urls=(address(server, "rows.tar"),),
        members=(raw(ROWS, "rows.bin"),),
    )
    made = replace(datasets.get("digits"), files=(), archives=(archive,), mirrored_as="digits")
    return pulled(made, folder, {"rows.bin": ROWS}, mirrored(folder, "rows.tar", PACKED))


def packed() -> bytes:
    """An archive of the rows."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("rows.bin")
        info.size = len(ROWS)
        tar.addfile(info, io.BytesIO(ROWS))
    return file.getvalue()


def predict_file(server: RawServer, folder: Path) -> str:
    """Rows of a file, all or none."""
    report = predict(folder / "model.onnx", [address(server, "rows.npy")], output=folder / "o.csv")
    return "" if report.rows == len(IMAGES) else f"{report.rows} rows came"


def predict_images(server: RawServer, folder: Path) -> str:
    """One image of two, of which the other is good."""
    server.answers["/good.png"] = good
    names = [address(server, "rows.png"), address(server, "good.png")]
    report = predict(folder / "model.onnx", names, output=folder / "o.csv")
    return "" if report.rows + report.errors == 2 and report.rows else f"{report} came"


def predict_folder(server: RawServer, folder: Path) -> str:
    """What a page lists."""
    url = address(server, "rows.bin").partition("?")[0].replace("rows.bin", "folder/")
    predict(folder / "model.onnx", [url], output=folder / "o.csv")
    return ""


IMAGES = images(8)
PNG = encoded(IMAGES[0], "PNG")
PACKED = packed()


def npy() -> bytes:
    """Some rows as a file of numpy's."""
    file = io.BytesIO()
    np.save(file, IMAGES)
    return file.getvalue()


READERS = {
    "pull a file": Reader(ROWS, pull_file, must_hold=True),
    "go on with half a file": Reader(ROWS, resume_file, must_hold=True),
    "pull an archive": Reader(PACKED, pull_archive, must_hold=True),
    "predict a file": Reader(npy(), predict_file),
    "predict images": Reader(PNG, predict_images),
    "predict a folder": Reader(PNG, predict_folder),
}
