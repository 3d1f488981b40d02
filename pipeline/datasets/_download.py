"""Fetch one official file from one address, a URL or a path, into its place.

The bytes go to a `.part` file beside the target, where an interrupted download goes on; only when
size and sha256 are the recorded ones is it synced and renamed, so that a target is always whole. Of
an archive known members alone are taken, by exact name, size and type, and streamed to their place:
nothing is extracted by the path that an archive names.
"""

import contextlib
import ctypes
import gzip
import lzma
import os
import queue
import struct
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from tqdm import tqdm

from pipeline.datasets import RawFile
from pipeline.errors import DownloadError
from serving.errors import one_line
from serving.files import sha256_of_file

PAUSES = (0.5, 2.0)
"""Seconds before the second and the third try of one address."""
TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and between two pieces of an answer."""
CHUNK = 1 << 16
PATIENCE = 60.0
"""Seconds for an answer to begin, redirects included, and then for each CHUNK bytes of it."""
SECONDS_TO_END = 0.2
"""For a request that is given up; then it is left to itself."""
QUEUED = 8
"""Pieces that may wait to be written."""
MOST_REDIRECTS = 10
LONGEST = 120
"""Characters of what a server says."""
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class UnavailableError(DownloadError):
    """One address that does not have the file; the message is the reason alone."""


class _PassingError(UnavailableError):
    """A failure that another try may mend."""


def fetch(file: RawFile, target: Path, address: str) -> None:
    """Copy or download `file` from `address`, an http(s) URL or a path, to `target`.

    An interrupted download is resumed, failures that pass are tried again after growing pauses.
    Raises UnavailableError when the address does not have these very bytes and OSError when they
    cannot be written here.
    """
    if not is_url(address):
        _copy(file, target, Path(address))
        return
    for pause in (*PAUSES, None):
        try:
            _download(file, target, address)
        except _PassingError as error:
            if pause is None:
                raise UnavailableError(f"{error} ({len(PAUSES) + 1} tries)") from error
            time.sleep(pause)
        else:
            return


def store(file: RawFile, target: Path, chunks: Iterable[bytes], *, start: int = 0) -> None:
    """Put `chunks` behind the first `start` bytes of the part file, check it all and rename it.

    Raises UnavailableError when the bytes are not those of `file`.
    """
    part = part_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(
        total=file.size,
        initial=start,
        desc=file.name,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,  # no bar where stderr is not a terminal
    )
    with bar, _appending(part, start) as out:
        written = start
        for chunk in chunks:
            written += len(chunk)
            if written > file.size:
                break
            out.write(chunk)
            bar.update(len(chunk))
    if written < file.size:
        raise _PassingError(f"only {written} of {file.size} bytes came")
    if written > file.size:
        part.unlink()
        raise UnavailableError(f"sent more than the {file.size} bytes expected")
    if not finish(file, target):
        # What was there before may have been the wrong part: from the start it may yet be right.
        raise (_PassingError if start else UnavailableError)("the sha256 is not the recorded one")


def finish(file: RawFile, target: Path) -> bool:
    """Rename the part file to `target` if it holds the very bytes of `file`.

    A part file that can no longer become them is thrown away. Returns whether `target` was made.
    """
    part = part_of(target)
    size = part.stat().st_size if part.is_file() else 0
    if size < file.size:
        return False
    if not is_good(file, part):
        part.unlink()
        return False
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    part.replace(target)
    return True


def is_good(file: RawFile, path: Path) -> bool:
    """Whether `path` is a file of the recorded size and sha256."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return sha256_of_file(path) == file.sha256


def is_url(address: str) -> bool:
    """Whether an address is to be fetched over http or https; any other is a path."""
    return address.startswith(("http://", "https://"))


def part_of(target: Path) -> Path:
    """Where the bytes of `target` gather: the same name each time, so that they can be resumed."""
    return target.with_name(f"{target.name}.part")


def _copy(file: RawFile, target: Path, source: Path) -> None:
    try:
        if not source.is_file():
            raise UnavailableError(_what_is_missing(source))
        size = source.stat().st_size
        if size != file.size:
            raise UnavailableError(f"it has {size} bytes, {file.size} expected")
        with source.open("rb") as handle:
            store(file, target, iter(lambda: handle.read(CHUNK), b""))
    except OSError as error:
        if error.filename != os.fspath(source):
            raise
        raise UnavailableError(error.strerror or "it cannot be read") from error


def _what_is_missing(path: Path) -> str:
    folders = [folder for folder in path.parents if not folder.is_dir()]
    if folders:
        return f"there is no folder {folders[-1]}"
    return "it is not a file" if path.exists() else "there is no such file"


def _download(file: RawFile, target: Path, url: str) -> None:
    """One request for what the part file still lacks."""
    if finish(file, target):
        return
    part = part_of(target)
    offset = part.stat().st_size if part.is_file() else 0
    # The bytes of the file itself are wanted, not a server's compression of them.
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with _asked(url, headers) as hear:
        start = _start(hear(), part, offset, file.size)
        store(file, target, iter(hear, None), start=start)


@contextlib.contextmanager
def _asked(url: str, headers: Mapping[str, str]) -> Iterator[Callable[[], Any]]:
    """Give a function that waits for the answer, then for each of its pieces, and None at its end.

    A server decides how long a request takes and what the libraries make of its bytes. It has a
    thread of its own, which is left behind when nothing comes of it in time; whatever is raised
    there is a fault of the address. It raises UnavailableError.
    """
    said: queue.Queue[Any] = queue.Queue(QUEUED)
    left = threading.Event()
    thread = threading.Thread(target=_ask, args=(url, headers, said, left), daemon=True)

    def hear() -> Any:
        try:
            heard = said.get(timeout=PATIENCE)
        except queue.Empty:
            raise UnavailableError(f"too little comes of it in {PATIENCE:g} s") from None
        if isinstance(heard, UnavailableError):
            raise heard
        if isinstance(heard, Exception):
            raise _failure(heard) from heard
        return heard

    thread.start()
    try:
        yield hear
    finally:
        left.set()
        with contextlib.suppress(queue.Empty):
            while True:  # it may wait for room
                said.get_nowait()
        thread.join(SECONDS_TO_END)
        if thread.is_alive():  # it waits for bytes, or follows answers without an end
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
            )


def _ask(
    url: str, headers: Mapping[str, str], said: "queue.Queue[Any]", left: threading.Event
) -> None:
    """Say the answer of a URL, its pieces, and None or what went wrong."""
    piece, end = b"", None  # type: tuple[bytes, BaseException | None]
    try:
        with _Session() as session, _answer(session, url, headers) as response:
            said.put(response)
            # Each call reads once, and of chunks no more than they may have: urllib3's own reading
            # of them takes lines of any length, and sizes below zero.
            while not left.is_set() and (some := response.raw.read1(CHUNK, decode_content=False)):
                piece += some
                if len(piece) >= CHUNK:
                    said.put(piece)
                    piece = b""
    except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
        end = error
    if piece:
        said.put(piece)
    said.put(end)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None, for else requests would read all that comes with a redirect."""


def _answer(session: requests.Session, url: str, headers: Mapping[str, str]) -> requests.Response:
    """The answer of a URL, or of where it redirects to."""
    for _ in range(MOST_REDIRECTS + 1):
        response = session.get(
            url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False
        )
        if not response.is_redirect:
            return response
        response.close()
        url = _redirected(url, response.headers["location"])
    raise UnavailableError(f"it redirects more than {MOST_REDIRECTS} times")


def _redirected(url: str, location: str) -> str:
    """Where an answer redirects to; UnavailableError for no address, and for one less safe."""
    try:
        target = urljoin(url, location.encode("latin-1").decode())
        there = urlsplit(target)
        wrong = there.scheme not in ("http", "https") or not there.hostname or there.port == 0
    except ValueError:
        wrong = True
    if wrong:
        raise UnavailableError(f"it redirects to {location[:LONGEST]!r}, which is no http address")
    if url.startswith("https:") and there.scheme != "https":
        raise UnavailableError("it redirects from https to http")
    return target


def _failure(error: Exception) -> UnavailableError:
    """The error for what a request raised."""
    lasting = isinstance(error, requests.exceptions.SSLError)
    passing = requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError
    kind = _PassingError if isinstance(error, passing) and not lasting else UnavailableError
    return kind(_reason(error))


def _start(response: requests.Response, part: Path, offset: int, size: int) -> int:
    """Find the offset at which the answer's bytes begin: 0 from a server without ranges."""
    status = response.status_code
    message = f"{status} {response.reason or ''}"[:LONGEST].rstrip()
    if (
        status == 206
        and response.headers.get("Content-Range") == f"bytes {offset}-{size - 1}/{size}"
    ):
        return offset
    if status in (206, 416):
        part.unlink(missing_ok=True)
        raise _PassingError(f"{message}: it does not resume at byte {offset} of {size}")
    if status in BUSY:
        raise _PassingError(message)
    if status != 200:
        raise UnavailableError(message)
    length = response.headers.get("Content-Length", str(size))
    if length != str(size):
        raise UnavailableError(f"it has {length[:LONGEST]} bytes, {size} expected")
    return 0


@contextlib.contextmanager
def _appending(part: Path, start: int) -> Iterator[IO[bytes]]:
    """Open a part file to write on behind its first `start` bytes; errors name the file."""
    try:
        with part.open("ab") as out:
            out.truncate(start)
            yield out
    except OSError as error:
        if error.filename or error.strerror is None:  # requests' errors have neither
            raise
        raise OSError(error.errno, error.strerror, os.fspath(part)) from error


def _reason(error: Exception) -> str:
    """Say in a few words why a request failed: as the system said it, where it said anything."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "no answer in time"
    said = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError)]
    words = [text for text in said if text]
    if words:
        return words[-1]
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection was cut"
    return one_line(error, LONGEST)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Go from the error to what it came from, the innermost last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


MOST_MEMBER_BYTES = 16 << 30
# What tarfile and what unpacks for it raise on broken archives, beside the TarError they should.
READING_ERRORS = (
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
    LookupError,
    lzma.LZMAError,
    struct.error,
    zlib.error,
)
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)


def unpack(archive: Path, members: Iterable[RawFile], folder: Path) -> None:
    """Stream the `members` of a tar archive, plain or compressed, to `folder / member.name`.

    Raises UnavailableError for an archive that cannot be read, or that lacks a regular member of
    the recorded name, size and sha256.
    """
    wanted = {member.name: member for member in members}
    try:
        # Read as a stream: one pass, and no seeking to places that the archive names.
        with tarfile.open(archive, "r|*") as tar:
            for info in tar:
                if info.size > MOST_MEMBER_BYTES:  # to pass by one that is not there takes years
                    raise tarfile.ReadError(f"a member of {info.size} bytes")
                member = wanted.get(info.name)
                if member and info.type in REGULAR and info.size == member.size:
                    store(member, folder / member.name, _chunks(tar, info))
                    del wanted[member.name]
                if not wanted:
                    break
    except READING_ERRORS as error:
        raise UnavailableError(
            f"{archive.name} cannot be read as a tar archive: {error}"
        ) from error
    for member in wanted.values():
        raise UnavailableError(f"no regular member {member.name} of {member.size} bytes in it")


def _chunks(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    source = tar.extractfile(info)  # opens a regular member for reading; writes nothing
    while source and (chunk := source.read(CHUNK)):
        yield chunk
