"""Bundles of small models of every kind, for the parts that a target adds to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from small_onnx import FLOAT, model, node

from serving.bundles.bundle import FOREIGN, Bundle, Gate, ModelOrigin, open_bundle
from serving.bundles.writing import BundleContents, Part, write_bundle

UINT8, INT64, STRING = TensorProto.UINT8, TensorProto.INT64, TensorProto.STRING
SOURCE = ModelOrigin(
    dataset="mnist",
    weights_sha256="a5" * 32,
    git_revision="0123456789abcdef",
    ferry_version="0.2.0",
)
LABELS = ("cat", "dog", 'a "bird"')


def images(batch: int | str = "batch") -> onnx.ModelProto:
    """uint8 images 2x2 to logits and probabilities of three classes."""
    return model(
        [
            node("Cast", "images", "values", to=FLOAT),
            node("Flatten", "values", "row"),
            node("MatMul", "row weight", "logits"),
            node("Softmax", "logits", "probabilities"),
        ],
        {"images": (UINT8, [batch, 2, 2, 1])},
        {"logits": (FLOAT, [batch, 3]), "probabilities": (FLOAT, [batch, 3])},
        {"weight": np.random.default_rng(0).normal(0, 0.01, (4, 3)).astype(np.float32)},
    )


def texts() -> onnx.ModelProto:
    """One string a row to a number and to the string itself."""
    encode = node("LabelEncoder", "text", "label", domain="ai.onnx.ml", keys_strings=["a", "b"])
    encode.attribute.append(onnx.helper.make_attribute("values_int64s", [4, 5]))
    return model(
        [encode, node("Identity", "text", "echo")],
        {"text": (STRING, ["batch"])},
        {"label": (INT64, ["batch"]), "echo": (STRING, ["batch"])},
        domains={"ai.onnx.ml": 3},
    )


def sequences() -> onnx.ModelProto:
    """Sequences of any length, in half precision, to their mean, one number a row."""
    return model(
        [node("ReduceMean", "steps axes", "mean", keepdims=0)],
        {"steps": (TensorProto.FLOAT16, ["batch", "length", 2])},
        {"mean": (TensorProto.FLOAT16, ["batch"])},
        {"axes": np.array([1, 2])},
    )


ROWS: Mapping[str, Any] = {
    "images": np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1) * 15,
    "text": np.array(["a", "b", "zürich", ""]),
    "steps": np.arange(24, dtype=np.float16).reshape(4, 3, 2),
}
"""Golden rows, by the name of the input."""


def bundled(
    folder: Path, made: onnx.ModelProto, *parts: Part, **changes: Any
) -> tuple[Bundle, BundleContents]:
    """The bundle of a model, with what parts add to it."""
    (info, *_) = made.graph.input
    shared = {one.name: "1" for one in made.graph.input[1:]}
    given = {
        "name": "tiny",
        "variant": FOREIGN,
        "model": made.SerializeToString(),
        "labels": LABELS if info.name == "images" else (),
        "golden_input": ROWS[info.name],
        "golden_max_abs_diff": 1e-4,
        "metrics": {"accuracy": 0.9753},
        "parity": {
            "max_abs_diff": Gate(measured=1.25e-6, limit=1e-4),
            "flips": Gate(measured=0, limit=3),
        },
        "source": SOURCE,
        "shared": shared,
        "parts": parts,
    }
    contents = BundleContents(**(given | changes))
    write_bundle(folder, contents)
    return open_bundle(folder), contents
