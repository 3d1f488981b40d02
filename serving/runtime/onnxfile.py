"""Read the few things of an ONNX file that are asked before ONNX Runtime opens it, or nowhere else.

A model is a protobuf message, of which few fields are looked at, so the package `onnx` is not
needed where models only run.
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

HANDING_ON = ("Cast", "Identity", "Reshape", "Squeeze", "Flatten")
"""Operators between a classifier and the label that it gives."""

# Field numbers of ModelProto and of the messages in it, and protobuf's wire types.
IR_VERSION, GRAPH, OPSET_IMPORT, METADATA = 1, 7, 8, 14
DOMAIN, VERSION = 1, 2
KEY, VALUE = 1, 2
NODE = 1
INPUT, OUTPUT, OPERATOR, ATTRIBUTE = 1, 2, 4, 5
NAME, INTEGERS, STRINGS = 1, 8, 9
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
    return Header(ir_version=ir_version, opsets=opsets, metadata=metadata)


def class_labels(content: bytes, output: str) -> tuple[str, ...] | None:
    """The classes that the operator which makes an output of the graph holds, in its order.

    ZipMap and the classifiers of the domain ai.onnx.ml hold some; what only hands a label on is
    looked through. None where the operator is any other.
    """
    graph = next((value for number, value in _fields(content) if number == GRAPH), b"")
    made = {name: node for node in _messages(graph, NODE) for name in _texts(node, OUTPUT)}
    while (node := made.pop(output, None)) is not None:
        operator = "".join(_texts(node, OPERATOR))
        if operator not in HANDING_ON:
            return _class_labels(node)
        output = next(_texts(node, INPUT), "")
    return None


def _class_labels(node: bytes) -> tuple[str, ...] | None:
    for attribute in _messages(node, ATTRIBUTE):
        if next(_texts(attribute, NAME), "").startswith("classlabels_"):
            integers = (str(one) for one in _integers(attribute))
            return (*integers, *_texts(attribute, STRINGS)) or None
    return None


def _integers(attribute: bytes) -> Iterator[int]:
    """The 64-bit numbers of an attribute, one a field or packed into one."""
    for number, value in _fields(attribute):
        if number == INTEGERS:
            at, packed = 0, value if isinstance(value, bytes) else b""
            found = [] if isinstance(value, bytes) else [value]
            while at < len(packed):
                one, at = _varint(packed, at)
                found.append(one)
            yield from (one - 2**64 if one >= 2**63 else one for one in found)


def _messages(message: int | bytes, field: int) -> Iterator[bytes]:
    for number, value in _fields(message) if isinstance(message, bytes) else ():
        if number == field and isinstance(value, bytes):
            yield value


def _texts(message: bytes, field: int) -> Iterator[str]:
    return (value.decode(errors="replace") for value in _messages(message, field))


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
            domain = value.decode(errors="replace")
        elif number == VERSION and isinstance(value, int):
            version = value
    # ai.onnx is the long name of the default domain.
    return ("" if domain == "ai.onnx" else domain), version


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one protobuf message: numbers as int, everything else as bytes.

    Raises ModelError where it is none.
    """
    at = 0
    while at < len(message):
        try:
            number, value, at = _field(message, at)
        except (LookupError, ValueError) as error:
            raise ModelError("the model is not an ONNX file, or it is cut short") from error
        yield number, value


def _field(message: bytes, at: int) -> tuple[int, int | bytes, int]:
    """The field that begins at a place, and where the next one does."""
    key, at = _varint(message, at)
    number, wire = key >> 3, key & 7
    if wire == VARINT:
        return number, *_varint(message, at)
    size, at = _varint(message, at) if wire == LENGTH else (FIXED_SIZES[wire], at)
    if at + size > len(message):
        raise IndexError("a field is longer than its message")
    return number, message[at : at + size], at + size


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
