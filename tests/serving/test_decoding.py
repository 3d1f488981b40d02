import io
import struct
import subprocess
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples_of_rows import ROOT, target
from tiny_images import (
    MODES,
    as_image,
    chunks_of,
    decoder,
    encoded,
    picture,
    png,
    saved,
    with_segment,
    write,
)

from serving.errors import InputError
from serving.inputs import decoding
from serving.inputs.decoding import OVER_WHITE, ImageDecoder, image_decoder, plain_picture
from serving.inputs.sources import UnreadableRow, value_or_reason
from serving.runtime.tensors import TensorInfo

ADOBE = b"Adobe\0\x64\0\0\0\0\x01"
PLAIN: dict[str, tuple[int, Callable[[np.ndarray], bytes]]] = {
    "grey.png": (1, lambda pixels: encoded(pixels, "PNG")),
    "rgb.png": (3, lambda pixels: encoded(pixels, "PNG")),
    "rgba.png": (4, lambda pixels: encoded(pixels, "PNG")),
    "resolution.png": (3, lambda pixels: encoded(pixels, "PNG", dpi=(72, 72))),
    "grey.jpg": (1, lambda pixels: encoded(pixels, "JPEG")),
    "rgb.jpg": (3, lambda pixels: encoded(pixels, "JPEG", quality=90)),
    "444.jpg": (3, lambda pixels: encoded(pixels, "JPEG", subsampling=0)),
    "422.jpg": (3, lambda pixels: encoded(pixels, "JPEG", subsampling=1)),
    "progressive.jpg": (3, lambda pixels: encoded(pixels, "JPEG", progressive=True)),
    "progressive-grey.jpg": (1, lambda pixels: encoded(pixels, "JPEG", progressive=True)),
    "optimized.jpg": (3, lambda pixels: encoded(pixels, "JPEG", optimize=True, comment="a cat")),
    "profile.jpg": (3, lambda pixels: encoded(pixels, "JPEG", icc_profile=b"p" * 300)),
    "adobe.jpg": (3, lambda pixels: with_segment(encoded(pixels, "JPEG"), 0xEE, ADOBE)),
}


@pytest.fixture
def opencv() -> None:
    """OpenCV is there; without it Pillow would be compared with itself."""
    pytest.importorskip("cv2")
    assert decoding.opencv() is not None


@pytest.fixture
def no_pillow(opencv: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow opens nothing."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Pillow was asked")

    monkeypatch.setattr(Image, "open", refuse)


@pytest.fixture
def without_opencv(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cv2", None)
    decoding.opencv.cache_clear()
    yield
    decoding.opencv.cache_clear()


def by_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def reason(content: bytes, one: ImageDecoder) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        one.decode(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def agree(content: bytes, one: ImageDecoder) -> str:
    """What the two decoders make of bytes is the same; which of the two it is."""
    found = value_or_reason(one.decode, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "opencv", lambda: None)
        expected = value_or_reason(one.decode, content)
    if isinstance(expected, str):
        assert isinstance(found, str), (expected, content)
        assert found == expected
        return "refused"
    assert not isinstance(found, str), (found, content)
    np.testing.assert_array_equal(found, expected)
    return "read"


# What is plain goes through OpenCV, with the pixels of Pillow


@pytest.mark.parametrize("name", PLAIN)
def test_plain_images_have_the_same_pixels(opencv: None, name: str) -> None:
    channels, encode = PLAIN[name]
    pixels = picture(channels=channels)
    content = encode(pixels)
    assert agree(content, decoder(pixels)) == "read"
    assert agree(content, decoder(pixels, resize=True)) == "read"
    np.testing.assert_array_equal(decoder(pixels).decode(content), by_pillow(content))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_images_do_without_pillow(no_pillow: None, name: str) -> None:
    channels, encode = PLAIN[name]
    pixels = picture(channels=channels)
    read = decoder(pixels).decode(encode(pixels))
    assert (read.shape, read.dtype) == (pixels.shape, np.uint8)
    assert abs(read.astype(int) - pixels).mean() < (1e-9 if name.endswith("png") else 12)


@pytest.mark.parametrize("size", [(20, 30), (224, 224), (37, 61), (1, 1), (8, 9)])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpegs_have_the_same_pixels_at_any_size(
    opencv: None, size: tuple[int, int], quality: int
) -> None:
    pixels = picture(*size)
    for subsampling in (0, 1, 2):
        content = encoded(pixels, "JPEG", quality=quality, subsampling=subsampling)
        assert plain_picture(content, pixels.shape) is not None
        assert agree(content, decoder(pixels)) == "read"


def test_what_is_no_picture_is_left_out() -> None:
    plain = plain_picture(encoded(picture(20, 30, 4), "PNG", dpi=(72, 72)), (20, 30, 4))
    assert plain is not None
    assert [kind for kind, _ in chunks_of(plain)] == [b"IHDR", b"IDAT", b"IEND"]
    plain = plain_picture(encoded(picture(20, 30, 1), "JPEG", comment="a cat"), (20, 30, 1))
    assert plain is not None
    assert b"a cat" not in plain


# What is not plain goes to Pillow


def not_plain() -> dict[str, bytes]:
    pixels = picture()
    grey, image = picture(channels=1), as_image(pixels)
    whole, jpeg = encoded(pixels, "PNG"), encoded(pixels, "JPEG")
    (_, ihdr), (_, idat), (_, iend) = chunks_of(whole)
    parts = (b"IHDR", ihdr), (b"IDAT", idat), (b"IEND", iend)
    wrong_sum = bytearray(whole)
    wrong_sum[-16] ^= 1  # the sum of the pixels
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    scan = jpeg.index(b"\xff\xda")
    return {
        "palette": saved(image.convert("P"), "PNG"),
        "one bit": saved(image.convert("1"), "PNG"),
        "grey with alpha": saved(image.convert("LA"), "PNG"),
        "16 bits": saved(Image.fromarray(np.zeros((20, 30), np.uint16)), "PNG"),
        "transparent colour": saved(image, "PNG", transparency=(1, 2, 3)),
        "animated": saved(image, "PNG", save_all=True, append_images=[image.rotate(90)]),
        "interlaced": png((b"IHDR", ihdr[:-1] + b"\1"), *parts[1:]),
        "profile": encoded(pixels, "PNG", icc_profile=b"p" * 50),
        "wrong sum": bytes(wrong_sum),
        "no pixels": png(parts[0], parts[2]),
        "no end": png(*parts[:2]),
        "more after the end": whole + b"\0",
        "two headers": png(parts[0], *parts),
        "pixels in two places": png(
            parts[0], (b"IDAT", idat[:50]), (b"pHYs", bytes(9)), (b"IDAT", idat[50:]), parts[2]
        ),
        "short resolution": png(parts[0], (b"pHYs", bytes(8)), *parts[1:]),
        "a text that Pillow takes for a flag": png(
            parts[0], (b"tEXt", b"interlace\0001"), *parts[1:]
        ),
        "unknown chunk": png(parts[0], (b"quIt", b""), *parts[1:]),
        "cmyk": saved(image.convert("CMYK"), "JPEG"),
        "turned": saved(image, "JPEG", exif=exif),
        "two pictures": saved(image, "MPO", save_all=True, append_images=[image]),
        "restart markers": saved(image, "JPEG", restart_marker_blocks=1),
        "adobe without a transform": with_segment(jpeg, 0xEE, ADOBE[:-1] + b"\0"),
        "photoshop": with_segment(jpeg, 0xED, b"Photoshop 3.0\x008BIM"),
        "short profile": with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\1"),
        "short name": with_segment(jpeg, 0xE0, b"JFIF\0"),
        "marker among the pixels": jpeg[: scan + 40] + b"\xff\xc4" + jpeg[scan + 40 :],
        "no end of the JPEG": jpeg[:-2],
        "two frames": with_segment(jpeg, 0xC0, struct.pack(">BHHB", 8, 20, 30, 3) + bytes(9)),
        "bmp": encoded(pixels, "BMP"),
        "webp": encoded(pixels, "WEBP", lossless=True),
        "tiff": encoded(grey, "TIFF"),
        "nothing": b"",
        "a text": b"hello",
        "a start alone": b"\x89PNG\r\n\x1a\n",
        "a start of a JPEG alone": b"\xff\xd8\xff",
        "a marker alone": b"\xff\xd8\xff\xd9",
    }


@pytest.mark.parametrize("name", not_plain())
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("resize", [False, True])
def test_all_else_is_judged_by_pillow(name: str, channels: int, resize: bool) -> None:
    content = not_plain()[name]
    assert plain_picture(content, (20, 30, channels)) is None
    agree(content, ImageDecoder(shape=(20, 30, channels), resize=resize))


def held(orientation: int) -> Image.Exif:
    """What a camera notes of how it was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_image_is_seen_as_a_person_sees_it(form: str, orientation: int) -> None:
    """The camera stored what lies on its side, and noted that."""
    rows, columns = np.mgrid[0:20, 0:30]
    pixels = np.stack([rows * 8, columns * 6, rows + columns], -1).astype(np.uint8)
    stored = np.ascontiguousarray(np.rot90(pixels, {1: 0, 3: 2, 6: 1, 8: 3}[orientation]))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    content = encoded(stored, form, exif=held(orientation), **options.get(form, {}))
    read = decoder(pixels).decode(content)
    assert abs(read.astype(int) - pixels).max() <= (4 if form == "JPEG" else 0)
    assert agree(content, decoder(pixels, resize=True)) == "read"


def test_other_notes_of_how_a_camera_was_held(opencv: None) -> None:
    pixels = picture(20, 20)
    xmp = b'<x tiff:Orientation="3"/>'
    jpeg = encoded(pixels, "JPEG")
    noted = with_segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    (_, ihdr), (_, idat), (_, iend) = chunks_of(encoded(pixels, "PNG"))
    text = b"XML:com.adobe.xmp\0" + xmp
    for content in (noted, png((b"IHDR", ihdr), (b"tEXt", text), (b"IDAT", idat), (b"IEND", iend))):
        assert agree(content, decoder(pixels)) == "read"
    turned = decoder(pixels).decode(noted)
    np.testing.assert_array_equal(turned, decoder(pixels).decode(jpeg)[::-1, ::-1])


def test_a_broken_note_of_how_a_camera_was_held_does_not_matter() -> None:
    pixels = picture()
    content = with_segment(encoded(pixels, "JPEG"), 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert decoder(pixels).decode(content).shape == pixels.shape


@pytest.mark.parametrize(
    ("mode", "form"),
    [("LA", "PNG"), ("PA", "TIFF"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "GIF")],
)
def test_what_is_transparent_is_over_white(
    mode: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "NOTES", set())
    pixels = np.full((4, 5, 4), 100, np.uint8)
    pixels[..., 3] = 255
    takes = ImageDecoder(shape=(4, 5, 3), resize=True)
    assert (takes.decode(saved(Image.fromarray(pixels).convert(mode), form)) == 100).all()
    assert not takes.batch([], []).notes
    pixels[:2, :, 3] = 0
    read = takes.decode(saved(Image.fromarray(pixels).convert(mode), form))
    assert (read[:2] == 255).all()
    assert (read[2:] == 100).all()
    assert takes.batch([], []).notes == {OVER_WHITE}


def test_texts_do_not_matter(no_pillow: None) -> None:
    pixels = picture(channels=1)
    (_, ihdr), (_, idat), (_, iend) = chunks_of(encoded(pixels, "PNG"))
    texts = [
        (b"tEXt", b"Software\0Matplotlib"),
        (b"tEXt", b"date:create\x002026"),
        (b"gAMA", b"\0" * 4),
    ]
    content = png(
        (b"IHDR", ihdr),
        *texts,
        (b"IDAT", idat[:9]),
        (b"IDAT", idat[9:]),
        (b"tIME", bytes(7)),
        (b"IEND", iend),
    )
    np.testing.assert_array_equal(decoder(pixels).decode(content), pixels)


# What is spoilt: the verdict and the pixels are those of Pillow


def spoilt(content: bytes, rng: np.random.Generator, first: int = 0) -> bytes:
    """Bytes changed, cut off, doubled or left out."""
    found = bytearray(content)
    kind = rng.integers(0, 8)
    at, other = sorted(rng.integers(first, len(content), 2))
    if kind == 0:
        return bytes(found[:at])
    if kind == 1:
        return bytes(found[:at] + found[other:])
    if kind == 2:
        return bytes(found[:other] + found[at:])
    for _ in range(rng.integers(1, 4)):
        found[rng.integers(first, len(content))] ^= rng.integers(1, 256)
    return bytes(found)


@pytest.mark.parametrize("name", PLAIN)
def test_spoilt_files(opencv: None, name: str) -> None:
    channels, encode = PLAIN[name]
    pixels = picture(channels=channels)
    content, rng = encode(pixels), np.random.default_rng(len(name))
    takes = decoder(pixels)
    verdicts = [agree(spoilt(content, rng), takes) for _ in range(150)]
    assert "refused" in verdicts


@pytest.mark.parametrize("name", [name for name in PLAIN if name.endswith("png")])
def test_spoilt_chunks_whose_sums_are_right(opencv: None, name: str) -> None:
    """What no sum tells: the pixels themselves, or the sizes, are not what they should be."""
    channels, encode = PLAIN[name]
    pixels = picture(channels=channels)
    chunks, rng = chunks_of(encode(pixels)), np.random.default_rng(len(name))
    plain = 0
    for _ in range(150):
        which = rng.integers(0, len(chunks) - 1)
        kind, payload = chunks[which]
        changed = [*chunks]
        changed[which] = (kind, spoilt(payload, rng))
        content = png(*changed)
        plain += plain_picture(content, pixels.shape) is not None
        agree(content, decoder(pixels))
    assert plain > 20


@pytest.mark.parametrize("name", [name for name in PLAIN if name.endswith("jpg")])
def test_spoilt_scans(opencv: None, name: str) -> None:
    channels, encode = PLAIN[name]
    pixels = picture(40, 50, channels)
    content, rng = encode(pixels), np.random.default_rng(len(name))
    first, plain = content.index(b"\xff\xda") + 12, 0
    for _ in range(150):
        broken = bytearray(content)
        broken[rng.integers(first, len(content) - 2)] ^= rng.integers(1, 256)
        plain += plain_picture(bytes(broken), pixels.shape) is not None
        agree(bytes(broken), decoder(pixels))
    assert plain > 20


def test_pixels_that_are_too_few_or_too_many(opencv: None) -> None:
    pixels = picture(channels=1)
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    for idat in (
        zlib.compress(lines[:100]),
        zlib.compress(lines + b"more"),
        zlib.compress(lines) + b"more",
        zlib.compress(lines)[:-4],
        zlib.compress(lines)[:-40],
        zlib.compress(b"\x09" + lines[1:]),
        zlib.compress(b""),
        b"",
    ):
        content = png(
            (b"IHDR", chunks_of(encoded(pixels, "PNG"))[0][1]), (b"IDAT", idat), (b"IEND", b"")
        )
        agree(content, decoder(pixels))


# Formats, sizes and modes


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_are_read_to_the_byte(form: str, channels: int) -> None:
    if (form, channels) == ("BMP", 4):
        pytest.skip("Pillow reads no alpha from a BMP")
    pixels = picture(channels=channels)
    np.testing.assert_array_equal(decoder(pixels).decode(encoded(pixels, form)), pixels)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_are_read(form: str) -> None:
    pixels = np.full((4, 5, 3), 128, np.uint8)
    read = decoder(pixels).decode(encoded(pixels, form))
    assert (read.shape, read.dtype) == ((4, 5, 3), np.uint8)
    assert abs(read.astype(int) - 128).max() <= 3


def test_a_wrong_size_or_mode_says_what_the_model_takes() -> None:
    takes = ImageDecoder(shape=(4, 5, 1))
    for found, size, channels in (("4x5 L", (5, 4), 1), ("5x4 RGB", (4, 5), 3)):
        message = f"it is {found}, the model takes 5x4 L; --resize fits it"
        assert reason(encoded(picture(*size, channels), "PNG"), takes) == message


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_fits_any_eight_bit_image(mode: str, channels: int) -> None:
    image = Image.new("RGB", (31, 17), (200, 200, 200)).convert(mode)
    content = saved(image, "TIFF" if mode == "CMYK" else "PNG")
    read = ImageDecoder(shape=(4, 5, channels), resize=True).decode(content)
    assert (read.shape, read.dtype) == ((4, 5, channels), np.uint8)
    assert read.mean() > 150


def test_resize_is_bilinear() -> None:
    large = picture(16, 15)
    expected = Image.fromarray(large).resize((5, 4), Image.Resampling.BILINEAR)
    read = ImageDecoder(shape=(4, 5, 3), resize=True).decode(encoded(large, "PNG"))
    np.testing.assert_array_equal(read, np.asarray(expected))


@pytest.mark.parametrize("form", ["BMP", "TIFF", "WEBP"])
def test_spoilt_files_of_other_formats_never_stop_a_run(form: str) -> None:
    """Whatever the decoder makes of the bytes, there is a picture or one line of reason."""
    pixels, rng = picture(), np.random.default_rng(1)
    content, takes = encoded(pixels, form), decoder(pixels, resize=True)
    for _ in range(60):
        found = value_or_reason(takes.decode, spoilt(content, rng))
        assert not isinstance(found, str) or "\n" not in found
    for size in (0, 1, 10, len(content) // 2):
        assert reason(content[:size], takes)


# Sizes


def test_a_picture_of_too_many_pixels_is_refused_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = picture()
    for limit in (400, 100):  # Pillow alone warns up to twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
            content = encoded(pixels, form)
            assert agree(content, decoder(pixels)) == "refused"
            assert reason(content, decoder(pixels)) == f"it has more than {limit} pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decoder(pixels).decode(encoded(pixels, "PNG")).shape == pixels.shape


def test_files_of_some_size_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = picture()
    monkeypatch.setattr(decoding, "WHOLE_BYTES", 100)
    monkeypatch.setattr(ImageDecoder, "decode", None)
    for form in ("png", "jpeg", "tiff", "bmp"):
        content = encoded(pixels, form)
        path = write(tmp_path / f"a.{form}", content)
        np.testing.assert_array_equal(decoder(pixels).decode_file(path), by_pillow(content))


# Batches, processes and threads


def test_a_batch_of_files(tmp_path: Path) -> None:
    pixels = picture()
    good = write(tmp_path / "a.png", encoded(pixels, "PNG"))
    empty = write(tmp_path / "b.png", b"")
    batch = decoder(pixels).decode_files([str(good), str(empty), str(good), "a\0b"])
    assert batch.ids == [str(good), str(empty), str(good), "a\0b"]
    assert batch.rows.shape == (2, *pixels.shape)
    assert batch.unreadable[0] == UnreadableRow(str(empty), "it is empty")
    assert "null byte" in batch.unreadable[1].reason
    nothing = decoder(pixels).decode_files([str(empty)])
    assert (nothing.rows.shape, nothing.rows.dtype) == ((0, *pixels.shape), np.uint8)


def test_what_pillow_warns_of_is_not_shown() -> None:
    """Nor raised, where somebody makes errors of warnings."""
    program = """
import io
from PIL import Image
from serving.inputs.decoding import ImageDecoder
Image.MAX_IMAGE_PIXELS = 400  # Pillow alone warns up to twice its limit
file = io.BytesIO()
Image.new("L", (20, 30)).save(file, "BMP")
try:
    ImageDecoder(shape=(30, 20, 1)).decode(file.getvalue())
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("it has more than 400 pixels\n", "")


def test_pillow_alone(without_opencv: None) -> None:
    assert decoding.opencv() is None
    pixels = picture(channels=4)
    np.testing.assert_array_equal(decoder(pixels).decode(encoded(pixels, "PNG")), pixels)


def test_an_old_opencv_is_not_used(without_opencv: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    assert decoding.opencv() is None


def test_an_opencv_that_fails_leaves_it_to_pillow(
    opencv: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    def fail(*_: object) -> None:
        raise cv2.error("out of memory")

    monkeypatch.setattr(cv2, "imdecode", fail)
    pixels = picture()
    np.testing.assert_array_equal(decoder(pixels).decode(encoded(pixels, "PNG")), pixels)


# Models


def info(*axes: int | str, dtype: str = "uint8") -> TensorInfo:
    return TensorInfo(name="images", dtype=dtype, shape=("batch", *axes))


@pytest.mark.parametrize("channels", MODES)
def test_a_model_that_takes_images(channels: int) -> None:
    found = image_decoder("a.png", target(info(4, 5, channels), resize=True))
    assert found == ImageDecoder(shape=(4, 5, channels), resize=True)


@pytest.mark.parametrize(
    "takes",
    [
        info(4, 5, 2),
        info(4, 5),
        info("height", "width", 3),
        info(4, 5, 3, dtype="float32"),
        info(dtype="object"),
    ],
)
def test_a_model_that_takes_none(takes: TensorInfo) -> None:
    with pytest.raises(InputError) as caught:
        image_decoder("a.png", target(takes))
    assert str(caught.value) == (
        f"a.png: model.onnx takes {takes.takes()}, which no image is; give such rows as .npy"
    )
