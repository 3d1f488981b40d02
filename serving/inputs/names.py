"""What the names of inputs say: their formats, and the addresses, patterns and splits among them.

This module reads no rows, so that nobody waits for readers that are not needed. A split of a
preprocessed data set, `mnist:test`, stands for a file below `data/ready/mnist`.
"""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from serving.errors import (
    REDACTED,
    InputError,
    IntegrityError,
    UnknownNameError,
    redacted,
)
from serving.files import here_or_above, read_json, require, sha256_of_file

ARRAY_SUFFIXES = (".npy", ".npz")
ARROW_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
COLUMN_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", *ARROW_SUFFIXES)
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".ico", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
OTHER_IMAGE_SUFFIXES = (".heic", ".heif", ".jp2", ".jxl", ".svg")
"""Of images that are not read."""
LIST_SUFFIX, TEXT_SUFFIX = ".lst", ".txt"
PACKED_SUFFIXES = (".gz", ".zst")
"""Of compressed files; what is in them, the suffix before says."""
PACKED_FORMATS = ("csv", "jsonl", "text")
"""What is read compressed, beside what has a suffix of its own."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
FORMATS = {
    **dict.fromkeys(IMAGE_SUFFIXES, "images"),
    **dict.fromkeys(ARRAY_SUFFIXES, "npy"),
    **dict.fromkeys(ARROW_SUFFIXES, "arrow"),
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    LIST_SUFFIX: "list",
    TEXT_SUFFIX: "text",
}
"""The format of a file by its suffix."""
STDIN = "-"
"""What stands for stdin among the inputs."""
IDX_END = re.compile(r"(\.idx\d*|-ubyte)(\.gz)?$", re.IGNORECASE)
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "memory": "fsspec"}
"""What opens a scheme, beside fsspec."""
ADDRESS = re.compile(rf"({'|'.join(PACKAGES)})://", re.IGNORECASE)
WEB = ("http", "https")
ANY_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
LOCAL_ADDRESS = re.compile(r"file://(localhost)?(?=/)")
USER = re.compile(rf"(://)[^\s/?#@]*{re.escape(REDACTED)}@")
SIGNING = re.compile(
    r"(x-(amz|goog|oss)-[\w-]+|expires|policy|key-pair-id|googleaccessid"
    r"|s[vterp]|spr|sip|sdd|ss|srt|sk(oid|tid|[tesv]))=",
    re.IGNORECASE,
)
"""Parameters that stand beside a signature, of Amazon, Google, Alibaba, CloudFront and Azure."""
PATTERN = re.compile(r"[*?[]")
NO_DATA = re.compile(r"\.|(Thumbs\.db|desktop\.ini)$", re.IGNORECASE)
"""Files of a folder that are left out without a word: hidden ones, and those of file managers."""
READY = Path("data/ready")
"""Below the folder of params.yaml, where `ferry preprocess` writes."""
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
SPLIT_NAME = re.compile(r"[A-Za-z0-9][\w-]*:\w+")


def expand(name: str) -> list[str]:
    """The paths that `name` stands for, sorted; an address, stdin and a path stand for themselves.

    Raises InputError for what nothing matches or cannot be read, and as `path_of_split` does.
    """
    local = LOCAL_ADDRESS.match(name)
    if local:
        return expand(unquote(name[local.end() :]))
    if is_address(name):
        return [name]
    other = ANY_ADDRESS.match(name)
    if other:
        raise InputError(f"{name}: {other[0]} cannot be read; fetch the files, or mount them")
    if name == STDIN or Path(name).exists():
        return [name]
    if SPLIT_NAME.fullmatch(name):
        return [str(path_of_split(name))]
    return _matching(name) if PATTERN.search(name) else [name]


def _matching(pattern: str) -> list[str]:
    parts = pattern.split("/")
    found = sorted(_matching_below(parts) if "**" in parts else _shown(pattern))
    if not found:
        raise InputError(f"no input matches {pattern!r}")
    return found


def _matching_below(parts: Sequence[str]) -> Iterator[str]:
    """The files that the parts of a pattern with ** match; no link to a folder is followed.

    glob follows them: of two that lead back it would make 2^40 paths.
    """
    at = parts.index("**")
    head = "/".join(parts[:at]) or ("/" if at else ".")
    for folder in _shown(head):
        base = "" if folder == "." else f"{folder.rstrip('/')}/"
        for path in files_of(folder):
            names = path.removeprefix(base).split("/")
            if _fits(names, [*filter(None, parts[at:])]) and not Path(path).is_dir():
                yield path


def _shown(pattern: str) -> list[str]:
    import glob

    return glob.glob(pattern)  # noqa: PTH207 - Path's takes hidden files


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of a path are those of a pattern, where ** stands for any of them."""
    at = part = back = 0
    star = -1
    while at < len(names):
        wanted = parts[part] if part < len(parts) else ""
        if wanted == "**":
            star, back, part = part, at, part + 1
        elif fnmatch.fnmatchcase(names[at], wanted):
            at, part = at + 1, part + 1
        elif star >= 0:
            back += 1
            at, part = back, star + 1
        else:
            return False
    return all(one == "**" for one in parts[part:])


# Folders


def files_of(root: str) -> Iterator[str]:
    """The file itself, or the files of a folder and the folders in it, but for those of NO_DATA."""
    if not Path(root).is_dir():
        yield root
        return
    # A stack and no recursion: a tree may be deeper than Python's calls.
    stack = [_listing(root)]
    while stack:
        path, is_folder = next(stack[-1], ("", False))
        if is_folder:
            stack.append(_listing(path))
        elif path:
            yield path
        else:
            stack.pop()


def _listing(folder: str) -> Iterator[tuple[str, bool]]:
    """The files and folders of a folder by name, and whether each is a folder."""
    names, folders = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if NO_DATA.match(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                names.append(entry.name)
    except OSError:  # its path becomes a row with the reason
        yield folder, False
        return
    names.sort()
    base = {".": "", "/": "/"}.get(folder, f"{folder}/")
    for name in names:
        yield base + name, name in folders


# Formats


def format_of_file(name: str) -> str | None:
    """The format of a file by its name: "tar", "idx", one of FORMATS, or None for another name."""
    if name.lower().endswith(TAR_SUFFIXES):
        return "tar"
    if IDX_END.search(name):
        return "idx"
    path = Path(name)
    if path.suffix.lower() not in PACKED_SUFFIXES:
        return FORMATS.get(path.suffix.lower())
    form = FORMATS.get(Path(path.stem).suffix.lower())
    return form if form in PACKED_FORMATS else None


def is_image(path: str) -> bool:
    """Whether a file is named as an image."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def may_be_image(path: str) -> bool:
    """Whether a file is named as an image, or in no way at all."""
    return is_image(path) or not Path(path).suffix


# Addresses


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


def unsigned(address: str) -> str:
    """An address without who asks, and what lets them: another signature is the same object.

    Of a query that is signed, what else the signers of clouds add goes too: dates, and names of
    keys and of algorithms.
    """
    text = USER.sub(r"\1", redacted(address))
    base, _, query = text.partition("?")
    if REDACTED not in query:
        return text
    kept = [one for one in query.split("&") if not (one.endswith(REDACTED) or SIGNING.match(one))]
    return "?".join(filter(None, (base, "&".join(kept))))


# Splits


def path_of_split(name: str) -> Path:
    """The rows of a split, a `.npy` file whose bytes are the recorded ones.

    Raises UnknownNameError for another split, MissingInputError for a data set that is not
    preprocessed, and IntegrityError for a file that was altered.
    """
    dataset, _, split = name.partition(":")
    if split not in SPLITS:
        raise UnknownNameError(f"split of {dataset}", split, SPLITS)
    command = f"ferry preprocess {dataset}"
    ready = here_or_above(READY / dataset)
    path = require(ready / f"{split}_inputs.npy", command)
    manifest = require(ready / MANIFEST, command)
    try:
        recorded = str(read_json(manifest)["arrays"][path.name]["sha256"])
    except (KeyError, TypeError) as error:
        raise IntegrityError(
            f"{manifest} does not tell of {path.name}; `{command}` makes it anew"
        ) from error
    found = sha256_of_file(path)
    if found != recorded:
        raise IntegrityError(
            f"{path} has sha256 {found[:12]}…, {recorded[:12]}… was recorded; "
            f"`{command}` makes it anew"
        )
    return path
