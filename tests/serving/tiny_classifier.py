"""A tiny classifier as ferry exports it, and what a bundle of it is made of."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from serving.bundles.bundle import MANIFEST, Gate, ModelOrigin, read_manifest, sealed
from serving.bundles.profiles import Profile
from serving.bundles.writing import BundleContents
from serving.files import dump_json
from serving.machine.environment import this_machine
from serving.runtime.settings import SessionSettings

# Unlike one another, so that a mix-up of the axes shows.
HEIGHT, WIDTH = 4, 5
LABELS = ("cat", 'dog, or "wolf"', "émeu")
METADATA = {
    "ferry.version": "0.1.0",
    "ferry.experiment": "tiny",
    "ferry.dataset": "toy",
    "ferry.labels": json.dumps(LABELS),
    "ferry.accuracy": "97.5",
    "ferry.git_revision": "0" * 40,
    "ferry.weights_sha256": "1" * 64,
    "ferry.variant": "fp32",
}
SOURCE = ModelOrigin(
    dataset="toy", weights_sha256="1" * 64, git_revision="0" * 40, ferry_version="0.1.0"
)


def classifier(
    channels: int = 1,
    *,
    batch: int | str = "batch",
    outputs: tuple[str, ...] = ("logits", "probabilities"),
    metadata: dict[str, str] | None = None,
    opset: int = 18,
    ir_version: int = 8,
) -> bytes:
    """uint8 images [batch, 4, 5, channels] to logits and probabilities [batch, 3]."""
    weight = np.random.default_rng(7).normal(size=(HEIGHT * WIDTH * channels, len(LABELS)))
    nodes = [
        helper.make_node("Cast", ["images"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], [outputs[0]]),
    ]
    if len(outputs) > 1:
        nodes.append(helper.make_node("Softmax", [outputs[0]], [outputs[1]], axis=-1))
    shape = [batch, HEIGHT, WIDTH, channels]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, len(LABELS)])
            for name in outputs
        ],
        [
            numpy_helper.from_array(weight.astype(np.float32), "weight"),
            numpy_helper.from_array(np.float32(1 / 255), "scale"),
        ],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    helper.set_model_props(model, METADATA if metadata is None else metadata)
    return model.SerializeToString()


def images(rows: int, channels: int = 1) -> np.ndarray:
    """Random rows that the classifier takes."""
    shape = (rows, HEIGHT, WIDTH, channels)
    return np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)


def expected_scores(rows: np.ndarray) -> np.ndarray:
    """The classifier's probabilities, computed by numpy alone."""
    channels = rows.shape[-1]
    weight = np.random.default_rng(7).normal(size=(HEIGHT * WIDTH * channels, len(LABELS)))
    logits = (rows.reshape(len(rows), -1) / 255) @ weight
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponent / exponent.sum(axis=1, keepdims=True)


def contents(**changes: object) -> BundleContents:
    """What a good bundle is made of, with some changes."""
    given = {
        "name": "tiny",
        "variant": "fp32",
        "model": classifier(),
        "labels": LABELS,
        "golden_input": images(6),
        "golden_max_abs_diff": 1e-4,
        "metrics": {"accuracy": 97.5, "rows": 100},
        "parity": {
            "max_abs_diff": Gate(measured=1e-6, limit=1e-4),
            "flips": Gate(measured=0, limit=0),
        },
        "source": SOURCE,
    }
    return BundleContents(**(given | changes))


def profile(**changes: object) -> Profile:
    """A profile for this machine, with some changes; it may promise cores that are not there."""
    machine = this_machine("cpu")
    given = {
        "goal": "throughput",
        "provider": "cpu",
        "machine": machine,
        "onnxruntime": "1.31.1",
        "settings": SessionSettings(threads=1, parallel=2),
        "batch_size": 16,
        "p50_ms": 1.5,
        "rows_per_second": 20_000.0,
        "over_defaults": 1.25,
    }
    return Profile(**(given | changes))


def forge(bundle: Path, **changes: object) -> None:
    """Write a manifest that says something else, with the digest that fits it."""
    manifest = dataclasses.replace(read_manifest(bundle), **changes)
    (bundle / MANIFEST).write_text(dump_json(sealed(manifest)), encoding="utf-8")
