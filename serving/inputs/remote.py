"""Inputs at addresses, `https://`, `s3://`, `gs://`: images fetched one by one, files as a whole.

A file is fetched when its turn comes, into a temporary folder that is gone with its last chunk.
Its chunks hold all that their rows are made of, so that they may be decoded later, and elsewhere.

fsspec reads the addresses, but its caches do not keep the files. `simplecache` and `filecache`
replace one call, `get_file`, and would leave all else to be done here: they take a file of the web
for unchanged as long as its address is the same, do not compare its size with what came, try once,
and delete it at no certain time. `blockcache` needs a server that answers ranges, and every process
that decodes would fetch the blocks again.
"""

import functools
import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from serving.errors import DamagedError, FerryError, InputError, MissingInputError, redacted
from serving.files import printable
from serving.inputs.arrays import PlainRows
from serving.inputs.decoding import ImageDecoder, image_decoder, refuse_large
from serving.inputs.images import no_images
from serving.inputs.names import (
    PACKAGES,
    WEB,
    file_name,
    is_image,
    is_pattern,
    may_be_image,
    scheme_of,
)
from serving.inputs.sources import (
    Batch,
    Chunk,
    NumberedIds,
    ReadTarget,
    RowSource,
    reason_of,
    value_or_reason,
)
from serving.inputs.tars import TarImages
from serving.runtime.tensors import Array

Result = TypeVar("Result")
Opener = Callable[[Sequence[str]], RowSource]
"""What opens a file when it lies on this machine; it can be sent to other processes."""

FETCHES = 16
"""Files that are asked for at a time: most of an answer is waiting."""
WAITS = (0.0, 0.5, 2.0)
"""Seconds before each try."""
CONNECT_SECONDS = 30
SILENT_SECONDS = 60
"""How long a server may send nothing; a whole file may take any time."""
PASSING_STATUS = (408, 425, 429)
MISSING_STATUS = (404, 410)
# Under one of these names every server tells when a file was changed.
STATE = (
    *("size", "ETag", "etag", "Content-MD5", "Digest", "generation"),
    *("Last-Modified", "LastModified", "updated", "mtime", "created"),
)
PART_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that was there when it was looked at."""

    address: str
    size: int | None
    """In bytes; None where the server does not tell."""
    state: str
    """What changes when the file does, as far as the server tells."""

    @property
    def name(self) -> str:
        """The address as it is shown and kept."""
        return redacted(self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteImages:
    """Images at addresses, in the order in which these were given."""

    images: tuple[RemoteFile, ...]
    decoder: ImageDecoder
    slow: bool = True

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.images)

    def fingerprint(self) -> str:
        """The sha256 of the address and state of every image."""
        return _fingerprint(self.images)

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """Addresses, `size` at a time, from the image `start` on."""
        for first in range(start, self.count, size):
            content = self.images[first : first + size]
            yield Chunk(start=first, count=len(content), content=content)

    def decode(self, chunk: Chunk) -> Batch:
        """The images of a chunk, many of which are fetched at a time; the id is the address."""
        images: tuple[RemoteFile, ...] = chunk.content
        with ThreadPoolExecutor(FETCHES) as pool:
            values = list(pool.map(lambda image: value_or_reason(self._image, image), images))
        return self.decoder.batch([image.name for image in images], values)

    def _image(self, image: RemoteFile) -> Array:
        if not _may_be_image(image):  # and it may be large
            raise ValueError("it is not named as an image")
        return self.decoder.decode(_content_of(image))


@dataclass(frozen=True, slots=True)
class FetchedChunk:
    """A chunk of a fetched file, with what decodes it."""

    path: str
    """Where the file was; names in the ids begin with it."""
    source: RowSource
    chunk: Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedRows:
    """The rows of a file at an address."""

    file: RemoteFile
    open: Opener
    slow: bool
    count: None = None

    def fingerprint(self) -> str:
        """The sha256 of the address and state of the file."""
        return _fingerprint([self.file])

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The chunks of the file, which is fetched now; InputError if it has changed."""
        with tempfile.TemporaryDirectory(prefix="ferry-") as folder:
            path = _fetched(self.file, Path(folder))
            with self._named(str(path)):
                source = self.open([str(path)])
                if isinstance(source, TarImages):
                    source = replace(source, fetched=True)
                for chunk in source.chunks(size, start):
                    content: FetchedChunk | Batch = FetchedChunk(str(path), source, chunk)
                    if isinstance(source, PlainRows):
                        # The file is gone when the chunk is decoded.
                        content = self._addressed(source.decode(chunk), str(path))
                    yield replace(chunk, content=content)

    def decode(self, chunk: Chunk) -> Batch:
        """The rows of a chunk; their ids begin with the address."""
        if isinstance(chunk.content, Batch):
            return chunk.content
        part: FetchedChunk = chunk.content
        with self._named(part.path):
            return self._addressed(part.source.decode(part.chunk), part.path)

    def _addressed(self, batch: Batch, path: str) -> Batch:
        ids: Sequence[str] = batch.ids
        if isinstance(ids, NumberedIds):
            return replace(batch, ids=replace(ids, name=self.file.name))
        name = printable(path)
        return replace(batch, ids=[self.file.name + one.removeprefix(name) for one in ids])

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Tell the address in place of the path."""
        try:
            yield
        except DamagedError as error:
            raise DamagedError(self.file.address, error.reason) from error
        except InputError as error:
            raise InputError(str(error).replace(path, self.file.address)) from error


def open_remote_images(roots: Sequence[str], target: ReadTarget) -> RemoteImages:
    """The images at addresses, below folders and of patterns.

    Raises MissingInputError for what is not there, and InputError for what gives no images.
    """
    decoder = image_decoder(roots[0], target)
    # One after the other, a shell's thousand addresses would take minutes.
    with ThreadPoolExecutor(FETCHES) as pool:
        found = [image for some in pool.map(_images_at, roots) for image in some]
    return RemoteImages(images=tuple(found), decoder=decoder)


def open_fetched(address: str, open_local: Opener, *, slow: bool) -> FetchedRows:
    """The rows of a file at an address, to be opened by `open_local`; MissingInputError if gone."""
    return FetchedRows(file=_look(address), open=open_local, slow=slow)


def matching(pattern: str) -> list[str]:
    """The files that a pattern stands for, sorted; InputError when there are none."""
    return [file.address for file in _listed(pattern)]


def _fingerprint(files: Sequence[RemoteFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.address}\0{file.state}\0".encode())
    return digest.hexdigest()


# What is there


def _look(address: str) -> RemoteFile:
    """What the server tells of a file; MissingInputError or InputError where it cannot be had."""
    with _about(address):
        return _remote_file(address, _attempt(address, lambda files: files.info(address)))


def _look_again(listed: RemoteFile) -> RemoteFile:
    """More of an image that was listed; what is wrong with it, its row tells."""
    if not _may_be_image(listed):
        return listed
    try:
        return _look(listed.address)
    except InputError:
        return listed


def _remote_file(address: str, info: Mapping[str, Any]) -> RemoteFile:
    size = info.get("size")
    state = " ".join(str(info.get(name, "-")) for name in STATE)
    return RemoteFile(address, None if size is None else int(size), state)


def _images_at(root: str) -> list[RemoteFile]:
    """The image itself, or those below a folder or of a pattern, sorted by name."""
    if not is_pattern(root) and is_image(file_name(root)):
        return [_look(root)]
    # What has no name is a view of the folder: `photos/?sort=size`.
    found = [file for file in _listed(root) if file_name(file.address)]
    if not any(map(_may_be_image, found)):
        others = found[0].address if found else ""
        raise no_images(root, others=len(found), first=others)
    if scheme_of(root) not in WEB:
        return found
    # A page of links tells neither sizes nor times.
    with ThreadPoolExecutor(FETCHES) as pool:
        return list(pool.map(_look_again, found))


def _may_be_image(file: RemoteFile) -> bool:
    return may_be_image(file_name(file.address))


def _listed(root: str) -> Sequence[RemoteFile]:
    """The files below a folder or of a pattern, without hidden ones, as a local folder is read."""
    with _about(root):
        found = _attempt(root, lambda files: _listing(files, root))
    if not found and is_pattern(root):
        raise InputError(f"no input matches {root!r}")
    if not found:
        _look(root)  # raises for a folder that is not there
    return found


def _listing(files: Any, root: str) -> Sequence[RemoteFile]:
    # Else a folder of the web that cannot be listed would be left out unseen.
    more = {"on_error": "raise"} if scheme_of(root) in WEB else {}
    if is_pattern(root):
        infos = files.glob(root, detail=True, **more)
        fixed = len(re.split(r"[*?\[]", root)[0].rpartition("/")[0])
    else:
        infos = files.find(root, detail=True, **more)
        fixed = len(root.rstrip("/"))
    found = []
    for name, info in infos.items():
        address = name if "://" in name else f"{scheme_of(root)}://{name.lstrip('/')}"
        if info.get("type", "file") == "file" and "/." not in address[fixed:]:
            found.append(_remote_file(address, info))
    return sorted(found, key=lambda file: file.address.split("/"))


# Its bytes


def _content_of(image: RemoteFile) -> bytes:
    """The bytes of an image; ValueError with the reason for none."""
    if image.size is None:
        return _attempt(image.address, lambda files: _streamed(files, image.address))
    refuse_large(image.size)
    content: bytes = _attempt(image.address, lambda files: files.cat_file(image.address))
    if len(content) < image.size:
        raise FetchError(f"it ends after {len(content)} of {image.size} bytes")
    return content


def _streamed(files: Any, address: str) -> bytes:
    """The bytes of a file whose size nobody tells, no more than an image may have."""
    content = b""
    with files.open(address, "rb", block_size=0) as file:
        while part := file.read(PART_BYTES):
            content += part
            refuse_large(len(content))
    return content


def _fetched(file: RemoteFile, folder: Path) -> Path:
    """A file, whole and under its name, in a folder of this machine; InputError if it changed."""
    address = file.address
    path = folder / re.sub(r"[^\w.-]", "_", file_name(address))[-100:]
    if _look(address).state != file.state:
        raise InputError(f"{address} has changed since it was looked at; begin again")
    with _about(address):
        _attempt(address, lambda files: files.get_file(address, str(path)))
    got = path.stat().st_size
    if file.size is not None and got != file.size:
        raise InputError(f"{address} has {file.size} bytes, {got} came; try again")
    return path


# Tries


class FetchError(ValueError):
    """Why something cannot be had; the message does not name the address."""

    def __init__(self, reason: str, *, missing: bool = False, passing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing
        self.passing = passing
        """Whether another try may do better."""


@contextmanager
def _about(address: str) -> Iterator[None]:
    """Raise the error for a person in place of a FetchError."""
    try:
        yield
    except FetchError as error:
        if error.missing:
            raise MissingInputError(f"{address} is not there") from error
        raise InputError(f"{address} cannot be read: {error}") from error


def _attempt(address: str, call: Callable[[Any], Result]) -> Result:
    """What a call on a file system gives; FetchError with the reason when it gives nothing."""
    failed = FetchError("it was not tried")
    for wait in WAITS:
        time.sleep(wait)
        try:
            return call(_file_system(scheme_of(address)))
        except FerryError:
            raise
        except Exception as error:  # noqa: BLE001 - every library raises errors of its own
            failed = _failure(error, web=scheme_of(address) in WEB)
            failed.__cause__ = error
            if not failed.passing:
                break
    raise failed


def _failure(error: Exception, *, web: bool) -> FetchError:
    """Why a call failed."""
    if web and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec takes whatever went wrong for a file that is not there
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in MISSING_STATUS:
        return FetchError("it is not there", missing=True)
    reason = reason_of(error)
    if isinstance(status, int) and status:
        reason = f"the server answers {status} {getattr(error, 'message', '')}".strip()
    status = status or getattr(error.__cause__, "status", None)
    answered = isinstance(status, int) and status < 500 and status not in PASSING_STATUS
    refused = isinstance(error, PermissionError | ValueError)
    return FetchError(reason, passing=not answered and not refused)


@functools.cache  # fsspec would make one for every thread, each with its own connections
def _file_system(scheme: str) -> Any:
    package, settings = "fsspec", {}
    try:
        import fsspec

        package = PACKAGES[scheme]
        if scheme in WEB:
            import aiohttp

            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
            )
            settings = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
        return fsspec.filesystem(scheme, use_listings_cache=False, **settings)
    except ImportError as error:
        raise FerryError(
            f"{scheme}:// needs {package}: pip install 'onnx-ferry[remote]'"
        ) from error
