"""Small pictures as files of every kind, and the pieces of PNG and JPEG files."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from serving.inputs.decoding import ImageDecoder

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
PNG_START = b"\x89PNG\r\n\x1a\n"


def picture(height: int = 20, width: int = 30, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Slopes with some noise on them, uint8 [height, width, channels]."""
    rows, columns = np.mgrid[0:height, 0:width]
    slopes = [rows * 8 + columns, columns * 6, (rows + columns) * 4, 255 - rows * 5]
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, channels))
    return np.clip(np.stack(slopes[:channels], -1) + noise, 0, 255).astype(np.uint8)


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def encoded(pixels: np.ndarray, form: str, **options: object) -> bytes:
    """The bytes of a file of some format."""
    return saved(as_image(pixels), form, **options)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoder(pixels: np.ndarray, **options: bool) -> ImageDecoder:
    """What decodes images of the shape of some pixels."""
    height, width, channels = pixels.shape
    return ImageDecoder(shape=(height, width, channels), **options)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def chunk(kind: bytes, payload: bytes) -> bytes:
    """A chunk of a PNG."""
    return (
        struct.pack(">I", len(payload))
        + kind
        + payload
        + struct.pack(">I", zlib.crc32(kind + payload))
    )


def header(width: int, height: int, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    """The first chunk of a PNG."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def chunks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    """The kinds and payloads of the chunks of a PNG."""
    found, at = [], len(PNG_START)
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        found.append((kind, content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of some chunks, whose sums are right."""
    return PNG_START + b"".join(chunk(kind, payload) for kind, payload in chunks)


def segment(marker: int, payload: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def with_segment(content: bytes, marker: int, payload: bytes) -> bytes:
    """A JPEG with one more segment at its beginning, behind that which names the format."""
    at = 4 + struct.unpack_from(">H", content, 4)[0]
    return content[:at] + segment(marker, payload) + content[at:]
