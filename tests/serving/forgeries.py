"""Bundles as a forger would write them: altered at will, with every sum computed anew, unsigned.

Each entry of `FORGERIES` alters a copy of a good bundle of `tiny_classifier`, or of the texts of
`tiny_kinds`, so that only its content can tell.
"""

import io
import json
import os
import socket
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_classifier import METADATA, classifier, images

Manifest = dict[str, Any]
Forgery = Callable[[Path], None]
NPY = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"
GIB = 2**30
SCORES = {"logits": (6, 3), "probabilities": (6, 3)}


def sealed(manifest: Manifest) -> bytes:
    """The text of a manifest with the digest that fits it, whatever stands there."""

    def text(record: Manifest) -> bytes:
        dumped = json.dumps(record, indent=2, ensure_ascii=False)
        return f"{dumped}\n".encode("utf-8", "surrogatepass")

    content = {name: value for name, value in manifest.items() if name != "digest"}
    return text({**content, "digest": sha256(text(content)).hexdigest()})


def reseal(folder: Path, change: Callable[[Manifest], object] = lambda _: None) -> None:
    """Write the sums of what lies there, and what `change` makes of the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    for name in manifest["files"]:
        if (folder / name).is_file() and (folder / name).stat().st_size < GIB:
            content = (folder / name).read_bytes()
            sums = {"size": len(content), "sha256": sha256(content).hexdigest()}
            manifest["files"][name] = sums
    change(manifest)
    path.write_bytes(sealed(manifest))


def said(change: Callable[[Manifest], object]) -> Forgery:
    return lambda folder: reseal(folder, change)


# golden.npz


def npy(array: np.ndarray, descr: str = "", shape: str = "") -> bytes:
    """An array as `np.save` writes it, or with a header that tells of another one."""
    text = NPY.format(descr or array.dtype.str, shape or array.shape).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + array.tobytes()


def arrays(**others: np.ndarray | bytes) -> dict[str, bytes]:
    """The members of the tiny classifier's golden rows, some of them others."""
    given = {"input": images(6), **{key: np.zeros(shape, "f4") for key, shape in SCORES.items()}}
    given |= others
    return {f"{n}.npy": a if isinstance(a, bytes) else npy(a) for n, a in given.items()}


def archive(
    members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, twice: bool = False
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is there twice
        for name, content in (*members.items(), *(list(members.items())[:1] if twice else ())):
            out.writestr(name, content)
    return file.getvalue()


def bomb() -> bytes:
    """4 GB of zeros in 4 MB, with a header that is true."""
    rows = (4 * GIB - 4096) // 20
    head = npy(np.zeros(0, "u1"), shape=f"({rows}, 4, 5, 1)")
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    first, part = (
        packed.compress(one) + packed.flush(zlib.Z_FULL_FLUSH) for one in (head, bytes(2**24))
    )
    # Each part stands for itself after a full flush.
    return declared("input.npy", first + part * 256, len(head) + 20 * rows, crc=0)


def lying_bomb() -> bytes:
    """A member that unfolds to 64 MB, and says that it is as small as it must be."""
    whole = arrays()["input.npy"]
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = packed.compress(whole + bytes(2**26)) + packed.flush()
    return declared("input.npy", content, len(whole), zlib.crc32(whole))


def declared(name: str, deflated: bytes, size: int, crc: int) -> bytes:
    """The golden rows with a member of those bytes, that says so of itself."""
    stored = archive({**arrays(), name: deflated}, zipfile.ZIP_STORED)
    said = struct.pack("<III", zlib.crc32(deflated), len(deflated), len(deflated))
    assert stored.count(said) == 2
    return _method(stored.replace(said, struct.pack("<III", crc, len(deflated), size)), name, 8)


def _method(content: bytes, name: str, method: int, flags: int = 0) -> bytes:
    """An archive that says of a member that it is compressed, or encrypted, in some way."""
    changed = bytearray(content)
    for start, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = -1
        while (place := content.find(start, place + 1)) >= 0:
            header = 30 if start[2] == 3 else 46
            if content[place + header :].startswith(name.encode()):
                struct.pack_into("<HH", changed, place + at, flags, method)
    return bytes(changed)


def golden(content: Callable[[], bytes], rows: int | None = None, **more: Any) -> Forgery:
    def forge(folder: Path) -> None:
        (folder / "golden.npz").write_bytes(content())
        reseal(folder, lambda one: one["golden"].update(more | ({"rows": rows} if rows else {})))

    return forge


def held(**others: np.ndarray | bytes) -> Forgery:
    return golden(lambda: archive(arrays(**others)))


def pickled(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


class Trap:
    """What would leave a trace if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("executed", "w")


GOLDEN: dict[str, Forgery] = {
    "an .npy": golden(lambda: npy(images(6))),
    "no archive": golden(lambda: b"PK nothing"),
    "nothing": golden(bytes),
    "an empty archive": golden(lambda: archive({})),
    "4 GB of zeros": golden(bomb, rows=(4 * GIB - 4096) // 20),
    "a member that unfolds to more than it says": golden(lying_bomb),
    "rows that the manifest has not": golden(lambda: archive(arrays()), rows=2**40),
    "no rows": golden(
        lambda: archive(
            arrays(
                input=images(0), logits=np.zeros((0, 3), "f4"), probabilities=np.zeros((0, 3), "f4")
            )
        ),
        rows=0,
    ),
    "fewer rows than none": golden(lambda: archive(arrays()), rows=-6),
    "a header of 2^40 rows": held(input=npy(images(6), shape=f"({2**40}, 4, 5, 1)")),
    "a header of 2^40 rows, and so the manifest": golden(
        lambda: archive(arrays(input=npy(images(6), shape=f"({2**40}, 4, 5, 1)"))), rows=2**40
    ),
    "a header of nothing": held(input=b"\x93NUMPY\1\0\xff\xff"),
    "a header that is code": held(input=npy(images(6), shape="(__import__('os'),)")),
    "a header nested without end": held(input=npy(images(6), shape="(" * 9000 + ")" * 9000)),
    "a header of version 3": held(input=npy(images(6)).replace(b"\1\0", b"\3\0", 1)),
    "a scalar input": held(input=np.uint8(7)),
    "scalar scores": held(logits=np.float32(0), probabilities=np.float32(0)),
    "scores of another shape": held(probabilities=np.zeros((6, 4), "f4")),
    "scores that are texts": held(probabilities=np.full((6, 3), "a")),
    "scores that are not numbers": held(probabilities=np.full((6, 3), np.nan, "f4")),
    "infinite scores": held(probabilities=np.full((6, 3), np.inf, "f4")),
    "complex scores": held(probabilities=np.zeros((6, 3), "c8")),
    "scores of another order of bytes": held(probabilities=np.zeros((6, 3), ">f4")),
    "dates": held(input=np.zeros((6, 4, 5, 1), "M8[s]")),
    "a structure": held(input=np.zeros((6, 4, 5, 1), [("a", "u1")])),
    "another dtype": held(input=images(6).astype("f4")),
    "another shape": held(input=images(6, channels=3)),
    "pickled objects": held(input=pickled(np.array([Trap()] * 6, dtype=object))),
    "objects that are bytes": held(input=npy(images(6), descr="|O8")),
    "texts of a gigabyte": held(input=npy(images(6), descr="<U250000000")),
    "texts of no length": held(input=npy(images(6), descr="<U0", shape=f"({2**40},)")),
    "an encrypted member": golden(lambda: _method(archive(arrays()), "input.npy", 8, flags=1)),
    "an unknown compression": golden(lambda: _method(archive(arrays()), "input.npy", 97)),
    "LZMA": golden(lambda: archive(arrays(), zipfile.ZIP_LZMA)),
    "BZIP2": golden(lambda: archive(arrays(), zipfile.ZIP_BZIP2)),
    "a member twice": golden(lambda: archive(arrays(), twice=True)),
    "a member above": golden(lambda: archive({**arrays(), "../../executed": b""})),
    "a member too few": golden(lambda: archive({"input.npy": npy(images(6))})),
    "thirty thousand members": golden(
        lambda: archive({f"{n}.npy": b"" for n in range(30_000)}, zipfile.ZIP_STORED)
    ),
    "a directory that is cut": golden(lambda: archive(arrays())[:-40]),
    "a directory that lies elsewhere": golden(
        lambda: archive(arrays())[:-6] + struct.pack("<IH", 2**31, 0)
    ),
    "members that are cut": golden(lambda: archive(arrays(input=npy(images(6))[:-8]))),
    "bytes that are no deflate": golden(
        lambda: _method(archive(arrays(), zipfile.ZIP_STORED), "input.npy", 8)
    ),
    **{
        f"a limit of {str(limit)[:9]}": said(
            lambda one, limit=limit: one["golden"].update(max_abs_diff=limit)
        )
        for limit in (1e30, 100, float("inf"), float("nan"), 10**400, "1e-4", True)
    },
}


# manifest.json


def text(content: Callable[[bytes], bytes]) -> Forgery:
    def forge(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_bytes(content(path.read_bytes()))

    return forge


def entry(name: str, size: int = 1) -> Forgery:
    return said(lambda one: one["files"].update({name: {"size": size, "sha256": "0" * 64}}))


def labels(count: int) -> Forgery:
    def forge(folder: Path) -> None:
        names = [str(number) for number in range(count)]
        (folder / "labels.txt").write_text("\n".join(names) + "\n")
        reseal(folder, lambda one: one.update(labels=names))

    return forge


def sparse(name: str, size: int) -> Forgery:
    """A file of so many zeros that take no room on the disk."""

    def forge(folder: Path) -> None:
        os.truncate(folder / name, size)
        entry(name, size)(folder)

    return forge


def deep(count: int) -> Any:
    nested: Any = []
    for _ in range(count):
        nested = [nested]
    return nested


MANIFEST: dict[str, Forgery] = {
    "a lone surrogate in its name": said(lambda one: one.update(name="\ud800")),
    "a lone surrogate as an escape": text(lambda one: one.replace(b'"tiny"', b'"\\ud800"')),
    "a lone surrogate in a label": said(lambda one: one["labels"].__setitem__(0, "\udfff")),
    "a lone surrogate in an input": said(lambda one: one["inputs"][0].update(name="\udc80")),
    "lists nested 100,000 times": text(lambda _: b"[" * 100_000 + b"]" * 100_000),
    "lists nested 300 times": said(lambda one: one.update(labels=deep(300))),
    "lists nested 700 times": said(lambda one: one.update(metrics={"accuracy": deep(250)})),
    "NaN": said(lambda one: one["metrics"].update(accuracy=float("nan"))),
    "1e999": text(lambda one: one.replace(b"97.5", b"1e999")),
    "a whole number of 5,000 digits": text(lambda one: one.replace(b"97.5", b"9" * 5000)),
    "a whole number of 400 digits": said(lambda one: one["metrics"].update(accuracy=10**400)),
    "an opset of 300 digits": said(lambda one: one.update(opset=10**300)),
    "a key twice": text(lambda one: one.replace(b"{\n", b'{\n  "name": "other",\n', 1)),
    "UTF-16": text(lambda one: one.decode().encode("utf-16")),
    "bytes that are not UTF-8": text(lambda one: one.replace(b"tiny", b"\xff\xfe\xfd\xfc")),
    "null": text(lambda _: b"null\n"),
    "nothing but a digest": text(lambda _: sealed({"schema_version": 4, "files": {}})),
    "a schema of another time": said(lambda one: one.update(schema_version=10**25)),
    "no golden rows": said(lambda one: one.pop("golden")),
    "no inputs": said(lambda one: one.update(inputs=[])),
    "an input that is a text": said(lambda one: one.update(inputs=["images"])),
    "an input without axes": said(lambda one: one["inputs"][0].update(shape=[])),
    "a batch axis of 0": said(lambda one: one["inputs"][0]["shape"].__setitem__(0, 0)),
    "a batch axis below 0": said(lambda one: one["inputs"][0]["shape"].__setitem__(0, -1)),
    "a batch axis of 2^40": said(lambda one: one["inputs"][0]["shape"].__setitem__(0, 2**40)),
    "an input of another dtype": said(lambda one: one["inputs"][0].update(dtype="V1000000000")),
    "outputs that are not there": said(lambda one: one.update(outputs=[])),
    "an output of another name": said(lambda one: one["outputs"][0].update(name="file")),
    "an output that is a number": said(lambda one: one.update(outputs=3)),
    "classes of an output that is not there": said(
        lambda one: one["classes"]["scores"].update(name="elsewhere")
    ),
    "classes of a label that is a score": said(
        lambda one: one["classes"].update(label=one["outputs"][0], values=["a", "b", "c"])
    ),
    "classes without a label": said(lambda one: one["classes"].pop("label")),
    "a shared input without an axis": said(
        lambda one: one.update(
            shared=[{"info": {"name": "sr", "dtype": "int64", "shape": [1]}, "value": "1"}]
        )
    ),
    "no classes": said(lambda one: one.update(classes=None)),
    "fewer labels than scores": said(lambda one: one.update(labels=["a"])),
    "labels that are numbers": said(lambda one: one.update(labels=[1, 2, 3])),
    **{f"{count:,} labels": labels(count) for count in (100_000, 1_000_000)},
    "a shared input of 2^40 numbers": said(
        lambda one: one.update(
            shared=[
                {
                    "info": {"name": "sr", "dtype": "int64", "shape": [2**40]},
                    "value": "1",
                    "rows_axis": None,
                }
            ]
        )
    ),
    "a shared input nested without end": said(
        lambda one: one.update(
            shared=[
                {
                    "info": {"name": "sr", "dtype": "int64", "shape": [1]},
                    "value": "[" * 100_000,
                    "rows_axis": 7,
                }
            ]
        )
    ),
    "a runtime that is no version": said(lambda one: one.update(minimum_runtime="1.x")),
    "a runtime of 5,000 digits": said(lambda one: one.update(minimum_runtime="1." + "9" * 5000)),
    "needs that are a number": said(lambda one: one.update(needs=3)),
    "files that are a list": said(lambda one: one.update(files=[])),
    "a file above": entry("../tiny"),
    "a file of the system": entry("/etc/passwd"),
    "a file of 5,000 folders": entry("a/" * 5000 + "a"),
    "a file without a name": entry(""),
    "a file of a name of two lines": entry("a\nb"),
    "a file of a size below 0": entry("labels.txt", -1),
    "a file of 2^70 bytes": entry("labels.txt", 2**70),
    "a file of 5 GB": sparse("labels.txt", 5 * GIB),
    "a model of 5 GB": sparse("model.onnx", 5 * GIB),
    "a sum that is none": said(lambda one: one["files"]["labels.txt"].update(sha256="x")),
    "9 MB of blanks": text(lambda one: one + b" " * 9 * 2**20),
    "a gate that is not met": said(
        lambda one: one["parity"].update(flips={"measured": 9, "limit": 0})
    ),
    "a gate that is no number": said(
        lambda one: one["parity"].update(flips={"measured": 9, "limit": "x"})
    ),
    "a profile that cannot be": said(lambda one: one.update(profiles=[{"goal": "latency"}])),
}


# What lies there


def instead(name: str, make: Callable[[Path], object]) -> Forgery:
    def forge(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return forge


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def signed(content: bytes) -> Forgery:
    return lambda folder: (folder / "model.sig").write_bytes(content)  # type: ignore[return-value]


ENTRIES: dict[str, Forgery] = {
    **{
        f"a pipe as {name}": instead(name, os.mkfifo)
        for name in ("labels.txt", "manifest.json", "model.onnx", "golden.npz")
    },
    "a socket as labels.txt": instead("labels.txt", listening),
    "a link as manifest.json": instead("manifest.json", lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": instead("manifest.json", lambda path: path.symlink_to(path)),
    "a link as model.onnx": instead("model.onnx", lambda path: path.symlink_to("/etc/passwd")),
    "a folder as golden.npz": instead("golden.npz", Path.mkdir),
    "a folder as manifest.json": instead("manifest.json", Path.mkdir),
    "a pipe as model.sig": lambda folder: os.mkfifo(folder / "model.sig"),
    "a file whose name is no UTF-8": lambda folder: os.close(
        os.open(os.fsencode(folder) + b"/\xff\x1b]0;", os.O_CREAT)
    ),
}


# model.onnx


def model(
    content: Callable[[], bytes], change: Callable[[Manifest], object] = lambda _: None
) -> Forgery:
    def forge(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(content())
        reseal(folder, change)

    return forge


def other(change: Callable[[onnx.ModelProto], object]) -> Callable[[], bytes]:
    def content() -> bytes:
        made = onnx.load_model_from_string(classifier())
        change(made)
        return made.SerializeToString()

    return content


def replaced(old: bytes, new: bytes) -> Callable[[], bytes]:
    assert len(old) == len(new)
    return lambda: classifier().replace(old, new)


def external(place: str) -> Callable[[onnx.ModelProto], None]:
    def change(made: onnx.ModelProto) -> None:
        one = made.graph.initializer[0]
        one.ClearField("raw_data")
        one.data_location = TensorProto.EXTERNAL
        for key, value in (("location", place), ("length", "240")):
            one.external_data.add(key=key, value=value)

    return change


def labelled(labels: str) -> Callable[[], bytes]:
    return lambda: classifier(metadata=METADATA | {"ferry.labels": labels})


def endless() -> bytes:
    """The classifier behind a loop that ends with the world."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["trips", "always", "real"], ["passed"], body=body)
    return passing([loop], trips=np.int64(2**62), always=np.bool_(True))


def trapping() -> bytes:
    """The classifier behind a division that has no answer, over which the processor traps."""
    nodes = [
        helper.make_node("Cast", ["real"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Mul", ["whole", "none"], ["nothing"]),
        helper.make_node("Add", ["nothing", "less"], ["below"]),
        helper.make_node("Div", ["least", "below"], ["divided"]),
        helper.make_node("Cast", ["divided"], ["passed"], to=TensorProto.FLOAT),
    ]
    constants = {"none": 0, "less": -1, "least": -(2**31)}
    return passing(nodes, **{name: np.int32(value) for name, value in constants.items()})


def passing(nodes: list[onnx.NodeProto], **constants: np.generic) -> bytes:
    """The classifier with some nodes from its pixels, `real`, to `passed`, which it takes then."""
    made = onnx.load_model_from_string(classifier())
    first, *others = made.graph.node
    others[0].input[0] = "passed"
    others = [
        onnx.NodeProto.FromString(one.SerializeToString()) for one in (first, *nodes, *others)
    ]
    del made.graph.node[:]
    made.graph.node.extend(others)
    made.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name) for name, value in constants.items()
    )
    return made.SerializeToString()


def opsets(made: onnx.ModelProto, version: int, domain: str = "") -> None:
    made.opset_import[0].version = version
    made.opset_import[0].domain = domain


MODEL: dict[str, Forgery] = {
    "no model": model(lambda: b"nothing"),
    "an empty model": model(bytes),
    "a model that is cut": model(lambda: classifier()[:-100]),
    "another model": model(lambda: classifier(channels=3)),
    "a model without inputs": model(other(lambda one: one.graph.ClearField("input"))),
    "a model without outputs": model(other(lambda one: one.graph.ClearField("output"))),
    "a model without metadata": model(lambda: classifier(metadata={})),
    "metadata that are not UTF-8": model(replaced(b"97.5", b"\xff\xfe\xfd\xfc")),
    "a key that is not UTF-8": model(replaced(b"ferry.accuracy", b"ferry.accurac\xff")),
    "an input that is not UTF-8": model(replaced(b"images", b"imag\xff\xfe")),
    "an output that is not UTF-8": model(replaced(b"logits", b"logi\xff\xfe")),
    "labels nested 100,000 times": model(labelled("[" * 100_000)),
    "labels that are a number": model(labelled("3")),
    "labels with half a character": model(labelled('["\\ud800", "b", "c"]')),
    "an opset that is not known": model(other(lambda one: opsets(one, 99))),
    "an opset of 2^62": model(other(lambda one: opsets(one, 2**62))),
    "an opset below 0": model(other(lambda one: opsets(one, -1))),
    "a domain that is not known": model(other(lambda one: opsets(one, 1, "com.example"))),
    "no opset": model(other(lambda one: one.ClearField("opset_import"))),
    "a format of 2^40": model(other(lambda one: setattr(one, "ir_version", 2**40))),
    "weights in another file": model(other(external("labels.txt"))),
    "weights above": model(other(external("../../../../../etc/passwd"))),
    "weights of the system": model(other(external("/etc/passwd"))),
    "an endless loop": model(endless),
    "a division that traps": model(trapping),
}

SIGNATURE: dict[str, Forgery] = {
    "a signature of nothing": signed(b""),
    "a signature nested 100,000 times": signed(b"[" * 100_000),
    "a signature of a million digits": signed(b"9" * 1_000_000),
    "a signature of numbers": signed(b'{"dsseEnvelope": 3}'),
    "a signature of 20 MB": signed(b" " * 20 * 2**20),
}

SLOW = {
    *("4 GB of zeros", "a member that unfolds to more than it says", "thirty thousand members"),
    *(
        "100,000 labels",
        "1,000,000 labels",
        "a file of 5 GB",
        "a model of 5 GB",
        "an endless loop",
        "a division that traps",
    ),
}
"""Those that take seconds to make, or to be stopped from outside."""
UNSEEN_BY_THE_RUNNER = {
    *("lists nested 700 times", "a batch axis of 2^40", "a gate that is not met"),
    *("a gate that is no number", "a profile that cannot be", "a model without metadata"),
    *("metadata that are not UTF-8", "a key that is not UTF-8", "labels nested 100,000 times"),
    *("labels that are a number", "labels with half a character", "a domain that is not known"),
}
"""What a runner does not look at, or what changes nothing in what it answers."""
FORGERIES = {**GOLDEN, **MANIFEST, **ENTRIES, **MODEL, **SIGNATURE}
