"""Encoded images as rows of a model, whatever they come from: files, tar shards, Parquet cells.

Pillow judges and decodes them. Where OpenCV is installed it decodes what is plain and of the
model's size instead, small images in half the time; the pixels are the same.

OpenCV takes what Pillow refuses: files cut short, stray markers, animations, 16 bits, palettes. So
the grammar of PNG and JPEG is read first: OpenCV decodes only a plain file, one that holds none of
these, and Pillow judges all others.

The grammar is worth its lines: an image takes this much more processor time with Pillow alone, and
with Pillow opening each file before OpenCV decodes it, which finds fewer faults than this grammar
does.

    PNG 28x28    3.2 and 2.0 times        JPEG 32x32      3.4 and 2.0 times
    PNG 224x224  1.2 and 1.0 times        JPEG 224x224    1.4 and 1.2 times
"""

import functools
import io
import logging
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from serving.errors import InputError, redacted
from serving.files import printable
from serving.inputs.sources import (
    Batch,
    ReadTarget,
    batch_of,
    reason_of,
    value_or_reason,
)
from serving.runtime.tensors import Array, TensorInfo

MOST_BYTES = 256 << 20
"""Of an encoded image; a larger file is refused unread."""
WHOLE_BYTES = 8 << 20  # a larger file is handed to Pillow to read what it needs of it
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
HEIC = re.compile(rb".{4}ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
ORIENTATION = 0x0112
"""The tag of EXIF that says how a camera was held."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each orientation as a person sees it."""
OVER_WHITE = "images with transparent parts are read over white"
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
# What Pillow's decoders raise on broken files, beside the OSError they should.
DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
NOTES: set[str] = set()
"""What is to be told of the images that this process has decoded since the last batch."""
# Pillow warns of damaged tags, but the picture is there or it is not. To drop its warnings while an
# image is decoded would not do: the filters belong to the process, and there are many threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pillow logs some of what it raises; without a handler that would go to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDecoder:
    """How encoded images become rows of a model. It can be sent to other processes."""

    shape: tuple[int, int, int]
    """Height, width and channels that the model takes."""
    resize: bool = False
    """Whether images of 8 bits are fitted to the model in size and mode."""

    def decode(self, content: bytes) -> Array:
        """The image in some bytes, uint8 [H, W, C]; ValueError for a damaged or unfitting one."""
        if not content:
            raise ValueError("it is empty")
        refuse_large(len(content))
        pixels = self._by_opencv(content)
        return self._by_pillow(io.BytesIO(content)) if pixels is None else pixels

    def decode_file(self, path: Path | str) -> Array:
        """The image in a file, uint8 [H, W, C]; ValueError as `decode`, and for what is no file."""
        try:
            size = _size_of_file(path)
            if size > WHOLE_BYTES:
                with os.fdopen(_opened(path), "rb") as file:
                    return self._by_pillow(file)
            content = _content(path, size)
        except OSError as error:
            raise ValueError(reason_of(error)) from error
        return self.decode(content)

    def decode_files(self, paths: Sequence[str]) -> Batch:
        """A batch of files; the id of a row is its path."""
        return self.batch(
            [redacted(path if path.isascii() else printable(path)) for path in paths],
            [value_or_reason(self.decode_file, path) for path in paths],
        )

    def batch(self, ids: Sequence[str], values: Sequence[Array | str]) -> Batch:
        """A batch of images, or reasons why there is none."""
        batch = batch_of(ids, values, np.empty((0, *self.shape), np.uint8))
        notes = frozenset(NOTES)
        NOTES.difference_update(notes)  # told with this batch, and not with those of the next run
        return replace(batch, notes=notes) if notes else batch

    def _by_opencv(self, content: bytes) -> Array | None:
        """The pixels of a plain image of the model's size, or None for what Pillow should judge."""
        height, width, channels = self.shape
        cv2 = opencv()
        if cv2 is None or _too_many_pixels(width, height):
            return None
        plain = plain_picture(content, self.shape)
        if plain is None:
            return None
        flags = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB, 4: cv2.IMREAD_UNCHANGED}
        flag = flags[channels] | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels: Array | None = cv2.imdecode(np.frombuffer(plain, np.uint8), flag)
        except cv2.error:
            return None
        if pixels is not None and channels == 4:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
        return None if pixels is None else pixels.reshape(self.shape)

    def _by_pillow(self, file: IO[bytes]) -> Array:
        try:
            with Image.open(file, formats=image_formats()) as image:
                if image.format != "PNG":
                    return self._pixels(image)
                image.verify()  # to load it compares no sum of its pixels; the image is spent now
            file.seek(0)
            with Image.open(file, formats=("PNG",)) as image:
                return self._pixels(image)
        except UnidentifiedImageError as error:
            file.seek(0)
            if HEIC.match(file.read(16)):
                raise ValueError("it is HEIC, which is not read; convert it to JPEG") from error
            raise ValueError("it is not an image, or not of a known format") from error
        except DECODING_ERRORS as error:
            raise ValueError(_reason(error)) from error

    def _pixels(self, image: Image.Image) -> Array:
        """The image as uint8 [H, W, C]; ValueError when that is not what it is."""
        self._refuse_unfit(image)
        height, width, channels = self.shape
        mode = MODES[channels]
        if self.resize or sorted(image.size) == sorted((width, height)):
            image = upright(image)
        if self.resize or image.mode == mode:
            image = opaque(image, mode)
        if self.resize:
            image = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
        elif image.size != (width, height) or image.mode != mode:
            found = f"{image.width}x{image.height} {image.mode}"
            raise ValueError(
                f"it is {found}, the model takes {width}x{height} {mode}; --resize fits it"
            )
        return np.asarray(image, dtype=np.uint8).reshape(self.shape)

    def _refuse_unfit(self, image: Image.Image) -> None:
        """Raise what is wrong with an image as its header tells it."""
        if _too_many_pixels(image.width, image.height):
            raise Image.DecompressionBombError
        frames = getattr(image, "n_frames", 1)
        # MPO is what many cameras write into a .jpg: the picture, and a preview after it.
        if frames > 1 and image.format != "MPO":
            raise ValueError(f"it holds {frames} pictures, not one")
        if image.mode not in EIGHT_BIT_MODES:
            raise ValueError(f"its mode is {image.mode}; convert it to 8 bits a channel first")


def image_decoder(name: str, target: ReadTarget) -> ImageDecoder:
    """What decodes images for a model; InputError, which begins with `name`, if it takes none."""
    shape = image_shape(target.input)
    if shape is None:
        raise InputError(f"{name}: {target.takes()}, which no image is; give such rows as .npy")
    return ImageDecoder(shape=shape, resize=target.options.resize)


def image_shape(info: TensorInfo) -> tuple[int, int, int] | None:
    """Height, width and channels of the images that an input takes; None for one without."""
    match info.shape[1:]:
        case (int(height), int(width), int(channels)) if (
            info.dtype == "uint8" and channels in MODES
        ):
            return height, width, channels
    return None


def refuse_large(size: int) -> None:
    """ValueError when an encoded image has more bytes than it may."""
    if size > MOST_BYTES:
        raise ValueError(f"it has {size} bytes, the limit is {MOST_BYTES}")


def _size_of_file(path: Path | str) -> int:
    """The bytes in a file; ValueError or OSError when it is none, or too large."""
    found = os.stat(path)  # noqa: PTH116 - to make a Path takes longer than to look
    if stat.S_ISDIR(found.st_mode):
        os.scandir(path).close()  # raises the reason why a folder of a tree was not looked into
        if Path(path).is_symlink():  # it may lead back here
            raise ValueError("it is a link to a folder, and is not followed; give the folder")
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ValueError(f"it is {kind}, not a file")
    refuse_large(found.st_size)
    return found.st_size


def _opened(path: Path | str) -> int:
    # It was a file just now; should it have become a pipe, opening must not wait for a writer.
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _content(path: Path | str, size: int) -> bytes:
    """The first `size` bytes of a file; fewer when it has become shorter."""
    # Python's own files ask the system four times as much, which small images feel.
    handle = _opened(path)
    try:
        content = os.read(handle, size)
        while len(content) < size and (more := os.read(handle, size - len(content))):
            content += more
        return content
    finally:
        os.close(handle)


def _too_many_pixels(width: int, height: int) -> bool:
    limit = Image.MAX_IMAGE_PIXELS
    return limit is not None and width * height > limit


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
    return reason_of(error)


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Those of the formats that the installed Pillow has."""
    Image.init()  # else it knows the commonest alone
    return tuple(form for form in IMAGE_FORMATS if form in Image.OPEN)


def upright(image: Image.Image) -> Image.Image:
    """The image as a person sees it, by the orientation that the camera noted."""
    image.load()  # which turns a TIFF, and finds the notes of a PNG that stand behind it
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except DECODING_ERRORS:  # a broken note: the picture is there
        return image
    return image if turn is None else image.transpose(turn)


def opaque(image: Image.Image, mode: str) -> Image.Image:
    """The image over white, where it is transparent and `mode` has no place for that."""
    if mode == "RGBA" or not image.has_transparency_data:
        return image
    front = image.convert("RGBA")
    if front.getchannel("A").getextrema() == (255, 255):
        return image
    NOTES.add(OVER_WHITE)
    return Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert(mode)


@functools.cache
def opencv() -> Any:
    """OpenCV, or None where it is not installed, cannot be loaded or is older than 4.11."""
    try:
        import cv2
    except ImportError:
        return None
    if not hasattr(cv2, "IMREAD_COLOR_RGB"):
        return None
    cv2.setNumThreads(1)  # the images are spread over the cores, not the rows of one
    return cv2


# The grammar of plain files

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">I4sIIBBBBB")
PNG_CHUNK = struct.Struct(">I4s")
PNG_CRC = struct.Struct(">I")
PNG_CHANNELS = {0: 1, 2: 3, 6: 4}  # by the colour type: grey, RGB, RGBA
# Chunks that change no pixel, by the length that Pillow wants; a text is of any.
PNG_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}
PNG_ORDER = re.compile(
    rb"IHDR(?:gAMA|cHRM|sRGB|pHYs|tIME|tEXt)*(?:IDAT)+(?:gAMA|cHRM|sRGB|pHYs|tIME|tEXt)*IEND"
)
# Pillow mixes keywords with its own notes, which are small: `interlace` would change the pixels.
# Two keep how a camera was held.
PNG_KEYWORD = re.compile(rb"(?!Raw profile type exif|XML:com\.adobe\.xmp)[A-Z]|date:")

JPEG_START = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
JPEG_SEGMENT = struct.Struct(">BBH")
JPEG_FRAME = struct.Struct(">BHBHHB")
JPEG_CHANNELS = (1, 3)
JPEG_MARKER = re.compile(rb"\xff[^\x00]")
DHT, EOI, SOS, DQT, COM = 0xC4, 0xD9, 0xDA, 0xDB, 0xFE
APP0, APP1, APP2, APP13, APP14 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
PROGRESSIVE = 0xC2
FRAMES = {0xC0, 0xC1, PROGRESSIVE}  # baseline, extended; all of Huffman codes
SCANS = (SOS, DHT)
TABLES = {DHT, DQT}
# The two notes tell the colours.
JPEG_KEPT = FRAMES | TABLES | {APP0, APP14}


def plain_picture(content: bytes, shape: tuple[int, int, int]) -> bytes | None:
    """The picture in a file without all else; None for another `shape`, or if a decoder must judge.

    `shape` is height, width and channels: 1 is grey, 3 RGB, 4 RGBA, all of 8 bits.
    """
    try:
        if content.startswith(PNG_START):
            return _png_picture(content) if _png_shape(content) == shape else None
        if content.startswith(JPEG_START) and content.endswith(JPEG_END):
            return _jpeg_picture(content, shape)
    except struct.error:  # it ends within a header
        return None
    return None


def _png_shape(content: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels, or None for what is not of 8 bits a channel, line by line."""
    length, kind, width, height, depth, colour, *methods = PNG_HEADER.unpack_from(content, 8)
    if (length, kind, depth) != (13, b"IHDR", 8) or any(methods) or colour not in PNG_CHANNELS:
        return None
    return height, width, PNG_CHANNELS[colour]


def _png_picture(content: bytes) -> bytes | None:
    """The chunks that a picture is made of, if every chunk is whole and in its place."""
    view = memoryview(content)
    kinds, kept = [], [view[: len(PNG_START)]]
    at, end = len(PNG_START), len(content)
    while at < end:
        length, kind = PNG_CHUNK.unpack_from(content, at)
        stop = at + 12 + length
        if stop > end or not _png_chunk_fits(view[at + 4 : stop - 4], kind):
            return None
        if zlib.crc32(view[at + 4 : stop - 4]) != PNG_CRC.unpack_from(content, stop - 4)[0]:
            return None
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(view[at:stop])
        kinds.append(kind)
        at = stop
    if not PNG_ORDER.fullmatch(b"".join(kinds)):
        return None
    return content if len(kept) == len(kinds) + 1 else b"".join(kept)


def _png_chunk_fits(chunk: memoryview, kind: bytes) -> bool:
    """Whether a chunk, from its kind on, is as long as its kind should be."""
    if kind == b"tEXt":
        return PNG_KEYWORD.match(chunk, 4) is not None
    return len(chunk) - 4 == PNG_LENGTHS.get(kind, len(chunk) - 4)


def _jpeg_picture(content: bytes, shape: tuple[int, int, int]) -> bytes | None:
    """The segments that a picture is made of, if every segment is in its place."""
    kept, frames, at = [content[:2]], [], 2
    head, marker, length = JPEG_SEGMENT.unpack_from(content, at)
    while marker != SOS:
        segment = content[at : at + 2 + length]
        if head != 0xFF or not _jpeg_segment_fits(marker, segment[4:]):
            return None
        if marker in FRAMES:
            frames.append(JPEG_FRAME.unpack_from(segment, 1))
        if marker in JPEG_KEPT:
            kept.append(segment)
        at += 2 + length
        head, marker, length = JPEG_SEGMENT.unpack_from(content, at)
    if len(frames) != 1 or head != 0xFF:
        return None
    kind, _, depth, *found = frames[0]
    if depth != 8 or tuple(found) != shape or shape[2] not in JPEG_CHANNELS:
        return None
    if not _jpeg_scans_fit(content, at, SCANS if kind == PROGRESSIVE else ()):
        return None
    return b"".join((*kept, content[at:]))


def _jpeg_segment_fits(marker: int, payload: bytes) -> bool:
    """Whether a segment is of the picture, or a note that neither Pillow nor a pixel depends on."""
    if marker == APP0:
        return len(payload) >= 14 or not payload.startswith(b"JFIF")
    if marker == APP1:  # Pillow looks for the resolution in an Exif, and may stumble there
        return not payload.startswith(b"Exif") and b"Orientation" not in payload
    if marker == APP2:  # it also holds the index of several pictures
        return payload.startswith(b"ICC_PROFILE\0") and len(payload) > 14
    if marker == APP14:
        return payload.startswith(b"Adobe") and len(payload) == 12 and payload[11] == 1
    return marker in TABLES or marker in FRAMES or marker == COM or APP2 < marker < APP13


def _jpeg_scans_fit(content: bytes, at: int, more: Collection[int]) -> bool:
    """Whether a scan and segments of the kinds in `more` are all there is before the end."""
    while True:
        _, _, length = JPEG_SEGMENT.unpack_from(content, at)
        found = JPEG_MARKER.search(content, at + 2 + length)
        if found is None:
            return False
        at = found.start()
        marker = content[at + 1]
        if marker not in more:
            break
    # A restart marker is none of these: decoders differ in how they find back after a damage.
    return marker == EOI and at + 2 == len(content)
