import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.datasets import RawFile
from pipeline.datasets._download import UnavailableError, unpack

ROWS = b"0123456789" * 1000
WANTED = RawFile(name="set/rows.bin", size=len(ROWS), sha256=hashlib.sha256(ROWS).hexdigest())


def archive(path: Path, *entries: tuple[str, bytes | Callable[[tarfile.TarInfo], None]]) -> Path:
    """Make a tar.gz; an entry is a name and its bytes, or what makes its header a special one."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if callable(content):
                content(info)
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def link(kind: bytes, to: str) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, to

    return change


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_a_member_is_taken_and_the_rest_is_not(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz", ("set/readme", b"no"), ("set/rows.bin", ROWS))
    unpack(made, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path / "raw") == ["set/rows.bin"]
    assert (tmp_path / "raw/set/rows.bin").read_bytes() == ROWS


def test_a_plain_tar_is_read_too(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz", ("set/rows.bin", ROWS))
    plain = tmp_path / "a.tar"
    plain.write_bytes(gzip.decompress(made.read_bytes()))
    unpack(plain, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path / "raw") == ["set/rows.bin"]


@pytest.mark.parametrize(
    "entry",
    [
        ("../rows.bin", ROWS),
        ("../../set/rows.bin", ROWS),
        ("./set/../set/rows.bin", ROWS),
        ("/set/rows.bin", ROWS),
        ("set/rows.bin", ROWS + b"!"),
        ("set/rows.bin", ROWS[:-1]),
        ("set/rows.bin", link(tarfile.SYMTYPE, "/etc/passwd")),
        ("set/rows.bin", link(tarfile.LNKTYPE, "../outside")),
        ("set/rows.bin", link(tarfile.FIFOTYPE, "")),
        ("set", link(tarfile.SYMTYPE, "/tmp")),
    ],
)
def test_a_hostile_archive_does_no_harm(tmp_path: Path, entry) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    made = archive(tmp_path / "a.tar.gz", entry)
    with pytest.raises(UnavailableError, match=r"no regular member set/rows\.bin of 10000 bytes"):
        unpack(made, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path) == ["a.tar.gz", "outside"]
    assert outside.read_bytes() == b"precious"


def test_a_link_before_the_member_leads_nowhere(tmp_path: Path) -> None:
    trap = ("set", link(tarfile.SYMTYPE, str(tmp_path / "elsewhere")))
    made = archive(tmp_path / "a.tar.gz", trap, ("set/rows.bin", ROWS))
    (tmp_path / "elsewhere").mkdir()
    unpack(made, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path / "elsewhere") == []
    assert not (tmp_path / "raw/set").is_symlink()


def test_a_member_with_other_bytes_is_refused(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz", ("set/rows.bin", b"x" * len(ROWS)))
    with pytest.raises(UnavailableError, match="sha256"):
        unpack(made, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path / "raw") == []


@pytest.mark.parametrize("content", [b"", b"not an archive" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    made = tmp_path / "a.tar.gz"
    made.write_bytes(content)
    with pytest.raises(UnavailableError, match=r"a\.tar\.gz cannot be read as a tar archive"):
        unpack(made, [WANTED], tmp_path / "raw")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz", ("set/readme", b"x" * 5000), ("set/rows.bin", ROWS))
    made.write_bytes(made.read_bytes()[:-40])
    with pytest.raises(UnavailableError):
        unpack(made, [WANTED], tmp_path / "raw")
    assert not (tmp_path / "raw/set/rows.bin").exists()
