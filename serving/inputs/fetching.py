"""What is at addresses, and its bytes: in time, and no more of them than was told.

fsspec reads the addresses, but its caches do not keep the files. `simplecache` and `filecache`
replace one call, `get_file`, and would leave all else to be done here: they take a file of the web
for unchanged as long as its address is the same, do not compare its size with what came, try once,
and delete it at no certain time. `blockcache` needs a server that answers ranges, and every process
that decodes would fetch the blocks again.
"""

import asyncio
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from serving.errors import FerryError, InputError, MissingInputError
from serving.inputs.decoding import refuse_large
from serving.inputs.names import PACKAGES, WEB, file_name, is_pattern, scheme_of, unsigned
from serving.inputs.sources import reason_of

Result = TypeVar("Result")

WAITS = (0.0, 0.5, 2.0)
"""Seconds before each try."""
CONNECT_SECONDS = 30
SILENT_SECONDS = 60
"""How long a server may send nothing; a whole file may take any time."""
PATIENCE = 60.0
"""Seconds for an answer to begin, for a page that lists files, and then for each LEAST_BYTES."""
LEAST_BYTES = 1 << 16
LISTING_SECONDS = 600.0
"""For a folder of the web with all that is in it; its pages may lead to others without an end."""
MOST_PAGE_BYTES = 1 << 26
MOST_BYTES = 1 << 34
"""Of a file whose size is not told."""
LONGEST = 120
"""Characters of what a server says."""
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
        """The address as it is kept: it says which object it is, and opens nothing."""
        return unsigned(self.address)


# What is there


def look(address: str) -> RemoteFile:
    """What the server tells of a file; MissingInputError or InputError where it cannot be had."""
    with _about(address):
        return _remote_file(address, _attempt(address, lambda files: _info(files, address)))


def _info(files: Any, address: str) -> Any:
    # A page at its address may be asked for twice.
    return files.info(address, **({"timeout": 3 * PATIENCE} if is_web(address) else {}))


def is_web(address: str) -> bool:
    """Whether an address is one of HTTP."""
    return scheme_of(address) in WEB


def _remote_file(address: str, info: Mapping[str, Any]) -> RemoteFile:
    size = int(-1 if info.get("size") is None else info["size"])
    state = " ".join(str(info.get(name, "-")) for name in STATE)
    return RemoteFile(address, None if size < 0 else size, state)


def listed(root: str) -> Sequence[RemoteFile]:
    """The files below a folder or of a pattern, without hidden ones, as a local folder is read."""
    with _about(root):
        found = _attempt(root, lambda files: _listing(files, root))
    if not found and is_pattern(root):
        raise InputError(f"no input matches {root!r}")
    if not found:
        look(root)  # raises for a folder that is not there
    return found


def _listing(files: Any, root: str) -> Sequence[RemoteFile]:
    # Else a folder of the web that cannot be listed would be left out unseen.
    more = {"on_error": "raise", "timeout": LISTING_SECONDS} if is_web(root) else {}
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


def content_of(image: RemoteFile) -> bytes:
    """The bytes of an image; ValueError with the reason for none."""
    if image.size is not None:
        refuse_large(image.size)
    content: bytes = _attempt(image.address, lambda files: _whole(files, image))
    if image.size is not None and len(content) < image.size:
        raise FetchError(f"it ends after {len(content)} of {image.size} bytes")
    return content


def _whole(files: Any, image: RemoteFile) -> bytes:
    if not is_web(image.address):
        there: bytes = files.cat_file(image.address)
        return there
    content = bytearray()

    def take(part: bytes) -> None:
        content.extend(part)
        refuse_large(len(content))

    _receive(files, image, take)
    return bytes(content)


def _receive(files: Any, file: RemoteFile, take: Callable[[bytes], object]) -> None:
    """Give the bytes of a file of the web to `take` as they come: in time, and as many as told."""
    from fsspec.asyn import sync

    async def receive() -> None:
        session = await files.set_session()
        left = most = MOST_BYTES if file.size is None else file.size
        async with session.get(files.encode_url(file.address)) as answer:
            answer.raise_for_status()
            wanted = 0
            while wanted <= 0:  # the end comes before there are enough
                wanted = LEAST_BYTES
                async with asyncio.timeout(PATIENCE):
                    while wanted > 0 and (part := await answer.content.read(PART_BYTES)):
                        left, wanted = left - len(part), wanted - len(part)
                        if left < 0:
                            raise FetchError(f"more than {most} bytes come")
                        take(part)

    sync(files.loop, receive)


def fetched(file: RemoteFile, folder: Path) -> Path:
    """A file, whole and under its name, in a folder of this machine; InputError if it changed."""
    address = file.address
    path = folder / re.sub(r"[^\w.-]", "_", file_name(address))[-100:]
    if look(address).state != file.state:
        raise InputError(f"{address} has changed since it was looked at; begin again")
    with _about(address):
        _attempt(address, lambda files: _save(files, file, path))
    got = path.stat().st_size
    if file.size is not None and got != file.size:
        raise InputError(f"{address} has {file.size} bytes, {got} came; try again")
    return path


def _save(files: Any, file: RemoteFile, path: Path) -> None:
    if not is_web(file.address):
        files.get_file(file.address, str(path))
        return
    with path.open("wb") as target:
        _receive(files, file, target.write)


# Tries

TOO_SLOW = "too little comes of it in time"


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
            failed = _failure(error, web=is_web(address))
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
    refused = isinstance(error, PermissionError | ValueError)
    status = status or getattr(error.__cause__, "status", None)
    answered = isinstance(status, int) and status < 500 and status not in PASSING_STATUS
    reason = _reason(error)
    # What was too slow has had its time.
    return FetchError(reason, passing=not (answered or refused or reason == TOO_SLOW))


def _reason(error: Exception) -> str:
    """Why a call failed, in some words; those of a server are bounded."""
    status, name = getattr(error, "status", None), type(error).__name__
    reason = reason_of(error)[:LONGEST]
    if isinstance(error, TimeoutError) and reason == name:
        return TOO_SLOW
    if name == "TooManyRedirects":
        return "it redirects for ever"
    if "Redirect" in name:
        return f"it redirects to {reason}"
    if isinstance(status, int) and status:
        words = " ".join(str(getattr(error, "message", "")).split())
        return f"the server answers {status} {words[:LONGEST]}".strip()
    return reason


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
            settings = {
                "client_kwargs": {
                    "timeout": timeout,
                    "trust_env": True,
                    "response_class": _response_class(),
                }
            }
        return fsspec.filesystem(scheme, use_listings_cache=False, **settings)
    except ImportError as error:
        raise FerryError(
            f"{scheme}:// needs {package}: pip install 'onnx-ferry[remote]'"
        ) from error


def _response_class() -> Any:
    """Answers of the web that begin in time, and stay encrypted where they redirect."""
    import aiohttp

    class Response(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            async with asyncio.timeout(PATIENCE):
                await super().start(connection)
            target = self.headers.get("Location", "").lower()
            if self.url.scheme == "https" and 300 <= self.status < 400 and target[:5] == "http:":
                raise aiohttp.ClientError("it redirects from https to http")
            return self

        async def read(self) -> bytes:
            """The whole, which is only asked for of pages that list files."""
            page = bytearray()
            async with asyncio.timeout(PATIENCE):
                while part := await self.content.readany():
                    page += part
                    if len(page) > MOST_PAGE_BYTES:
                        self.close()
                        raise aiohttp.ClientError(f"its page has more than {MOST_PAGE_BYTES} bytes")
            self._body = bytes(page)
            return self._body

    return Response
