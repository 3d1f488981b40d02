"""Files at addresses, `https://`, `s3://` and `gs://`: what is there, and their bytes, by fsspec.

The libraries behind it raise what they like. Here it becomes one reason, after a few tries where
the next one may pass.
"""

import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from serving.errors import FerryError, InputError, MissingInputError
from serving.inputs.decoding import MOST_BYTES, refuse_large
from serving.inputs.items import reason_of
from serving.inputs.names import IMAGE_SUFFIXES, PACKAGES, WEB, file_name, is_pattern, scheme_of

Result = TypeVar("Result")

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


class FetchError(ValueError):
    """Why something cannot be had; the message does not name the address."""

    def __init__(self, reason: str, *, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing

    def about(self, address: str) -> FerryError:
        """The error for a person."""
        if self.missing:
            return MissingInputError(f"{address} is not there")
        return InputError(f"{address} cannot be read: {self}")


@dataclass(frozen=True, slots=True)
class There:
    """A file that was there when it was looked at."""

    address: str
    size: int | None
    """In bytes; None where the server does not tell."""
    state: str
    """What changes when the file does, as far as the server tells."""


def look(address: str) -> There:
    """What the server tells of a file; MissingInputError or InputError where it cannot be had."""
    try:
        return _look(address)
    except FetchError as error:
        raise error.about(address) from error


def matching(pattern: str) -> list[str]:
    """The files that a pattern stands for, sorted; InputError when there are none."""
    return [there.address for there in _listed(pattern)]


def images_at(root: str) -> list[There]:
    """The image itself, or those below a folder or of a pattern, sorted by name.

    Raises MissingInputError for what is not there, and InputError for what holds no images.
    """
    if not is_pattern(root) and file_name(root).lower().endswith(IMAGE_SUFFIXES):
        return [look(root)]
    found = [there for there in _listed(root) if _is_image(there.address)]
    if not found:
        raise InputError(f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    if scheme_of(root) not in WEB:
        return found
    # A page of links tells neither sizes nor times.
    with ThreadPoolExecutor(FETCHES) as pool:
        return list(pool.map(_look_again, found))


def content_of(address: str, size: int | None) -> bytes:
    """The bytes of an image of the `size` that was told; ValueError with the reason for none."""
    if size is None:
        return _attempt(address, lambda files: _streamed(files, address))
    refuse_large(size)
    content: bytes = _attempt(address, lambda files: files.cat_file(address))
    if len(content) < size:
        raise FetchError(f"it ends after {len(content)} of {size} bytes")
    return content


def fetched(there: There, folder: Path) -> Path:
    """A file, whole, in a folder of this machine; it has its name.

    Raises InputError when it cannot be had, or is not the one any more that was looked at.
    """
    address = there.address
    path = folder / re.sub(r"[^\w.-]", "_", file_name(address))[-100:]
    now = look(address)
    if now.state != there.state:
        raise InputError(f"{address} has changed since it was looked at; begin again")
    try:
        _attempt(address, lambda files: files.get_file(address, str(path)))
    except FetchError as error:
        raise error.about(address) from error
    got = path.stat().st_size
    if now.size is not None and got != now.size:
        raise InputError(f"{address} has {now.size} bytes, {got} came; try again")
    return path


def _look(address: str) -> There:
    return _there(address, _attempt(address, lambda files: files.info(address)))


def _look_again(there: There) -> There:
    """More of a file that was listed; what is wrong with it, its row tells."""
    try:
        return _look(there.address)
    except FetchError:
        return there


def _there(address: str, info: Mapping[str, Any]) -> There:
    size = info.get("size")
    state = " ".join(str(info.get(name, "-")) for name in STATE)
    return There(address, None if size is None else int(size), state)


def _listed(root: str) -> Sequence[There]:
    """The files below a folder or of a pattern, without hidden ones, as a local folder is read."""
    try:
        found = _attempt(root, lambda files: _listing(files, root))
        if not found and not is_pattern(root):
            _look(root)  # raises for a folder that is not there
    except FetchError as error:
        raise error.about(root) from error
    if not found and is_pattern(root):
        raise InputError(f"no input matches {root!r}")
    return found


def _listing(files: Any, root: str) -> Sequence[There]:
    # Else a folder of the web that cannot be listed would be left out unseen.
    more = {"on_error": "raise"} if scheme_of(root) in WEB else {}
    if is_pattern(root):
        infos = files.glob(root, detail=True, **more)
        fixed = len(re.split(r"[*?\[]", root)[0].rpartition("/")[0])
    else:
        infos = files.find(root, detail=True, **more)
        fixed = len(root.rstrip("/"))
    found = [
        _there(address, info)
        for address, info in ((_whole(root, name), info) for name, info in infos.items())
        if info.get("type", "file") == "file" and "/." not in address[fixed:]
    ]
    return sorted(found, key=lambda there: there.address.split("/"))


def _whole(root: str, name: str) -> str:
    """The address of what a listing names."""
    return name if "://" in name else f"{scheme_of(root)}://{name.lstrip('/')}"


def _is_image(address: str) -> bool:
    return file_name(address).lower().endswith(IMAGE_SUFFIXES)


def _streamed(files: Any, address: str) -> bytes:
    """The bytes of a file whose size nobody tells, no more than an image may have."""
    content = b""
    with files.open(address, "rb", block_size=0) as file:
        while part := file.read(PART_BYTES):
            content += part
            refuse_large(len(content), MOST_BYTES)
    return content


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
            if not _may_pass(error, failed):
                break
    raise failed


def _failure(error: Exception, *, web: bool) -> FetchError:
    """Why a call failed."""
    if web and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec takes whatever went wrong for a file that is not there
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in MISSING_STATUS:
        return FetchError("it is not there", missing=True)
    if isinstance(status, int) and status:
        return FetchError(f"the server answers {status} {getattr(error, 'message', '')}".strip())
    return FetchError(reason_of(error))


def _may_pass(error: Exception, failed: FetchError) -> bool:
    """Whether another try may do better."""
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)
    if failed.missing or isinstance(error, PermissionError | ValueError):
        return False
    return not isinstance(status, int) or status >= 500 or status in PASSING_STATUS


@functools.cache  # fsspec would make one for every thread, each with its own connections
def _file_system(scheme: str) -> Any:
    package = "fsspec"
    try:
        import fsspec

        package = PACKAGES[scheme]
        return fsspec.filesystem(scheme, use_listings_cache=False, **_settings(scheme))
    except ImportError as error:
        raise FerryError(
            f"{scheme}:// needs {package}: pip install 'onnx-ferry[remote]'"
        ) from error


def _settings(scheme: str) -> dict[str, Any]:
    if scheme not in WEB:
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
    )
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
