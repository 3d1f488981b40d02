import gzip
import io
import pickle
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples_of_rows import batches, target
from tiny_images import as_image, encoded, picture, saved, write

from serving.errors import InputError
from serving.inputs import tars
from serving.inputs.names import IMAGE_SUFFIXES, format_of_file
from serving.inputs.sources import InputRow, UnreadableRow, each_row
from serving.inputs.tars import TarImages, open_tars
from serving.runtime.tensors import TensorInfo

INFO = TensorInfo(name="images", dtype="uint8", shape=("batch", 20, 30, 1))
SUFFIXES = (".tar", ".tar.gz", ".tgz")


def content_of(index: int) -> bytes:
    return encoded(picture(channels=1, seed=index), "PNG")


def samples(count: int) -> dict[str, bytes]:
    """Images with their classes, as WebDataset keeps them."""
    return {
        f"{index:05}.{kind}": content_of(index) if kind == "png" else b"3"
        for index in range(count)
        for kind in ("png", "cls")
    }


def shard(path: Path, members: dict[str, bytes | tarfile.TarInfo], **options: object) -> Path:
    """A tar of files by name, and of members that are no files."""
    mode = "w" if path.suffix == ".tar" else "w:gz"
    with tarfile.open(path, mode, **options) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def opened(*paths: Path, resize: bool = False) -> TarImages:
    return open_tars(paths, target(INFO, resize=resize))


def read(source: TarImages, size: int = 3) -> Iterator[InputRow | UnreadableRow]:
    return each_row(source, size)


def drained(stream: Iterator[Any]) -> tuple[list[Any], str]:
    """All that a stream gives, and the error it ends in, or ""."""
    found: list[Any] = []
    try:
        while (one := next(stream, None)) is not None:
            found.append(one)
    except InputError as error:
        return found, str(error)
    return found, ""


def until_damaged(path: Path, size: int = 2) -> tuple[list[InputRow | UnreadableRow], str]:
    """What is read of a shard, and what is said of the rest."""
    *found, rest = read(opened(path), size)
    assert isinstance(rest, UnreadableRow)
    assert rest.id == str(path)
    assert "\n" not in rest.reason
    assert rest.reason.endswith("; the rest of it is not read")
    return found, rest.reason.removesuffix("; the rest of it is not read")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_image_is_a_row(tmp_path: Path, suffix: str) -> None:
    path = shard(tmp_path / f"a{suffix}", samples(7))
    items = list(read(opened(path)))
    assert [item.id for item in items] == [f"{path}:{index:05}.png" for index in range(7)]
    for index, item in enumerate(items):
        assert isinstance(item, InputRow)
        np.testing.assert_array_equal(item.value, picture(channels=1, seed=index))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("start", [0, 4, 8, 12, 16])
def test_shards_go_on_where_they_were(tmp_path: Path, suffix: str, start: int) -> None:
    paths = [shard(tmp_path / f"{name}{suffix}", samples(5)) for name in "abc"]
    source = opened(*paths)
    made = batches(source, 4, start)
    found = [f"{path}:{index:05}.png" for path in paths for index in range(5)]
    assert [one for batch in made for one in batch.ids] == found[start:]
    assert (source.count, source.slow) == (None, True)


def test_what_was_read_is_forgotten(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", samples(50), pax_headers={"comment": "a" * 1000})
    with path.open("rb") as file:
        archive = tars.ForgetfulTar(fileobj=file, mode="r")
        seen = 0
        while archive.next() is not None:
            seen += 1
            assert not archive.members
            assert not archive.pax_headers
    assert seen == 100


def test_a_chunk_of_an_uncompressed_shard_is_small(tmp_path: Path) -> None:
    source = opened(shard(tmp_path / "a.tar", {"a.png": bytes(5 << 20)}))
    assert len(pickle.dumps(next(source.chunks(1)))) < 1000


def test_two_images_of_one_sample(tmp_path: Path) -> None:
    members = {"1.left.png": content_of(0), "1.right.png": content_of(1), "1.json": b"{}"}
    path = shard(tmp_path / "a.tar", members)
    assert [item.id for item in read(opened(path))] == [f"{path}:1.left.png", f"{path}:1.right.png"]


def test_an_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tgz", {"a.png": b"no image", "b.png": b"", "c.png": content_of(0)})
    a, b, c = read(opened(path))
    assert a == UnreadableRow(f"{path}:a.png", "it is not an image, or not of a known format")
    assert b == UnreadableRow(f"{path}:b.png", "it is empty")
    assert isinstance(c, InputRow)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_members_that_are_no_files(tmp_path: Path, suffix: str) -> None:
    path = shard(
        tmp_path / f"a{suffix}",
        {
            "good.png": content_of(0),
            "soft": special("soft.png", tarfile.SYMTYPE, "/etc/passwd"),
            "hard": special("hard.png", tarfile.LNKTYPE, "good.png"),
            "device": special("device.png", tarfile.CHRTYPE),
            "pipe": special("pipe.png", tarfile.FIFOTYPE),
            "folder": special("folder.png", tarfile.DIRTYPE),
            "other link": special("notes.txt", tarfile.SYMTYPE, "/etc/passwd"),
            "._hidden.png": b"of a Mac",
            "folder/.hidden.png": b"",
            "more.png": content_of(1),
        },
    )
    reasons = {
        item.id.removeprefix(f"{path}:"): item.reason if isinstance(item, UnreadableRow) else None
        for item in read(opened(path))
    }
    assert reasons == {
        "good.png": None,
        "soft.png": "it is a link, to '/etc/passwd'; links are not followed",
        "hard.png": "it is a link, to 'good.png'; links are not followed",
        "device.png": "it is a device or a pipe, not a file",
        "pipe.png": "it is a device or a pipe, not a file",
        "notes.txt": "it is not named as an image",
        "more.png": None,
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_image_and_belongs_to_none_is_named(tmp_path: Path, suffix: str) -> None:
    members = {
        "README.md": b"hello",
        "1.cls": b"3",
        "1.png": content_of(0),
        "1.json": b"{}",
        "1.heic": b"",
        "a/2.mov": b"",
        "a/3.gif": saved(as_image(picture(channels=1)), "GIF"),
        "a/3.txt": b"a caption",
    }
    path = shard(tmp_path / f"a{suffix}", members)
    none = "it is not named as an image"
    assert {
        item.id.removeprefix(f"{path}:"): getattr(item, "reason", None)
        for item in read(opened(path, resize=True))
    } == {"README.md": none, "1.png": None, "1.heic": none, "a/2.mov": none, "a/3.gif": None}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_that_mean_harm_are_only_names(tmp_path: Path, form: int) -> None:
    names = {
        "../../up.png": "../../up.png",
        "/etc/root.png": "/etc/root.png",
        "line\nbreak\x1b[31m.png": "line\\x0abreak\\x1b[31m.png",
        "caf\udce9.png": "caf\\xe9.png",
        "n\u00e4ive \u6f22\u5b57.png": "n\u00e4ive \u6f22\u5b57.png",
        "long/" * 60 + "a.png": "long/" * 60 + "a.png",
    }
    path = shard(tmp_path / "a.tar", dict.fromkeys(names, content_of(0)), format=form)
    items = list(read(opened(path)))
    assert [item.id for item in items] == [f"{path}:{name}" for name in names.values()]
    assert all(isinstance(item, InputRow) for item in items)
    assert sorted(tmp_path.rglob("*")) == [path]


def test_a_sparse_member(tmp_path: Path) -> None:
    """Its size is what it claims to be when it is unpacked."""
    path = shard(tmp_path / "a.tar", {"a.png": content_of(0), "b.png": content_of(1)})
    content = bytearray(path.read_bytes())
    content[156:157] = tarfile.GNUTYPE_SPARSE
    content[483:495] = b"%011o\0" % (1 << 30)
    resum(content)
    path.write_bytes(content)
    first, second = read(opened(path))
    assert first == UnreadableRow(f"{path}:a.png", "it is a sparse file; store it whole")
    assert isinstance(second, InputRow)


def resum(content: bytearray, at: int = 0) -> None:
    """Make the sum of a header right."""
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])


def test_large_members_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MOST_BYTES", 2000)
    monkeypatch.setattr(tars, "MOST_PACKED_BYTES", 1000)
    members = {"a.png": bytes(1500), "b.png": bytes(2500), "c.png": content_of(0)}
    assert len(members["c.png"]) < 1000
    path = shard(tmp_path / "a.tar", members)
    a, b, c = read(opened(path))
    assert a.reason != b.reason == "it has 2500 bytes, the limit is 2000"
    assert isinstance(c, InputRow)
    a, b, c = read(opened(shard(tmp_path / "a.tgz", members)))
    assert a.reason == (
        "it has 1500 bytes, the limit in a compressed shard is 1000; give the shard as a .tar"
    )
    assert isinstance(c, InputRow)


# Damaged shards


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_shard_that_is_cut_short(tmp_path: Path, suffix: str) -> None:
    path = shard(tmp_path / f"a{suffix}", samples(9))
    whole = path.read_bytes()
    for size in range(600, 9 * 2048, 777):
        if size < len(whole) - 9:
            path.write_bytes(whole[:size])
            try:
                found, message = until_damaged(path)
            except InputError as error:  # before its first image
                found, message = [], str(error)
            assert (
                f"is damaged after {len(found)} images, in or after the member at byte" in message
            )
            assert all(isinstance(item, InputRow) for item in found)


def test_a_shard_that_is_cut_between_two_members(tmp_path: Path) -> None:
    """A reader of tars takes this for the end."""
    path = shard(tmp_path / "a.tar", samples(4))
    size = 512 + -(-len(content_of(0)) // 512) * 512
    path.write_bytes(path.read_bytes()[:size])
    found, message = until_damaged(path)
    assert len(found) == 1
    assert message.endswith("it ends without the mark of its end; it is cut short")


def test_a_header_that_is_broken(tmp_path: Path) -> None:
    """A reader of tars takes this for the end as well."""
    path = shard(tmp_path / "a.tar", samples(4))
    content = bytearray(path.read_bytes())
    content[content.index(b"00002.png")] ^= 1
    path.write_bytes(content)
    found, message = until_damaged(path, size=64)
    assert [Path(item.id).name for item in found] == ["a.tar:00000.png", "a.tar:00001.png"]
    assert message.endswith("what follows is no header")


def test_several_archives_in_one_file(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", samples(2))
    path.write_bytes(path.read_bytes() * 2)
    found, message = until_damaged(path)
    assert len(found) == 2
    assert message.endswith("it is several archives in one")


def test_the_images_before_the_damage_come_in_the_same_chunks(tmp_path: Path) -> None:
    good = shard(tmp_path / "good.tar", samples(3))
    bad = shard(tmp_path / "bad.tar", samples(5))
    content = bytearray(bad.read_bytes())
    content[content.index(b"00004.png")] ^= 1
    bad.write_bytes(content)
    source = opened(good, bad, good)
    chunks = list(source.chunks(4))
    assert [chunk.count for chunk in chunks] == [4, 4, 3]
    batch = source.decode(chunks[1])
    assert [Path(one).name for one in batch.ids[2:]] == ["bad.tar:00003.png", "bad.tar"]


def test_a_header_that_claims_to_be_huge(tmp_path: Path) -> None:
    """A name of 2 GB, as a compressed shard of some kilobytes could hold."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2 << 30
    path = shard(tmp_path / "a.tar", samples(1))
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + path.read_bytes())
    with pytest.raises(InputError, match=r"a header of more than 1048576 bytes"):
        opened(path)


def test_a_member_of_a_negative_size(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", samples(3))
    content = bytearray(path.read_bytes())
    at = content.index(b"00001.png")
    content[at + 124 : at + 136] = b"\xff" * 10 + b"\xfc\x00"  # -1024
    resum(content, at)
    path.write_bytes(content)
    found, message = until_damaged(path)
    assert len(found) == 1
    assert "is damaged after 1 images" in message


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_spoilt_shards_end_in_rows_or_an_error(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(3)
    path = shard(tmp_path / f"a{suffix}", samples(4))
    whole, decoder = path.read_bytes(), opened(path).decoder
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(min(len(content), 6000))] = rng.randrange(256)
        path.write_bytes(content)
        source = TarImages(shards=(str(path),), decoder=decoder)
        items, message = drained(read(source))
        assert len(items) <= 5
        assert not message


def test_what_is_no_tar(tmp_path: Path) -> None:
    for suffix, content in ((".tar", b"hello"), (".tar", b""), (".tgz", b"hello"), (".tgz", b"")):
        path = write(tmp_path / f"a{suffix}", content)
        with pytest.raises(InputError, match=r"is damaged after 0 images"):
            opened(path)
    path = write(tmp_path / "b.tgz", gzip.compress(b"hello" * 200))
    with pytest.raises(InputError, match=r"b\.tgz is damaged after 0 images"):
        opened(path)
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(InputError, match=r"folder\.tar is not a file"):
        opened(tmp_path / "folder.tar")


def test_a_shard_that_vanishes(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", samples(3))
    source = opened(path)
    chunk = next(source.chunks(2))
    path.unlink()
    assert [one.reason for one in source.decode(chunk).unreadable] == (
        ["No such file or directory"] * 2
    )
    with pytest.raises(InputError, match=r"No such file"):
        next(source.chunks(2))


def test_a_shard_without_images(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", {"a.txt": b"hello"})
    with pytest.raises(InputError) as caught:
        opened(path)
    assert str(caught.value) == f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})"


def test_how_shards_are_named() -> None:
    assert {format_of_file(f"a{one}") for one in (*SUFFIXES, ".TAR", ".Tar.Gz")} == {"tar"}
    assert "tar" not in map(format_of_file, ("a.png", "a.gz", "tar", "a.tar.txt"))
