"""Hostile archives: tars, .npz and compressed tables to `ferry predict`, tars to what pull unpacks.

Whatever an archive claims, nothing is written beside the output, nothing of another file comes into
it, and what cannot be read is named.
"""

import functools
import gzip
import io
import itertools
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from cases import HANG_SECONDS, HELD, TOKEN, Case, Outcome, Task, ferry
from tiny_classifier import classifier, images
from tiny_images import encoded
from tiny_kinds import table_classifier

from pipeline.datasets import RawFile
from pipeline.datasets._download import unpack
from serving.errors import FerryError

PNG = encoded(images(1)[0], "PNG")
LINKED = "../../../secret"
"""What a link leads to, from where an archive lies: a file beside that holds a secret."""
HUGE = 2**62
CLAIMS: dict[str, dict[str, Any]] = {
    "a parent": {"name": "../../out.png"},
    "the root": {"name": "/out.png"},
    "a drive": {"name": "C:\\out.png"},
    "no name": {"name": ""},
    "a name that a terminal would obey": {"name": "\x1b]0;title\a.png"},
    "a name of lines": {"name": "a\nb\r.png"},
    "a name that is not UTF-8": {"name": "\udcff\udced.png"},
    "a name of 1 MB": {"name": "n" * 1_000_000 + ".png"},
    "a link": {"type": tarfile.SYMTYPE, "linkname": LINKED},
    "a hard link": {"type": tarfile.LNKTYPE, "linkname": LINKED},
    "a link of itself": {"type": tarfile.LNKTYPE, "linkname": "0.png"},
    "a pipe": {"type": tarfile.FIFOTYPE},
    "a device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    "a folder": {"type": tarfile.DIRTYPE},
    "a type of nobody": {"type": b"?"},
    "sizes of 2^62": {"size": HUGE},
    "a size of 8 GB": {"size": 8 << 30},
}
"""What the header of a member says."""
PAX = {
    "a size in words": {"size": "many"},
    "a size of 10^30": {"size": "1" + "0" * 30},
    "a size below 0": {"size": "-512"},
    "a time that is none": {"mtime": "nan"},
    "a path of a parent": {"path": "../../../out.png"},
    "a sparse file": {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "9" * 18,
    },
    "a sparse map": {"GNU.sparse.map": "0," * 50_000, "GNU.sparse.size": "9" * 18},
    "100,000 records": {f"key{at}": "value" for at in range(100_000)},
}
"""What is said before a member, in place of its header."""


def member(content: bytes = PNG, pax: Mapping[str, str] | None = None, **claims: Any) -> bytes:
    """A member of a tar."""
    info = tarfile.TarInfo("0.png")
    info.size = len(content)
    for name, value in claims.items():
        setattr(info, name, value)
    info.pax_headers = dict(pax or {})
    head = info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return head + content.ljust(-(-len(content) // 512) * 512, b"\0")


END = bytes(1024)
GOOD = member(name="good.png")


def tars() -> Iterator[tuple[str, bytes]]:
    """Tars whose last member is good, where one comes so far."""
    for name, claims in CLAIMS.items():
        yield name, member(**claims) + GOOD + END
    for name, pax in PAX.items():
        yield name, member(pax=pax) + GOOD + END
    lying = bytearray(member(pax={"path": "x" * 40}))
    lying[512:515] = b"999"
    names = member(b"n" * 100, name="././@LongLink", type=tarfile.GNUTYPE_LONGNAME)
    yield "a record that is longer than all", bytes(lying) + GOOD + END
    yield "100,000 long names in a row", names * 100_000 + GOOD + END
    yield "a long name of 8 GB", member(b"", name="././@LongLink", type=b"L", size=8 << 30) + GOOD
    yield "30,000 empty members", member(b"") * 30_000 + GOOD + END
    yield "a wrong sum", GOOD.replace(b"good", b"evil") + GOOD + END
    yield "half a header", GOOD + GOOD[:300]
    yield "half a member", GOOD + GOOD[:530]
    yield "no end", GOOD
    yield "zeros in between", GOOD + END + GOOD + END
    yield "no tar", b"\x7fELF" + bytes(4096)
    yield "nothing", b""
    yield (
        "an image that unfolds",
        member(zlib.compress(bytes(64 << 20)), name="bomb.png") + GOOD + END,
    )


def packed() -> Iterator[tuple[str, bytes]]:
    """Compressed tars."""
    tar = GOOD + END
    block = gzip.compress(bytes(1 << 20))
    yield "a cut end", gzip.compress(tar)[:-9]
    yield "2 GB of zeros", gzip.compress(tar) + block * 2048
    yield "an image of 2 GB", gzip.compress(member(b"", size=2 << 30)) + block * 2048
    yield "within itself", gzip.compress(gzip.compress(tar))
    yield "a wrong sum", gzip.compress(tar)[:-8] + bytes(8)
    yield "something after it", gzip.compress(tar) + b"rubbish"
    yield "a long field", b"\x1f\x8b\x08\x04" + bytes(6) + b"\xff\xff" + bytes(9)


def zips() -> Iterator[tuple[str, bytes]]:
    """Arrays in a .npz."""
    array = io.BytesIO()
    np.save(array, images(3))
    npy = array.getvalue()
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    rows = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 4, 5, 1), }"
    many = b"\x93NUMPY\1\0\x76\0" + (rows % 2**40).ljust(117) + b"\n"
    good = zipped({"images.npy": npy})
    yield "a parent", zipped({"../../images.npy": npy})
    yield "the root", zipped({"/images.npy": npy})
    yield "a name that a terminal would obey", zipped({"\x1b]0;title\a.npy": npy})
    yield "2 GB of zeros", zipped({"images.npy": many + bytes(1 << 28)})
    yield "a header of 2^40 rows", zipped({"images.npy": many})
    yield "a pickle", zipped({"images.npy": pickled.getvalue()})
    yield "no array", zipped({"images.npy": b"\x80\x04]\x94."})
    yield "100,000 members", zipped({f"{at}.npy": b"" for at in range(100_000)})
    yield "twice the same", twice(npy)
    yield "encrypted", altered(good, b"PK\1\2", 8, b"\1\0")
    yield "a method of nobody", altered(altered(good, b"PK\1\2", 10, b"c\0"), b"PK\3\4", 8, b"c\0")
    yield "sizes of 4 GB", altered(good, b"PK\1\2", 20, b"\xfe\xff\xff\xff" * 2)
    yield "a place outside", altered(good, b"PK\1\2", 42, b"\xf0\xff\xff\x7f")
    yield "half of it", good[: len(good) // 2]
    yield "no directory", good[: good.index(b"PK\1\2")]
    yield "a long remark", altered(good, b"PK\5\6", 20, b"\xff\xff")
    yield "many disks", altered(good, b"PK\5\6", 4, b"\xff\xff\xff\xff\xff\xff")


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip of files by their names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def twice(npy: bytes) -> bytes:
    """Two members of one name, and of different rows."""
    one = zipped({"images.npy": npy, "imagez.npy": npy[:-1] + b"\1"})
    return one.replace(b"imagez", b"images")


def altered(content: bytes, mark: bytes, at: int, new: bytes) -> bytes:
    """The content with other bytes so far behind the first `mark`."""
    start = content.index(mark) + at
    return content[:start] + new + content[start + len(new) :]


def tables() -> Iterator[tuple[str, bytes]]:
    """Compressed tables, by their names."""
    line, block = b"a,b,c\n", gzip.compress(b"1" * (1 << 20))
    yield "digits.csv.gz", gzip.compress(line + b"9" * 1_000_000 + b",1,1\n")
    yield "a line of 2 GB.csv.gz", gzip.compress(line) + block * 2048
    yield "2 GB of zeros.csv.gz", gzip.compress(line) + gzip.compress(bytes(1 << 20)) * 2048
    yield "2 GB of lines.txt.gz", gzip.compress(b"\n" * (1 << 20)) * 64
    yield "a value of 2 GB.jsonl.gz", gzip.compress(b'{"a": "') + block * 2048
    yield "a window of 2 GB.csv.zst", b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(64)
    yield "2 GB of zeros.csv.zst", bytes(pa.compress(bytes(1 << 24), "zstd", asbytes=True)) * 128
    yield "nested.jsonl.gz", gzip.compress(b"[" * 10_000_000)
    yield "deep.jsonl.gz", gzip.compress(b'{"a":' * 1_000_000)
    yield "digits.jsonl.gz", gzip.compress(b'{"a": ' + b"9" * 1_000_000 + b', "b": 1, "c": 1}\n')
    yield "columns.csv.gz", gzip.compress(b"a," * 1_000_000 + b"b\n")
    yield "quotes.csv.gz", gzip.compress(line + b'"' + b"1,1,1\n" * 1_000_000)


def cases(task: Task) -> Iterator[Case]:
    """Each archive."""
    made: dict[str, tuple[Callable[[], Iterator[tuple[str, bytes]]], str]] = {
        "tar": (tars, "{}.tar"),
        "packed tar": (packed, "{}.tar.gz"),
        "npz": (zips, "{}.npz"),
        "table": (tables, "{}"),
    }
    for name, content in (("images.onnx", classifier()), ("table.onnx", table_classifier())):
        (task.scratch / name).write_bytes(content)
    (task.scratch / "good.tar").write_bytes(GOOD + END)
    (task.scratch / "secret").write_text(TOKEN)
    usual = HANG_SECONDS
    if not task.short:
        usual = ferry("predict", "images.onnx", "good.tar", folder=task.scratch, seconds=60).seconds
    for kind, (archives, form) in list(made.items())[: 1 if task.short else None]:
        for name, content in itertools.islice(archives(), 1 if task.short else None):
            file = form.format("archive" if form != "{}" else name)
            run = functools.partial(predicted, task, file, content, 3 * usual)
            yield Case(f"{kind}: {name}", run, seconds=300.0)
    for name, content in itertools.islice(tars(), 3 if task.short else None):
        yield Case(f"unpacked: {name}", functools.partial(unpacked, task, content))
    for name, content in () if task.short else packed():
        yield Case(f"unpacked: packed, {name}", functools.partial(unpacked, task, content))


def predicted(task: Task, name: str, content: bytes, usual: float) -> Outcome:
    """Give an archive to `ferry predict`, and look for what it did."""
    folder = task.scratch / "predicted" / "deep" / "down"
    shutil.rmtree(task.scratch / "predicted", ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    model = task.scratch / ("images.onnx" if ".tar" in name or ".npz" in name else "table.onnx")
    words = ("predict", model, name, "--output", "rows.csv", "--max-memory", "2")
    ended = ferry(*words, folder=folder, seconds=HANG_SECONDS + usual)
    outcome = ended.judged()
    if not outcome.held:
        return outcome
    there = {path for path in (task.scratch / "predicted").rglob("*") if path.is_file()}
    known = {folder / one for one in (name, *(f"rows.csv{end}" for end in ("", *BESIDE)))}
    if there - known:
        return ended.fault("lost", f"left {there - known}")
    texts = [path.read_text("utf-8", "replace") for path in there - {folder / name}]
    if any(TOKEN in text for text in texts):
        return ended.fault("secrets", "another file in the output")
    return outcome


BESIDE = (".errors.jsonl", ".manifest.jsonl")


def unpacked(task: Task, content: bytes) -> Outcome:
    """Unpack a tar as pull does."""
    archive, folder = task.scratch / "archive.tar", task.scratch / "raw"
    archive.write_bytes(content)
    wanted = RawFile(name="good.png", size=len(PNG), sha256="0" * 64)
    try:
        unpack(archive, [wanted], folder)
    except FerryError as error:
        str(error).encode()
        left = [path for path in folder.rglob("*") if path.is_file()]
        return Outcome(lost=1, notes=(f"left {left}",)) if left else HELD
    return Outcome(lost=1, notes=("it has another sum",))
