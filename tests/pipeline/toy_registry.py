"""A data set of a few numbers and bundles of linear models of it, to register and promote."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import sample_metrics
from project import REPOSITORY
from small_onnx import FLOAT, model, node

from pipeline.config import layout
from pipeline.records.ready import (
    SPLITS,
    DatasetManifest,
    digest,
    open_manifest,
    write_array,
    write_manifest,
)
from serving.bundles.bundle import FOREIGN, BundleManifest, Gate, ModelOrigin, read_manifest, sealed
from serving.bundles.finding import MANIFEST
from serving.bundles.writing import BundleContents, write_bundle
from serving.files import sha256_of_bytes, write_json
from serving.runtime.tensors import Array

ROWS, FEATURES = 400, 4
LABELS = ("low", "middle", "high")
WEIGHT = np.random.default_rng(5).normal(size=(FEATURES, len(LABELS))).astype(np.float32)
BRIEF = "registry: {significance: 0.05, max_slowdown: 1.5, batch_sizes: [1], seconds: 0.05}"
"""In place of what stands in params.yaml."""


def make_data(root: Path) -> None:
    """data/ready/toy: rows that `WEIGHT` classifies, of which a tenth is labelled otherwise."""
    folder, rng = root / layout.ready("toy"), np.random.default_rng(1)
    arrays = {}
    for split in SPLITS:
        inputs = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
        labels = (inputs @ WEIGHT).argmax(axis=1).astype(np.int64)
        labels[::10] = (labels[::10] + 1) % len(LABELS)
        for name, array in ((f"{split}_inputs.npy", inputs), (f"{split}_labels.npy", labels)):
            arrays[name] = write_array(folder / name, array)
    manifest = DatasetManifest(
        dataset="toy",
        kind="table",
        labels=LABELS,
        class_counts=dict.fromkeys(SPLITS, (ROWS, 0, 0)),
        mean=(0.0,) * FEATURES,
        std=(1.0,) * FEATURES,
        vocabulary=(),
        seed=1,
        arrays=arrays,
    )
    write_manifest(folder, manifest)


def classifier(weight: Array, work: int = 0) -> bytes:
    """A linear classifier, which may multiply large matrices besides, for nothing."""
    nodes = [node("MatMul", "x weight", "logits"), node("Softmax", "logits", "probabilities")]
    weights = {"weight": weight.astype(np.float32)}
    if work:
        weights["large"] = np.full((work, work), 1 / work, np.float32)
        weights["wide"] = np.zeros((FEATURES, work), np.float32)
        weights["narrow"] = np.zeros((work, len(LABELS)), np.float32)
        nodes = [
            node("MatMul", "x wide", "w0"),
            *(node("MatMul", f"w{at} large", f"w{at + 1}") for at in range(4)),
            node("MatMul", "w4 narrow", "nothing"),
            node("MatMul", "x weight", "own"),
            node("Add", "own nothing", "logits"),
            nodes[1],
        ]
    shape = ["batch", len(LABELS)]
    made = model(
        nodes,
        {"x": (FLOAT, ["batch", FEATURES])},
        {"logits": (FLOAT, shape), "probabilities": (FLOAT, shape)},
        weights,
    )
    return made.SerializeToString()


def make_bundle(root: Path, name: str, weight: Array = WEIGHT, work: int = 0) -> Path:
    """bundles/NAME of such a classifier, with the report of a training on the toy data."""
    content = classifier(weight, work)
    folder = root / layout.bundle(name)
    source = ModelOrigin(
        dataset="toy",
        weights_sha256=sha256_of_bytes(weight.tobytes() + name.encode()),
        git_revision="0" * 40,
        ferry_version="0.1.0",
    )
    write_bundle(
        folder,
        BundleContents(
            name=name,
            variant=FOREIGN,
            model=content,
            labels=LABELS,
            golden_input=np.zeros((2, FEATURES), np.float32),
            golden_max_abs_diff=1e-4,
            metrics={"accuracy": 90.0},
            parity={"flips": Gate(measured=0, limit=0)},
            source=source,
        ),
    )
    report = sample_metrics.training(name) | {
        "weights_sha256": source.weights_sha256,
        "data_sha256": digest(open_manifest(root / layout.ready("toy"))),
    }
    write_json(root / layout.details(name, "train"), report)
    return folder


def forge(folder: Path, **changes: object) -> BundleManifest:
    """Write a manifest that says something else, with the digest that fits it."""
    manifest = sealed(replace(read_manifest(folder), **changes))  # type: ignore[arg-type]
    write_json(folder / MANIFEST, manifest)
    return manifest


def noisy(part: float) -> Array:
    """The weight of a classifier that is the worse, the larger the part of noise in it."""
    noise = np.random.default_rng(9).normal(size=WEIGHT.shape).astype(np.float32)
    mixed: Array = (1 - part) * WEIGHT + part * noise
    return mixed


MODELS: Mapping[str, tuple[Array, int]] = {
    "first": (WEIGHT, 0),
    "second": (WEIGHT * np.float32(1.5), 0),
    "third": (WEIGHT * np.float32(2), 0),
    "worse": (noisy(0.7), 0),
    "slower": (WEIGHT * np.float32(3), 512),
}
"""By the name of the experiment: three that answer alike, and two that must not be promoted."""


def make_project(root: Path) -> Path:
    """A folder with params.yaml, the data, and a bundle of each model."""
    root.mkdir(exist_ok=True)
    settings = (REPOSITORY / layout.PARAMS).read_text(encoding="utf-8")
    brief = re.sub("^registry: .*$", BRIEF, settings, flags=re.MULTILINE)
    (root / layout.PARAMS).write_text(brief, encoding="utf-8")
    make_data(root)
    for name, (weight, work) in MODELS.items():
        make_bundle(root, name, weight, work)
    return root
