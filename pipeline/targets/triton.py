"""The model repository of a bundle, which Triton Inference Server serves as the bundle lies there.

    tritonserver --model-repository=bundles/mnist-cnn.triton

`NAME/config.pbtxt` says what goes in and out, in the terms of
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto; the server
gathers rows of several callers to batches, and answers golden rows before it says that it is ready.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import TargetError
from serving.bundles.bundle import GOLDEN, LABELS, MODEL, PLAIN_NAME, BundleManifest
from serving.bundles.golden import INPUT, load_golden
from serving.runtime.session import open_session
from serving.runtime.tensors import Array, TensorInfo

MOST_ROWS = 64
"""Of a batch."""
PREFERRED = (16, 32, 64)
"""Batch sizes that are sent off at once; others wait for more rows."""
QUEUE_MICROSECONDS = 100
"""The longest that a row waits for others."""
WARMUP = "golden.raw"
"""In the folder `warmup`, where the server looks for it."""
TYPES = {
    "bool": "TYPE_BOOL",
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)},
    "object": "TYPE_STRING",
}
"""What Triton calls the types that numpy has."""

Value = str | int | Sequence[int] | Mapping[str, Any] | Sequence[Mapping[str, Any]]


class _Word(str):
    """A word of the schema, which is written without quotes."""

    __slots__ = ()


def triton(manifest: BundleManifest, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The part of a bundle for Triton: configuration, model, labels and a row to warm up with.

    Raises TargetError, naming it, for what the server does not take: a name that is no folder's, an
    input that is the same for all rows, and an output that is no array.
    """
    name = manifest.name
    _refuse(manifest, files[MODEL])
    golden = _golden_input(files[GOLDEN], manifest)
    config = _config(manifest, golden)
    made = {
        "config.pbtxt": "\n".join([f"# {MODEL} of this bundle, {manifest.variant}", *_text(config)])
        + "\n",
    }
    if manifest.labels:
        made[LABELS] = files[LABELS].decode()
    contents = {file: text.encode() for file, text in made.items()}
    contents |= {f"1/{MODEL}": files[MODEL], f"warmup/{WARMUP}": _raw(golden)}
    return {f"{name}/{file}": content for file, content in contents.items()}


def _refuse(manifest: BundleManifest, model: bytes) -> None:
    name = manifest.name
    if "/" in name or not PLAIN_NAME.fullmatch(name):
        raise TargetError(
            f"Triton: {name!r} becomes the name of a folder, of letters, digits and _ . - alone; "
            f"give the file another name"
        )
    if manifest.shared:
        shared = ", ".join(one.info.name for one in manifest.shared)
        raise TargetError(
            f"Triton: {name} has inputs that are the same for all rows ({shared}), and the server "
            f"has no such thing; make them constants of the graph"
        )
    session = open_session(model, threads=1)
    for info in (*session.inputs, *session.outputs):
        if info.name in session.maps or info.dtype not in TYPES:
            kind = "a list of maps" if info.name in session.maps else info.dtype
            raise TargetError(
                f"Triton: {info.name} of {name} is {kind}, which the server does not take; it "
                f"takes arrays of {', '.join(TYPES).replace('object', 'strings')}"
            )
        if not info.shape:
            raise TargetError(
                f"Triton: {info.name} of {name} has no declared shape, which the server asks for; "
                f"`onnx.shape_inference.infer_shapes` may find it"
            )


def batches(manifest: BundleManifest) -> bool:
    """Whether the server may put rows of several callers into one batch."""
    return not any(
        info.shape and isinstance(info.shape[0], int)
        for info in (*manifest.inputs, *manifest.outputs)
    )


def _config(manifest: BundleManifest, golden: Array) -> dict[str, Value]:
    batching = batches(manifest)
    scores = manifest.classes.scores
    outputs = [
        _tensor(info, batching=batching)
        | ({"label_filename": LABELS} if manifest.labels and info == scores else {})
        for info in manifest.outputs
    ]
    config: dict[str, Value] = {
        "name": manifest.name,
        "backend": "onnxruntime",
        "max_batch_size": MOST_ROWS if batching else 0,
        "input": [_tensor(info, batching=batching) for info in manifest.inputs],
        "output": outputs,
        "version_policy": {"latest": {"num_versions": 1}},
        # It was proven on the CPU; KIND_GPU asks for CUDA.
        "instance_group": [{"count": 1, "kind": _Word("KIND_CPU")}],
        "model_warmup": [
            _warmup(manifest, golden, rows) for rows in ((1, MOST_ROWS) if batching else (1,))
        ],
        "parameters": [
            {"key": key, "value": {"string_value": value}}
            for key, value in (
                ("variant", manifest.variant),
                ("model_sha256", manifest.files[MODEL].sha256),
                ("weights_sha256", manifest.source.weights_sha256),
            )
        ],
    }
    if batching:
        config["dynamic_batching"] = {
            "preferred_batch_size": list(PREFERRED),
            "max_queue_delay_microseconds": QUEUE_MICROSECONDS,
        }
    return config


def _tensor(info: TensorInfo, *, batching: bool) -> dict[str, Value]:
    """An input or output: with batches the axis of the rows goes without saying.

    What is one number or text a row then has no axes left, of which the server wants one; the
    reshape takes it away again before the model sees it.
    """
    axes = info.shape[1:] if batching else info.shape
    dims = [axis if isinstance(axis, int) else -1 for axis in axes]
    described: dict[str, Value] = {"name": info.name, "data_type": _Word(TYPES[info.dtype])}
    return described | ({"dims": dims} if dims else {"dims": [1], "reshape": {"shape": []}})


def _warmup(manifest: BundleManifest, golden: Array, rows: int) -> dict[str, Value]:
    """A request of `rows` times the golden row, which the server asks itself."""
    info = manifest.inputs[0]
    shape = golden.shape[1:] if batches(manifest) else golden.shape
    return {
        "name": f"{rows} at once",
        "batch_size": rows,
        "inputs": {
            "key": info.name,
            "value": {
                "data_type": _Word(TYPES[info.dtype]),
                "dims": list(shape) or [1],
                "input_data_file": WARMUP,
            },
        },
    }


def _golden_input(content: bytes, manifest: BundleManifest) -> Array:
    """The first golden row; as many as the model takes where it takes no others."""
    rows = load_golden(content)[INPUT]
    return rows[:1] if batches(manifest) else rows


def _raw(rows: Array) -> bytes:
    """Rows as the server reads them: little-endian, and before each text its length in bytes."""
    if rows.dtype.kind != "U":
        return rows.astype(rows.dtype.newbyteorder("<")).tobytes()
    texts = [str(text).encode() for text in rows.flat]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _text(message: Mapping[str, Value], indent: str = "") -> Iterator[str]:
    """A message in protobuf's text format, a field a line."""
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield from _block(name, value, indent)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for one in value:
                yield from _block(name, one, indent)
        else:
            word = value if isinstance(value, _Word) else json.dumps(value, ensure_ascii=False)
            yield f"{indent}{name}: {word}"


def _block(name: str, message: Mapping[str, Value], indent: str) -> Iterator[str]:
    yield f"{indent}{name} {{"
    yield from _text(message, f"{indent}  ")
    yield f"{indent}}}"
