"""Tiny models of the other kinds that ferry exports: of text, of a table, and a reconstruction."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tiny_classifier import HEIGHT, METADATA, WIDTH, contents, images

from serving.bundles.writing import BundleContents

Made = Callable[[], BundleContents]
Copies = Callable[[Made], Path]
"""What the fixture `bundle_of` gives: a copy of the bundle of some contents."""

FLOAT, STRING, UINT8 = TensorProto.FLOAT, TensorProto.STRING, TensorProto.UINT8
# What each word says for the second class; any other word says nothing.
WORDS = {"good": 2.0, "fine": 1.0, "bad": -2.0, "naïve": -0.5}
TEXTS = ["a good film", "bad , bad and bad", "", "fine", "naïve but good"]
SENTIMENTS = ("negative", "positive")
WEIGHT = np.array([[1.0], [-2.0], [0.5]], np.float32)


def model(nodes: list, infos: tuple[list, list], constants: dict, labels: tuple, **more) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        *infos,
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", more.get("opset", 18))]
    imports += [helper.make_opsetid("ai.onnx.ml", 4)] if "ml" in more else []
    made = helper.make_model(graph, opset_imports=imports, ir_version=9)
    helper.set_model_props(made, METADATA | {"ferry.labels": json.dumps(labels)})
    return made.SerializeToString()


def binary_outputs() -> list:
    return [
        helper.make_tensor_value_info("logits", FLOAT, ["batch", 1]),
        helper.make_tensor_value_info("probabilities", FLOAT, ["batch", 2]),
    ]


def two_classes() -> list:
    """From `logits` [batch, 1] to `probabilities` [batch, 2]."""
    return [
        helper.make_node("Sigmoid", ["logits"], ["p"]),
        helper.make_node("Sub", ["one", "p"], ["q"]),
        helper.make_node("Concat", ["q", "p"], ["probabilities"], axis=1),
    ]


def text_classifier() -> bytes:
    """String [batch] to the summed weights of its words: logits [batch, 1], probabilities."""
    encoder = helper.make_node(
        "LabelEncoder",
        ["words"],
        ["ids"],
        domain="ai.onnx.ml",
        keys_strings=list(WORDS),
        values_int64s=list(range(1, len(WORDS) + 1)),
        default_int64=0,
    )
    nodes = [
        helper.make_node("StringSplit", ["text"], ["words", "counts"]),
        encoder,
        helper.make_node("Gather", ["weights", "ids"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "axis"], ["logits"], keepdims=0),
        *two_classes(),
    ]
    constants = {
        "weights": np.array([[0.0], *[[weight] for weight in WORDS.values()]], np.float32),
        "axis": np.array([1], np.int64),
        "one": np.float32(1),
    }
    infos = [helper.make_tensor_value_info("text", STRING, ["batch"])]
    return model(nodes, (infos, binary_outputs()), constants, SENTIMENTS, opset=20, ml=True)


def positive(texts: list[str]) -> np.ndarray:
    """The probability of the second class, by Python alone."""
    sums = [sum(WORDS.get(word, 0.0) for word in text.split()) for text in texts]
    return 1 / (1 + np.exp(-np.array(sums)))


def table_classifier() -> bytes:
    """Float32 features [batch, 3] to logits [batch, 1] and probabilities [batch, 2]."""
    nodes = [helper.make_node("MatMul", ["features", "weight"], ["logits"]), *two_classes()]
    infos = [helper.make_tensor_value_info("features", FLOAT, ["batch", 3])]
    constants = {"weight": WEIGHT, "one": np.float32(1)}
    return model(nodes, (infos, binary_outputs()), constants, ("no", "yes"))


def features(rows: int) -> np.ndarray:
    """Random rows that the table's classifier takes."""
    return np.random.default_rng(5).normal(size=(rows, 3)).astype(np.float32)


def autoencoder() -> bytes:
    """uint8 images [batch, 4, 5, 1] to half of them, on 0..1, and to how far that is off."""
    nodes = [
        helper.make_node("Cast", ["images"], ["real"], to=FLOAT),
        helper.make_node("Mul", ["real", "scale"], ["pixels"]),
        helper.make_node("Mul", ["pixels", "half"], ["reconstruction"]),
        helper.make_node("Sub", ["pixels", "reconstruction"], ["off"]),
        helper.make_node("Mul", ["off", "off"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["error"], keepdims=0),
    ]
    shape = ["batch", HEIGHT, WIDTH, 1]
    outputs = [
        helper.make_tensor_value_info("reconstruction", FLOAT, shape),
        helper.make_tensor_value_info("error", FLOAT, ["batch"]),
    ]
    constants = {
        "scale": np.float32(1 / 255),
        "half": np.float32(0.5),
        "axes": np.array([1, 2, 3], np.int64),
    }
    infos = [helper.make_tensor_value_info("images", UINT8, shape)]
    return model(nodes, (infos, outputs), constants, ())


def halved(rows: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of images."""
    return rows / 510


def errors(rows: np.ndarray) -> np.ndarray:
    """Its error of each image."""
    return np.square(halved(rows)).mean(axis=(1, 2, 3))


def passing(
    dtype: int, shape: list[int | str | None], outputs: int = 1, out_type: int = FLOAT
) -> bytes:
    """A model that hands its input on: `rows` to `out0`, `out1`, ..."""
    names = [f"out{index}" for index in range(outputs)]
    infos = (
        [helper.make_tensor_value_info("rows", dtype, shape)],
        [helper.make_tensor_value_info(name, out_type, shape) for name in names],
    )
    nodes = [helper.make_node("Cast", ["rows"], [name], to=out_type) for name in names]
    graph = helper.make_graph(nodes, "passing", *infos)
    imports = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def text_contents() -> BundleContents:
    return contents(
        model=text_classifier(), labels=SENTIMENTS, golden_input=np.array(TEXTS), name="tiny"
    )


def table_contents() -> BundleContents:
    return contents(model=table_classifier(), labels=("no", "yes"), golden_input=features(6))


def autoencoder_contents() -> BundleContents:
    return contents(model=autoencoder(), labels=(), golden_input=images(6), metrics={"error": 0.1})
