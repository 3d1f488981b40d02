"""The grammar of PNG and JPEG: whether every decoder must agree on what a file's pixels are.

OpenCV takes what Pillow refuses: files cut short, stray markers, animations, 16 bits, palettes.
So OpenCV decodes only a plain file, one that holds none of these, and Pillow judges all others.

This is worth its lines: an image takes this much more processor time with Pillow alone, and with
Pillow opening each file before OpenCV decodes it, which finds fewer faults than this grammar does.

    PNG 28x28    3.2 and 2.0 times        JPEG 32x32      3.4 and 2.0 times
    PNG 224x224  1.2 and 1.0 times        JPEG 224x224    1.4 and 1.2 times
"""

import re
import struct
import zlib
from collections.abc import Collection

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
PNG_KEYWORD = re.compile(rb"[A-Z]|date:")

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
    """A file without all that is no picture, if it holds nothing but one of `shape`.

    `shape` is height, width and channels: 1 is grey, 3 RGB, 4 RGBA, all of 8 bits. None is for
    another one, and where a decoder would have to judge.
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
        return not payload.startswith(b"Exif")
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
