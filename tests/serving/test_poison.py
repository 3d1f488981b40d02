"""Files that mean harm or are broken, among good ones: each is named, and no good one is lost."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples_of_rows import target
from tiny_images import (
    as_image,
    chunk,
    chunks_of,
    encoded,
    header,
    picture,
    png,
    saved,
    write,
)

from serving.inputs import decoding
from serving.inputs.decoding import MOST_BYTES
from serving.inputs.images import open_images
from serving.inputs.sources import InputRow, UnreadableRow, each_row
from serving.runtime.tensors import TensorInfo

HEIGHT, WIDTH = 20, 30
INFO = TensorInfo(name="images", dtype="uint8", shape=("batch", HEIGHT, WIDTH, 3))
PIXELS = picture(HEIGHT, WIDTH)
IMAGE = as_image(PIXELS)
OTHER = IMAGE.rotate(180)
WHOLE = encoded(PIXELS, "PNG")
JPEG = encoded(PIXELS, "JPEG")
CHUNKS = dict(chunks_of(WHOLE))
END = chunk(b"IEND", b"")
START = b"\x89PNG\r\n\x1a\n"
NOT_KNOWN = "it is not an image, or not of a known format"
TOO_MANY = f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
MOST_GROWTH_BYTES = 96 << 20


def wrong_sum() -> bytes:
    content = bytearray(WHOLE)
    content[29] ^= 1  # of the header
    return bytes(content)


def other_pixels() -> bytes:
    """A picture of whole pixels with the sum of others."""
    other = png(
        (b"IHDR", CHUNKS[b"IHDR"]), (b"IDAT", zlib.compress(bytes(HEIGHT * (WIDTH * 3 + 1))))
    )
    return other[:-4] + bytes(4) + END


def tiff_with_a_wild_offset() -> bytes:
    """An image whose pixels lie at 3 GB."""
    size = WIDTH * HEIGHT * 3
    tags = [
        *((256, 4, WIDTH), (257, 4, HEIGHT), (258, 3, 8), (259, 3, 1), (262, 3, 2)),
        *((273, 4, 0xC0000000), (277, 3, 3), (278, 4, HEIGHT), (279, 4, size)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def tiff_of_tags_without_end() -> bytes:
    """A first folder of tags that lies outside of the file."""
    return b"II*\0" + struct.pack("<I", 0xF0000000) + bytes(40)


def webp_header(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    sizes = b"".join((size - 1).to_bytes(3, "little") for size in (width, height))
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sizes
    return b"RIFF" + struct.pack("<I", len(body)) + body


def huge_jpeg() -> bytes:
    """A header of 65500 x 65500, and no pixels."""
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", 65500, 65500) + JPEG[at + 9 :]


def bomb() -> bytes:
    """Pixels that are few bytes: 400 million zeros."""
    pixels = zlib.compress(bytes(20_000) * 1000, 9)
    return START + header(20_000, 20_000) + chunk(b"IDAT", pixels) + END


def text_bomb() -> bytes:
    """A text that unfolds to 64 MB, beside a good picture."""
    text = b"Comment\0\0" + zlib.compress(bytes(64 << 20), 9)
    return png(
        (b"IHDR", CHUNKS[b"IHDR"]), (b"zTXt", text), (b"IDAT", CHUNKS[b"IDAT"]), (b"IEND", b"")
    )


def pixels_bomb() -> bytes:
    """A small picture whose pixels unfold to 64 MB; what is too much is left where it is."""
    return png(
        (b"IHDR", CHUNKS[b"IHDR"]), (b"IDAT", zlib.compress(b"\x07" * (64 << 20))), (b"IEND", b"")
    )


def animated(form: str) -> bytes:
    return saved(IMAGE, form, save_all=True, append_images=[OTHER])


def large(path: Path) -> None:
    """A file of 256 MiB and a byte that takes no room on the disk."""
    path.write_bytes(WHOLE)
    os.truncate(path, MOST_BYTES + 1)


# The bytes, and what the reason must hold.
CONTENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero_bytes.png": (lambda: b"", "it is empty"),
    "truncated.png": (lambda: WHOLE[: len(WHOLE) // 2], "Truncated"),
    "truncated.jpg": (lambda: JPEG[:-40], "truncated"),
    "truncated.bmp": (lambda: encoded(PIXELS, "BMP")[:300], "truncated"),
    "gif.png": (lambda: saved(IMAGE, "GIF"), "it is 30x20 P"),
    "text.jpg": (lambda: b"<html>404</html>", NOT_KNOWN),
    "zeros.png": (lambda: bytes(1000), NOT_KNOWN),
    "start_alone.png": (lambda: START, NOT_KNOWN),
    "start_alone.jpg": (lambda: b"\xff\xd8\xff\xe0", NOT_KNOWN),
    "bomb.png": (bomb, TOO_MANY),
    "text_bomb.png": (text_bomb, "too large"),
    "pixels_bomb.png": (pixels_bomb, "unrecognized data stream"),
    "huge.png": (lambda: START + header(2**31 - 1, 2**31 - 1) + END, TOO_MANY),
    "huge.jpg": (huge_jpeg, TOO_MANY),
    "huge.webp": (lambda: webp_header(16384, 16384), ""),
    "cmyk.jpg": (lambda: saved(IMAGE.convert("CMYK"), "JPEG"), "CMYK"),
    "16bit.png": (
        lambda: saved(Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)), "PNG"),
        "convert it to 8 bits",
    ),
    "palette.png": (lambda: saved(IMAGE.convert("P"), "PNG"), "it is 30x20 P"),
    "animated.png": (lambda: animated("PNG"), "it holds 2 pictures"),
    "animated.webp": (lambda: animated("WEBP"), "it holds 2 pictures"),
    "animated_gif.png": (lambda: animated("GIF"), "it holds 2 pictures"),
    "pages.tiff": (lambda: animated("TIFF"), "it holds 2 pictures"),
    "wrong_sum.png": (wrong_sum, NOT_KNOWN),
    "other_pixels.png": (other_pixels, "checksum in b'IDAT'"),
    "no_pixels.png": (lambda: png((b"IHDR", CHUNKS[b"IHDR"]), (b"IEND", b"")), ""),
    "wild_offset.tif": (tiff_with_a_wild_offset, ""),
    "tags_outside.tif": (tiff_of_tags_without_end, NOT_KNOWN),
    "header_alone.webp": (webp_header, ""),
    "wrong_size.png": (lambda: encoded(picture(HEIGHT, WIDTH + 1), "PNG"), "it is 31x20 RGB"),
    "wrong_size.jpg": (lambda: encoded(picture(HEIGHT + 1, WIDTH), "JPEG"), "it is 30x21 RGB"),
}
# What is there and is no file, and what the reason must hold.
KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "broken_link.png": (lambda path: path.symlink_to("gone"), "No such file"),
    "link_loop.png": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "pipe.png": (os.mkfifo, "it is a named pipe, not a file"),
    "pipe_link.jpg": (lambda path: path.symlink_to("pipe.png"), "it is a named pipe"),
    "device.png": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "kernel.png": (lambda path: path.symlink_to("/proc/self/status"), "it is empty"),
    "large.png": (large, "the limit is"),
    "folder_link.png": (lambda path: path.symlink_to(path.parent), "it is a link to a folder"),
}
# Good when they are resized: only their size or mode is not the model's.
RESIZED = {"cmyk.jpg", "gif.png", "palette.png", "wrong_size.png", "wrong_size.jpg"}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of poison, with a good image after each piece of it."""
    folder = tmp_path_factory.mktemp("poison") / "images"
    folder.mkdir()
    for name, (content, _) in CONTENTS.items():
        write(folder / name, content())
    for name, (make, _) in KINDS.items():
        make(folder / name)
    for name in (*CONTENTS, *KINDS):
        write(folder / f"{name}~good.png", WHOLE)
    write(folder / "folder.png" / "good.png", WHOLE)
    write(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9_good.png")), WHOLE)
    return folder


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("opencv", [False, True])
def test_every_poison_is_named_and_every_good_image_read(
    poisoned: Path,
    resize: bool,
    opencv: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if not opencv:
        monkeypatch.setattr(decoding, "opencv", lambda: None)
    source = open_images([poisoned], target(INFO, resize=resize))
    items = {item.id.removeprefix(f"{poisoned}/"): item for item in each_row(source)}
    assert len(items) == source.count
    good = [name for name in items if name.endswith("good.png")]
    assert len(good) == len(CONTENTS) + len(KINDS) + 2
    for name in good:
        item = items.pop(name)
        assert isinstance(item, InputRow), item
        np.testing.assert_array_equal(item.value, PIXELS)
    assert items.keys() == {*CONTENTS, *KINDS}
    for name, item in items.items():
        if resize and name in RESIZED:
            assert isinstance(item, InputRow), item
            continue
        message = (CONTENTS.get(name) or KINDS[name])[1]
        assert isinstance(item, UnreadableRow), name
        assert message in item.reason, item
        assert item.reason
        assert "\n" not in item.reason
    output = capfd.readouterr()
    # libpng has a word to say of pixels that are wrong and have the right sum.
    assert not [line for line in output.err.splitlines() if not line.startswith("libpng error")]
    assert output.out == ""


MEASURE = """
import sys
from pathlib import Path
from serving.inputs.images import open_images
from serving.inputs.sources import InputRow, ReadOptions, ReadTarget, each_row
from serving.runtime.tensors import TensorInfo

info = TensorInfo(name="images", dtype="uint8", shape=("batch", 20, 30, 3))
# Unlike getrusage it does not begin with what the parent held.
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
target = ReadTarget(info, Path("m"), ReadOptions(resize=True))
good, poison = (open_images([Path(path)], target) for path in sys.argv[1:])
list(each_row(good))
before = peak()
read = sum(isinstance(item, InputRow) for _ in range(2) for item in each_row(poison))
print(before, peak(), read)
"""


def test_poison_takes_no_memory(poisoned: Path) -> None:
    """The most that a process held, before it met the poison and after."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, poisoned / "folder.png", poisoned],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after, read = map(int, done.stdout.split())
    assert read == 2 * (len(CONTENTS) + len(KINDS) + 2 + len(RESIZED))
    assert (after - before) * 1024 < MOST_GROWTH_BYTES


def test_poison_would_take_memory_without_the_limits() -> None:
    """The bombs are bombs: decoded, they are larger than all that reading may take."""
    assert 2 * MOST_GROWTH_BYTES < 20_000 * 20_000
    assert len(bomb()) < 1 << 20
    unfolded = zlib.decompress(dict(chunks_of(text_bomb()))[b"zTXt"][9:])
    assert len(unfolded) == 64 << 20
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb()))
