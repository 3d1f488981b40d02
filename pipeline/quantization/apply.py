"""Apply a recipe to a model: the same model, rows and recipe give the same bytes.

A `Quantizer` keeps what several recipes share, the prepared graph above all. Quantization of the
weights alone is ferry's own: it suits what static quantization knows no kernel for, which are
recurrent layers, transposed convolutions, tables of embeddings and large matrices.
"""

import copy
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from pipeline.exporting import onnxmodel
from pipeline.exporting.onnxmodel import constants, drop_unused_constants, replace_constant
from pipeline.proof.overflow import needs_of
from pipeline.proof.rows import Rows
from pipeline.proof.tracing.values import makers
from pipeline.quantization.half import to_fp16, units_of_targets
from pipeline.quantization.prepare import (
    DEQUANTIZE,
    RawInput,
    keep_mean,
    modernised,
    noisiest_layers,
    prepare,
    rewritten,
    with_raw_input,
)
from pipeline.quantization.recipes import BLOCK, Recipe, variant_of
from serving.errors import ModelError
from serving.runtime.tensors import Array

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "few": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
HISTOGRAMS = ("entropy", "percentile")
"""Calibrations that take batches of one size alone."""
TYPES = {"U8": QuantType.QUInt8, "S8": QuantType.QInt8}
CALIBRATION_BATCH = 64
FEWER = 8
"""The calibration "few" looks at one in so many rows."""
STATIC_OPERATORS = ("Conv", "Gemm", "MatMul")
"""Those whose weights are quantized; the others hand on what is quantized already."""
# Those for which onnxruntime has kernels of integers, or that vanish: else what goes through them
# is made floats of and rounded anew. HardSigmoid, HardSwish, ReduceMean and Resize have none.
CARRIERS = (
    *("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu"),
    *("MaxPool", "Mul", "Relu", "Reshape", "Sigmoid", "Transpose"),
)
# Not Conv, which is several times slower so than in float.
DYNAMIC_OPERATORS = ["Attention", "EmbedLayerNormalization", "Gather", "LSTM", "MatMul"]
HALF_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")
SMALLEST = 256
"""Weights of fewer values stay as they are: the scales and nodes would cost more."""
INT8_KERNEL = 4
"""Round activations to int8 within the operator, row by row: in float, 8 bits are 14 times slower
than a plain matrix."""
# The inputs that are weights, and the axis along which each gets a scale of its own.
WEIGHTS = {"Conv": {1: 0}, "ConvTranspose": {1: 1}, "LSTM": {1: 1, 2: 1}, "GRU": {1: 1, 2: 1}}
HIGHEST = 127


class Quantizer:
    """Applies recipes to one model, calibrated on one set of rows."""

    def __init__(self, model: onnx.ModelProto, calibration: Rows, batch: int | None = None) -> None:
        """`batch` is the one batch size that the model takes, or None where any will do."""
        self.model = copy.deepcopy(model)
        onnxmodel.name_nodes(self.model)
        self.calibration = calibration
        self.fixed_batch = batch
        self.batch = batch or CALIBRATION_BATCH

    @functools.cached_property
    def prepared(self) -> onnx.ModelProto:
        """With constants folded and normalisation merged, at an opset that recipes can be of."""
        return prepare(self._modern[0])

    @functools.cached_property
    def _modern(self) -> tuple[onnx.ModelProto, str]:
        """The model at a newer opset where it needs one, or as it is, and why it cannot have it."""
        try:
            return modernised(self.model, self._rows), ""
        except ModelError as error:
            return self.model, str(error)

    @property
    def _rows(self) -> dict[str, Array]:
        """Some calibration rows, one batch at most."""
        return self.calibration.fed(0, min(self.batch, len(self.calibration)))

    @functools.cached_property
    def raw(self) -> RawInput | None:
        """With uint8 rows for the first layer; None for a graph that does not begin so."""
        return with_raw_input(self.prepared)

    def apply(self, recipe: Recipe, float_layers: Sequence[str] = ()) -> onnx.ModelProto:
        """Make the model of a recipe, with the nodes of these names in float.

        What onnxruntime's quantizers raise for a graph that they do not know comes out as it is.
        Raises ModelError for scales per channel in a model of an opset without them.
        """
        scaled = recipe.static.per_channel if recipe.kind == "static" else recipe.kind == "weights"
        if scaled and self._modern[1]:
            raise ModelError(self._modern[1])
        match recipe.kind:
            case "half":
                made = to_fp16(self.model, float_layers)
            case "static":
                made = self._static(recipe, float_layers)
            case "dynamic":
                tool = functools.partial(
                    quantize_dynamic,
                    op_types_to_quantize=DYNAMIC_OPERATORS,
                    weight_type=QuantType.QInt8,
                    per_channel=recipe.per_channel,
                    reduce_range=recipe.reduced,
                )
                made = rewritten(self.prepared, tool)
            case "weights":
                made = weight_only(self.prepared, recipe.bits)
        del made.graph.value_info[:]
        _trim(made)
        return _tagged(made, self.model, recipe)

    def float_layers(self, recipe: Recipe) -> tuple[str, ...]:
        """The names of the layers that a recipe leaves in float: the noisiest ones.

        The noise is measured on some calibration rows, with all layers quantized.
        """
        if not recipe.float_layers:
            return ()
        whole = self.apply(recipe)
        operators = HALF_LAYERS if recipe.kind == "half" else STATIC_OPERATORS
        wanted = self.model if recipe.kind == "half" else self._float(recipe)
        return noisiest_layers(wanted, whole, self._rows, operators)[: recipe.float_layers]

    def _float(self, recipe: Recipe) -> onnx.ModelProto:
        return self.raw.model if recipe.static.raw_input and self.raw else self.prepared

    def _static(self, recipe: Recipe, float_layers: Sequence[str]) -> onnx.ModelProto:
        static = recipe.static
        raw = self.raw if static.raw_input else None
        count = len(self.calibration)
        if static.calibration == "few":
            count = max(1, count // FEWER)
        if self.fixed_batch or static.calibration in HISTOGRAMS:
            count = max(count - count % self.batch, min(count, self.batch))
        tool = functools.partial(
            quantize_static,
            calibration_data_reader=_CalibrationReader(self.calibration, count, self.batch),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*STATIC_OPERATORS, *CARRIERS],
            per_channel=static.per_channel,
            reduce_range=recipe.reduced,
            activation_type=TYPES[static.activation],
            weight_type=TYPES[static.weight],
            nodes_to_exclude=[
                *float_layers,
                *_scalings(self.prepared),
                *units_of_targets(self.prepared),
            ],
            calibrate_method=METHODS[static.calibration],
            extra_options={
                # Logits in 256 steps would tie where the trained model decides.
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": _of_pixels(raw) if raw else {},
            },
        )
        made = rewritten(self._float(recipe), tool)
        keep_mean(made, self._float(recipe), self.calibration.fed(0, min(self.batch, count)))
        if raw:
            _feed_pixels(made, raw)
        return made


def _scalings(model: onnx.ModelProto) -> Iterator[str]:
    """The names of products with a constant: to round before and behind them costs more."""
    known = {tensor.name for tensor in model.graph.initializer}
    return (
        node.name for node in model.graph.node if node.op_type == "Mul" and known & {*node.input}
    )


class _CalibrationReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds the first `count` calibration rows in batches of a fixed size."""

    def __init__(self, rows: Rows, count: int, batch: int) -> None:
        self._feeds = iter(
            rows.fed(start, min(start + batch, count)) for start in range(0, count, batch)
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _of_pixels(raw: RawInput) -> dict[str, list[dict[str, object]]]:
    """How `pixels - zero` is quantized, whatever the rows hold: the steps of a bias follow it."""
    scale, zero = np.array(1, np.float32), np.array(raw.zero, np.uint8)
    return {raw.centred: [{"quant_type": TYPES["U8"], "scale": scale, "zero_point": zero}]}


def _feed_pixels(model: onnx.ModelProto, raw: RawInput) -> None:
    """Take the quantizer of `pixels - zero` out: a pixel is its own quantized value, scale 1."""
    quantizers = [
        node
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] == raw.centred
    ]
    if not quantizers:  # the first layer stays in float
        return
    quantizer = quantizers[0]
    made = makers(model.graph)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == quantizer.output[0]:
                node.input[index] = raw.pixels
    gone = [quantizer]
    while gone[-1].input[0] != raw.pixels:
        gone.append(made[gone[-1].input[0]])
    for node in gone:
        model.graph.node.remove(node)


def _trim(model: onnx.ModelProto) -> None:
    """Drop zero points of zero before convolutions, and constants that nothing reads.

    Before other operators a zero point stays: ONNX Runtime looks for it before it takes an integer
    kernel.
    """
    known = constants(model)
    fed = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]}
    for node in model.graph.node:
        if (
            node.op_type == DEQUANTIZE
            and node.output[0] in fed
            and len(node.input) > 2
            and node.input[2] in known
            and not known[node.input[2]].any()
            and known[node.input[0]].dtype in (np.int8, np.int32)
        ):
            del node.input[2]
    drop_unused_constants(model)


def _tagged(made: onnx.ModelProto, original: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """Give a variant the original's metadata and its recipe, and nothing of the quantizer's."""
    onnxmodel.strip(made)
    onnxmodel.drop_unused_domains(made)
    needs = needs_of(made)
    facts = {"variant": variant_of(recipe), "recipe": recipe.name}
    facts |= {"needs": ",".join(needs)} if needs else {}
    onnxmodel.set_metadata(made, facts, original)
    made.graph.name = original.graph.name
    made.producer_name = original.producer_name
    made.producer_version = original.producer_version
    made.ir_version = max(original.ir_version, onnxmodel.CONSTANT_WEIGHTS_IR)
    return made


def weight_only(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """Quantize the constant weights of a prepared model, matrices to `bits`, all others to 8.

    Matrices become `MatMulNBits` of the domain com.microsoft, in blocks of 32 weights; the others
    stand behind a `DequantizeLinear`, and tables are looked up before it.
    """
    changed = _as_products(model)
    stored = _Stored(changed)
    for node in list(changed.graph.node):
        if node.op_type == "Gather":
            _quantize_table(stored, node)
        for index, axis in WEIGHTS.get(node.op_type, {}).items():
            _quantize_weight(stored, node, index, axis)
    drop_unused_constants(changed)
    known = constants(changed)
    small = [
        node.name
        for node in changed.graph.node
        if node.op_type == "MatMul" and known.get(node.input[1], np.empty(0)).size < SMALLEST
    ]
    with onnxmodel.quiet():
        quantizer = MatMulNBitsQuantizer(
            changed,
            bits,
            BLOCK,
            is_symmetric=True,
            accuracy_level=INT8_KERNEL,
            nodes_to_exclude=small,
        )
        quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    if not any(node.op_type in (DEQUANTIZE, "MatMulNBits") for node in made.graph.node):
        raise ModelError(f"no weights of {SMALLEST} values or more, and fewer are not made smaller")
    return made


def _as_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with each `Gemm` of a constant matrix as `MatMul` and `Add`, where it is the same."""
    changed = copy.deepcopy(model)
    known, names = constants(changed), onnxmodel.Names(changed)
    matrices: dict[tuple[str, bool], str] = {}
    for node in [one for one in changed.graph.node if _is_product(one, known)]:
        weight, bias = node.input[1], node.input[2:]
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        if (weight, transposed) not in matrices:
            name = matrices[weight, transposed] = names.new(f"{weight}.matrix")
            matrix = known[weight]
            replace_constant(changed, name, matrix.T if transposed else matrix)
        node.op_type = "MatMul"
        del node.attribute[:], node.input[1:]
        node.input.append(matrices[weight, transposed])
        if bias:
            answer = node.output[0]
            node.output[0], added = names.new(f"{answer}.product"), names.new(f"{node.name}.bias")
            add = helper.make_node("Add", [node.output[0], *bias], [answer], added)
            changed.graph.node.insert(list(changed.graph.node).index(node) + 1, add)
    drop_unused_constants(changed)
    return changed


def _is_product(node: onnx.NodeProto, known: dict[str, Array]) -> bool:
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return (
        node.op_type == "Gemm"
        and node.input[1] in known
        and known[node.input[1]].size >= SMALLEST
        and all(attributes.get(name, value) == value for name, value in plain.items())
    )


class _Stored:
    """The weights of a model as whole numbers, each stored once, whoever reads it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.names = onnxmodel.Names(model)
        self._known = constants(model)
        self._stored: dict[tuple[str, int | None], tuple[str, str]] = {}

    def put(self, name: str, axis: int | None) -> tuple[str, str] | None:
        """The names of a weight's whole numbers and of their scales; None where it stays in float.

        There is a scale for each place along `axis`, or one for all.
        """
        weight = self._known.get(name)
        if weight is None or weight.dtype != np.float32 or weight.size < SMALLEST:
            return None
        if (name, axis) not in self._stored:
            others = None if axis is None else tuple({*range(weight.ndim)} - {axis})
            largest = np.abs(weight).max(axis=others, keepdims=axis is not None)
            whole, scale = _rounded(weight, largest)
            made = self.names.new(f"{name}.whole"), self.names.new(f"{name}.scale")
            replace_constant(self.model, made[0], whole)
            replace_constant(self.model, made[1], scale if axis is None else scale.ravel())
            self._stored[name, axis] = made
        return self._stored[name, axis]


def _quantize_weight(stored: _Stored, node: onnx.NodeProto, index: int, axis: int) -> None:
    """Put a `DequantizeLinear` before a weight, with a scale for each place along `axis`."""
    found = stored.put(node.input[index], axis) if index < len(node.input) else None
    if found is None:
        return
    weight, new = node.input[index], stored.names.new
    node.input[index], name = new(f"{weight}.float"), new(f"{weight}/{DEQUANTIZE}")
    dequantize = helper.make_node(DEQUANTIZE, found, [node.input[index]], name=name, axis=axis)
    stored.model.graph.node.insert(0, dequantize)


def _quantize_table(stored: _Stored, node: onnx.NodeProto) -> None:
    """Look up rows of whole numbers, and turn into floats those alone that were looked up."""
    found = stored.put(node.input[0], None)
    if found is None:
        return
    answer, (whole, scale) = node.output[0], found
    looked_up = stored.names.new(f"{answer}.whole")
    node.input[0], node.output[0] = whole, looked_up
    name = stored.names.new(f"{looked_up}/{DEQUANTIZE}")
    dequantize = helper.make_node(DEQUANTIZE, [looked_up, scale], [answer], name=name)
    nodes = stored.model.graph.node
    nodes.insert(list(nodes).index(node) + 1, dequantize)


def _rounded(weight: Array, largest: Array) -> tuple[Array, Array]:
    """Whole numbers from -127 to 127 and the scales that make the weights of them again."""
    scale = np.maximum(largest, np.finfo(np.float32).tiny) / HIGHEST
    whole = np.clip(np.rint(weight / scale), -HIGHEST, HIGHEST).astype(np.int8)
    return whole, scale.astype(np.float32)
