"""Which names of inputs are addresses, and what they call: `https://`, `s3://`, `gs://`."""

import re
from urllib.parse import unquote, urlsplit

__all__ = ["PACKAGES", "WEB", "file_name", "is_address", "is_pattern", "scheme_of"]

PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "memory": "fsspec"}
"""What opens a scheme, beside fsspec."""
ADDRESS = re.compile(rf"({'|'.join(PACKAGES)})://", re.IGNORECASE)
WEB = ("http", "https")


def is_address(name: str) -> bool:
    """Whether a name is an address that can be opened."""
    return ADDRESS.match(name) is not None


def is_pattern(address: str) -> bool:
    """Whether an address stands for several; on the web a `?` begins a query."""
    path = address.partition("://")[2].partition("/")[2]
    return re.search(r"[*\[]" if scheme_of(address) in WEB else r"[*?\[]", path) is not None


def file_name(address: str) -> str:
    """What a file is called; "" for a folder, as `s3://bucket/photos/`."""
    if scheme_of(address) not in WEB:
        return address.partition("://")[2].rsplit("/", 1)[-1]
    return unquote(urlsplit(address).path).rsplit("/", 1)[-1]


def scheme_of(address: str) -> str:
    """What stands before `://`, in small letters."""
    return address.partition("://")[0].lower()
