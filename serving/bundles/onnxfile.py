"""Read the few things of an ONNX file that are asked before ONNX Runtime opens it.

A model is a protobuf message, of which only the outermost fields are looked at, so the package
`onnx` is not needed where models only run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from serving.errors import ModelError

# The first ONNX Runtime that takes an opset of the default domain; from
# https://onnxruntime.ai/docs/reference/compatibility.html
OPSET_RUNTIME = {15: 10, 16: 11, 17: 12, 18: 14, 19: 15, 20: 17, 21: 18, 22: 21, 23: 23, 24: 24}
# The same for the domain ai.onnx.ml, whose operators look words up and are trees.
ML_RUNTIME = {3: 10, 4: 17, 5: 21}
# The same for the version of the file format.
IR_RUNTIME = {8: 10, 9: 15, 10: 18, 11: 23, 12: 24}

ML_DOMAIN = "ai.onnx.ml"

# Field numbers of ModelProto and of the messages in it, and protobuf's wire types.
IR_VERSION, OPSET_IMPORT, METADATA = 1, 8, 14
DOMAIN, VERSION = 1, 2
KEY, VALUE = 1, 2
VARINT, LENGTH = 0, 2
FIXED_SIZES = {1: 8, 5: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an ONNX file says of itself."""

    ir_version: int
    opsets: Mapping[str, int]
    """Per operator domain; the default one is ""."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The model's `metadata_props`."""

    @property
    def opset(self) -> int:
        """The opset of the default domain, 0 for a model that does not use it."""
        return self.opsets.get("", 0)


def read_header(content: bytes) -> Header:
    """The header of an ONNX file's bytes; ModelError when they are not a protobuf message."""
    ir_version = 0
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    try:
        for number, value in _fields(content):
            if number == IR_VERSION and isinstance(value, int):
                ir_version = value
            elif number == OPSET_IMPORT and isinstance(value, bytes):
                domain, version = _opset(value)
                opsets[domain] = version
            elif number == METADATA and isinstance(value, bytes):
                entry = {key: part for key, part in _fields(value) if isinstance(part, bytes)}
                key, text = (entry.get(at, b"").decode(errors="replace") for at in (KEY, VALUE))
                metadata[key] = text
    except (LookupError, ValueError) as error:
        raise ModelError("the model is not an ONNX file, or it is cut short") from error
    return Header(ir_version=ir_version, opsets=opsets, metadata=metadata)


def minimum_runtime(header: Header) -> str:
    """The first ONNX Runtime that takes such a file, for instance "1.17"."""
    opset = _minor(OPSET_RUNTIME, header.opset, "opset")
    learning = _minor(ML_RUNTIME, header.opsets.get(ML_DOMAIN, 0), f"{ML_DOMAIN} opset")
    return f"1.{max(opset, learning, _minor(IR_RUNTIME, header.ir_version, 'IR version'))}"


def _minor(table: Mapping[int, int], version: int, what: str) -> int:
    if version > max(table):
        raise ModelError(f"{what} {version} is newer than {max(table)}, the newest ferry knows")
    return table.get(version, min(table.values()))


def _opset(message: bytes) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in _fields(message):
        if number == DOMAIN and isinstance(value, bytes):
            domain = value.decode()
        elif number == VERSION and isinstance(value, int):
            version = value
    # ai.onnx is the long name of the default domain.
    return ("" if domain == "ai.onnx" else domain), version


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one protobuf message: numbers as int, everything else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        size, at = _varint(message, at) if wire == LENGTH else (FIXED_SIZES[wire], at)
        if at + size > len(message):
            raise IndexError("a field is longer than its message")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
