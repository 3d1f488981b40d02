"""Which layers quantization disturbs most: the signal-to-noise ratio of each, worst first."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.quantization.prepare import copied
from serving.session import open_session

__all__ = ["decibels", "noisiest"]

Array = npt.NDArray[Any]
SILENCE = 1e-30
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def noisiest(
    wanted: onnx.ModelProto,
    found: onnx.ModelProto,
    feeds: Mapping[str, Array],
    operators: Sequence[str],
) -> tuple[str, ...]:
    """The names of the nodes of these operators, the one that adds most noise first.

    Both models are run without optimizations on the same rows, and the outputs of nodes that both
    have are compared. What counts is how much a layer's output is noisier than its input was: the
    noise of the layers before it is not its own.
    """
    after = _after_rounding(found)
    fed = {value.name for value in wanted.graph.input}
    compared = {
        node.name: (node.input[0], _kept_output(node, wanted, after))
        for node in wanted.graph.node
        if node.op_type in operators
    }
    names = dict.fromkeys(name for pair in compared.values() for name in pair)
    shared = [name for name in names if name in after and name not in fed]
    left = _values(wanted, shared, feeds)
    right = _values(found, list(dict.fromkeys(after[name] for name in shared)), feeds)
    noise = {name: 10 ** (-decibels(left[name], right[after[name]]) / 10) for name in shared}
    added = {
        layer: noise[made] - noise.get(taken, 0.0)
        for layer, (taken, made) in compared.items()
        if made in noise
    }
    return tuple(sorted(added, key=lambda name: -added[name]))


def decibels(wanted: Array, found: Array) -> float:
    """The signal-to-noise ratio, 10 log10 of the energies of what was wanted and of the error."""
    wanted = wanted.astype(np.float64)
    error = found.astype(np.float64) - wanted
    if not np.isfinite(error).all():
        return -10 * math.log10(1 / SILENCE)
    noise = max(float(np.square(error).sum()), SILENCE)
    return 10 * math.log10(max(float(np.square(wanted).sum()), SILENCE) / noise)


def _after_rounding(model: onnx.ModelProto) -> dict[str, str]:
    """Every tensor that a node makes, and the one that stands for it once it is rounded."""
    rounded = {node.input[0]: node for node in model.graph.node if node.op_type == QUANTIZE}
    back = {node.input[0]: node for node in model.graph.node if node.op_type == DEQUANTIZE}
    stands = {}
    for name in [name for node in model.graph.node for name in node.output]:
        stands[name] = name
        if name in rounded and rounded[name].output[0] in back:
            stands[name] = back[rounded[name].output[0]].output[0]
    return stands


def _kept_output(node: onnx.NodeProto, model: onnx.ModelProto, made: Mapping[str, str]) -> str:
    """The output of a layer, or of the activation behind it where a quantizer merged the two."""
    name = str(node.output[0])
    users = [one for one in model.graph.node if name in one.input]
    return str(users[0].output[0]) if name not in made and len(users) == 1 else name


def _values(
    model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """The values of some tensors in the middle of a graph."""
    opened = copied(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(opened.SerializeToString(), threads=1, optimize="none")
    return session.run(dict(feeds))
