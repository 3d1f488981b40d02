"""Make a graph ready for quantization, and find the layers that quantization disturbs most.

Quantizers look for constant weights behind known operators. ONNX Runtime's lowest optimizations,
which run on any machine, bring what an exporter writes to that form.
"""

import copy
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, version_converter
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.exporting import onnxmodel
from pipeline.exporting.folding import absorb, ways_from_inputs
from pipeline.exporting.onnxmodel import constants, drop_unused_constants, replace_constant
from pipeline.proof.tracing.pairs import steps_of
from pipeline.proof.tracing.values import OnnxValues, makers, users
from serving.errors import ModelError, one_line
from serving.runtime.providers import ORT_ERRORS
from serving.runtime.session import open_session
from serving.runtime.tensors import Array

PER_CHANNEL = 13
"""The first opset whose quantization takes a scale for each channel."""
LARGEST_PIXEL = 255
SILENCE = 1e-30
"""The least energy of a signal that noise is divided by."""
BEGINNINGS = (["Cast"], ["Cast", "Sub"], ["Cast", "Mul"], ["Cast", "Sub", "Mul"])
"""The operators that may stand between pixels and the first layer."""
MOVED = ("Transpose", "Reshape")
"""Those that may stand before them."""
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawInput:
    """A graph whose first layer has swallowed the standardisation of its uint8 rows."""

    model: onnx.ModelProto
    """It takes `pixels - zero` instead, where `zero` is a whole number."""
    pixels: str
    """The tensor of uint8 that is cast."""
    centred: str
    """The tensor of `pixels - zero`."""
    zero: int


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with constants folded and batch normalisation in the convolutions before it.

    Raises ModelError for a model that onnxruntime's tool cannot bring to this form.
    """
    # Shapes that are inferred now would be wrong behind each node that a quantizer rewrites.
    tool = partial(quant_pre_process, skip_symbolic_shape=True, skip_onnx_shape=True)
    try:
        prepared = rewritten(onnxmodel.with_constant_weights(model), tool)
    except (*ORT_ERRORS, ValueError, onnx.shape_inference.InferenceError) as error:
        reason = one_line(error, 300)
        raise ModelError(f"onnxruntime cannot prepare the model for int8: {reason}") from error
    del prepared.graph.value_info[:]
    onnxmodel.drop_unused_domains(prepared)
    onnxmodel.name_nodes(prepared)
    _give_plain_biases(prepared)
    return prepared


def modernised(model: onnx.ModelProto, rows: Mapping[str, Array]) -> onnx.ModelProto:
    """The model at an opset with a scale per channel: as it is, or as onnx converts it.

    Raises ModelError for an older one that cannot be converted with the same answers to `rows`.
    """
    opsets = (one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    opset = next(opsets, PER_CHANNEL)
    if opset >= PER_CHANNEL:
        return model
    try:
        made = version_converter.convert_version(model, PER_CHANNEL)
        wanted, found = (open_session(one.SerializeToString()).run(rows) for one in (model, made))
        reason = "another answer" if not all(map(_close, wanted.values(), found.values())) else ""
    except (RuntimeError, onnx.shape_inference.InferenceError, ModelError) as error:
        reason = one_line(error)
    if reason:
        raise ModelError(
            f"a scale per channel needs opset {PER_CHANNEL}, and onnx.version_converter cannot "
            f"convert the model from {opset}: {reason}; export it anew"
        )
    return made


def _close(left: Any, right: Any) -> bool:
    """Whether two outputs are, as far as rounding goes; what is no array is not looked into."""
    if not isinstance(left, np.ndarray):
        return type(left) is type(right)
    if left.dtype.kind != "f":
        return np.array_equal(left, right)
    return np.allclose(left, right, rtol=1e-4, atol=1e-5, equal_nan=True)


def _give_plain_biases(model: onnx.ModelProto) -> None:
    """Give each `Gemm` a bias of one number per column: onnxruntime's quantizer breaks on others.

    Its optimizer makes such of an `Add` behind a `MatMul`. What has other numbers for each row
    becomes an `Add` again.
    """
    known, names = constants(model), onnxmodel.Names(model)
    for gemm in [node for node in model.graph.node if node.op_type == "Gemm"]:
        weight, bias = (known.get(name) for name in (*gemm.input, "")[1:3])
        if weight is None or bias is None:
            continue
        attributes = {one.name: helper.get_attribute_value(one) for one in gemm.attribute}
        columns = weight.shape[0 if attributes.get("transB") else 1]
        if bias.shape == (columns,):
            continue
        if bias.size == 1 or bias.shape == (1, columns):
            gemm.input[2] = names.new(f"{gemm.input[2]}.row")
            replace_constant(model, gemm.input[2], np.broadcast_to(bias.ravel(), columns))
        elif attributes.get("beta", 1.0) == 1.0:
            answer, wide = gemm.output[0], gemm.input.pop(2)
            gemm.output[0], name = names.new(f"{answer}.product"), names.new(f"{gemm.name}.bias")
            add = helper.make_node("Add", [gemm.output[0], wide], [answer], name)
            model.graph.node.insert(list(model.graph.node).index(gemm) + 1, add)
    drop_unused_constants(model)


def rewritten(model: onnx.ModelProto, tool: Callable[[Path, Path], object]) -> onnx.ModelProto:
    """What a tool of onnxruntime makes, which reads one file and writes another."""
    with tempfile.TemporaryDirectory() as folder, onnxmodel.quiet():
        source, target = Path(folder) / "model.onnx", Path(folder) / "made.onnx"
        onnx.save(model, source)
        tool(source, target)
        return onnx.load(target)


def with_raw_input(model: onnx.ModelProto) -> RawInput | None:
    """Merge `(pixels - mean) * scale` into the first layer, so that it takes `pixels - zero`.

    `zero` is the mean of all channels as a whole number: such rows are quantized already, with
    scale 1. Exact but for the edge that a convolution pads: there a channel's own mean would
    stand. None for a graph that does not begin in this way.
    """
    changed = copy.deepcopy(model)
    way = _standardisation(changed)
    if way is None:
        return None
    cast, *between, layer = way
    known = constants(changed)
    found = {node.op_type: known[node.input[1]].astype(np.float64).ravel() for node in between}
    mean, scale = found.get("Sub", np.zeros(1)), found.get("Mul", np.ones(1))
    zero = int(np.clip(np.rint(mean.mean()), 0, LARGEST_PIXEL))
    absorb(changed, layer, mean - zero, scale)
    layer.input[0] = cast.output[0]
    for node in between:
        if node.op_type == "Sub":
            node.input[1] = onnxmodel.Names(changed).new(f"{node.input[1]}.rounded")
            replace_constant(changed, node.input[1], np.array(zero, np.float32))
            layer.input[0] = node.output[0]
        else:
            changed.graph.node.remove(node)
    drop_unused_constants(changed)
    return RawInput(model=changed, pixels=cast.input[0], centred=layer.input[0], zero=zero)


def keep_mean(made: onnx.ModelProto, wanted: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
    """Take out of the first layer's bias what the rounding of its weights does to a mean row.

    Raw rows lie far from zero, so that the errors of few weights add up to a shift of every value.
    `made` is `wanted` with quantizers. After Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", 2019.
    """
    way = next(ways_from_inputs(wanted), None)
    if way is None:
        return
    first, before = way[-1], makers(made.graph)
    layer = next((node for node in made.graph.node if node.name == first.name), first)
    parts = [before[name] for name in layer.input[1:] if name in before]
    steps = [steps_of(one, {t.name: t for t in made.graph.initializer}) for one in parts]
    if len(parts) < 2 or steps[0] is None:
        return  # in float, or without a bias
    known, taken = constants(made), first.input[0]
    values = {**feeds, **OnnxValues(wanted, feeds).fetch([taken])}[taken]
    mean = values.mean(axis=(0, *range(2, values.ndim)), dtype=np.float64)
    off = steps[0].values(known[parts[0].input[0]]) - constants(wanted)[first.input[1]]
    shift = off.reshape(*off.shape[:2], -1).sum(axis=2) @ mean
    bias, scale = parts[1].input[:2]
    whole = np.rint(known[bias] - shift / known[scale])
    replace_constant(made, bias, whole.astype(known[bias].dtype))


def _standardisation(model: onnx.ModelProto) -> list[onnx.NodeProto] | None:
    """The nodes Cast, Sub, Mul and a layer behind an input of uint8, as far as they are there.

    Before them its axes may be put in another order or flattened.
    """
    known = constants(model)
    pixels = {
        value.name
        for value in model.graph.input
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    }
    for way in ways_from_inputs(model):
        if way[0].input[0] not in pixels:
            continue
        found = list(itertools.dropwhile(lambda node: node.op_type in MOVED, way))
        *before, layer = found
        kinds = [node.op_type for node in before]
        if kinds in BEGINNINGS and _per_channel(before[1:], layer, known):
            return found
    return None


def _per_channel(
    between: Sequence[onnx.NodeProto], layer: onnx.NodeProto, known: Mapping[str, Array]
) -> bool:
    """Whether mean and scale are one number per channel of the convolution, or one for all."""
    channels = known[layer.input[1]].shape[1]
    shapes = [known[node.input[1]].shape for node in between if node.input[1] in known]
    return len(shapes) == len(between) and all(
        np.prod(s) == 1 or (np.prod(s) == channels and s[-2:] == (1, 1)) for s in shapes
    )


def noisiest_layers(
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
    left = OnnxValues(wanted, feeds).fetch(shared)
    right = OnnxValues(found, feeds).fetch({after[name] for name in shared})
    noise = {name: noise_to_signal(left[name], right[after[name]]) for name in shared}
    added = {
        layer: noise[made] - noise.get(taken, 0.0)
        for layer, (taken, made) in compared.items()
        if made in noise
    }
    return tuple(sorted(added, key=lambda name: -added[name]))


def noise_to_signal(wanted: Array, found: Array) -> float:
    """The energy of the error over that of what was wanted; 1e30 for what is not finite."""
    wanted = wanted.astype(np.float64)
    error = found.astype(np.float64) - wanted
    if not np.isfinite(error).all():
        return 1 / SILENCE
    return float(np.square(error).sum()) / max(float(np.square(wanted).sum()), SILENCE)


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
    readers = users(model.graph).get(name, [])
    return str(readers[0].output[0]) if name not in made and len(readers) == 1 else name
