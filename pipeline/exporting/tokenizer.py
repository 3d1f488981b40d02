"""The nodes before a text model: in the graph, what `pipeline.models.parts.vocabulary` does."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.models.parts.vocabulary import PADDING, RESERVED, UNKNOWN, Vocabulary

INPUT, IDS = "text", "ids"
FIRST_OPSET = 20
"""It brought StringSplit."""
LABEL_ENCODER_VERSION = 4
"""Of the domain ai.onnx.ml, which comes with opset 20 of the default one."""


def prepend(model: onnx.ModelProto, vocabulary: Vocabulary) -> None:
    """Put the look-up before a model whose one input is `ids`, int64 [batch, length].

    Its input becomes `text`, string [batch]. Needs `FIRST_OPSET`.
    """
    graph = model.graph
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.STRING, [batch]))
    nodes = [*_nodes(vocabulary), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    length = vocabulary.length
    constants = {
        "text.pads": [0, 0, 0, length],
        "text.start": [0],
        "text.length": [length],
        "text.axis": [1],
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in constants.items()
    )
    model.opset_import.add(domain="ai.onnx.ml", version=LABEL_ENCODER_VERSION)


def known_words(model: onnx.ModelProto) -> tuple[str, ...]:
    """The vocabulary of a model that splits texts at blanks and looks the words up; () of others.

    The empty word is left out: with it the graph fills up short rows.
    """
    inputs = {value.name for value in model.graph.input}
    split = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "StringSplit" and node.input[0] in inputs and not node.attribute
    }
    for node in model.graph.node:
        if node.op_type == "LabelEncoder" and node.input[0] in split:
            keys = (one.strings for one in node.attribute if one.name == "keys_strings")
            return tuple(word.decode("utf-8", "replace") for word in next(keys, ()) if word)
    return ()


def _nodes(vocabulary: Vocabulary) -> list[onnx.NodeProto]:
    """Split on blanks, look each word up, and bring every row to the same length."""
    look_up = helper.make_node(
        "LabelEncoder",
        ["text.words"],
        ["text.ids"],
        name="text/LabelEncoder",
        domain="ai.onnx.ml",
        # StringSplit fills short rows up with empty words.
        keys_strings=["", *vocabulary.words],
        values_int64s=[PADDING, *(RESERVED + rank for rank in range(len(vocabulary.words)))],
        default_int64=UNKNOWN,
    )
    return [
        helper.make_node(
            "StringSplit", [INPUT], ["text.words", "text.counts"], name="text/StringSplit"
        ),
        look_up,
        helper.make_node("Pad", ["text.ids", "text.pads"], ["text.padded"], name="text/Pad"),
        helper.make_node(
            "Slice",
            ["text.padded", "text.start", "text.length", "text.axis"],
            [IDS],
            name="text/Slice",
        ),
    ]
