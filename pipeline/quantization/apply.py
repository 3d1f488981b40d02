"""Apply a recipe to a model: the same model, rows and recipe give the same bytes.

What several recipes share, the prepared graph above all, is made once, in a `Source`.
"""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from pipeline.exporting import onnxmodel
from pipeline.proof.rows import Rows
from pipeline.quantization.prepare import (
    RawInput,
    constants,
    copied,
    noisiest,
    prepare,
    replace_constant,
    with_raw_input,
)
from pipeline.quantization.recipes import Recipe
from pipeline.quantization.weights import weight_only

Array = npt.NDArray[Any]
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "few": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
TYPES = {"U8": QuantType.QUInt8, "S8": QuantType.QInt8}
CALIBRATION_BATCH = 64
FEWER = 8
STATIC_OPERATORS = ("Conv", "Gemm", "MatMul")
"""Those whose weights are quantized; the others hand on what is quantized already."""
CARRIERS = (
    *("Add", "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Relu"),
    *("Reshape", "Transpose"),
)
# Not Conv, which is several times slower so than in float.
DYNAMIC_OPERATORS = ["Attention", "EmbedLayerNormalization", "Gather", "LSTM", "MatMul"]
HALF_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")


class Source:
    """A model, and the rows that recipes may look at."""

    def __init__(self, model: onnx.ModelProto, calibration: Rows, batch: int | None = None) -> None:
        """`batch` is the one batch size that the model takes, or None where any will do."""
        self.model = model
        self.calibration = calibration
        self.batch = batch or CALIBRATION_BATCH
        self.fixed = batch is not None

    @functools.cached_property
    def prepared(self) -> onnx.ModelProto:
        """With constants folded and normalisation merged."""
        return prepare(self.model)

    @functools.cached_property
    def raw(self) -> RawInput | None:
        """With uint8 rows for the first layer; None for a graph that does not begin so."""
        return with_raw_input(self.prepared)

    def apply(self, recipe: Recipe, float_layers: Sequence[str] = ()) -> onnx.ModelProto:
        """Make the model of a recipe, with the nodes of these names in float.

        What onnxruntime's quantizers raise for a graph that they do not know comes out as it is.
        """
        match recipe.kind:
            case "half":
                made = to_fp16(self.model, float_layers)
            case "static":
                made = self._static(recipe, float_layers)
            case "dynamic":
                made = self._dynamic(recipe)
            case "weights":
                made = weight_only(self.prepared, recipe.bits)
        del made.graph.value_info[:]
        _trim(made)
        return _tagged(made, self.model, recipe)

    def layers(self, recipe: Recipe) -> tuple[str, ...]:
        """The layers that a recipe leaves in float: the noisiest of those it quantizes otherwise.

        The noise is measured on some calibration rows, with all layers quantized.
        """
        if not recipe.float_layers:
            return ()
        rows = self.calibration.slice(0, min(self.batch, len(self.calibration)))
        whole = self.apply(recipe)
        operators = HALF_LAYERS if recipe.kind == "half" else STATIC_OPERATORS
        wanted = self.model if recipe.kind == "half" else self._float(recipe)
        return noisiest(wanted, whole, rows, operators)[: recipe.float_layers]

    def _float(self, recipe: Recipe) -> onnx.ModelProto:
        return self.raw.model if recipe.static.raw_input and self.raw else self.prepared

    def _static(self, recipe: Recipe, float_layers: Sequence[str]) -> onnx.ModelProto:
        static = recipe.static
        count = len(self.calibration)
        if static.calibration == "few":
            count = max(1, count // FEWER)
        if self.fixed:
            count = max(count - count % self.batch, self.batch)
        with tempfile.TemporaryDirectory() as folder, onnxmodel.quiet():
            before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(self._float(recipe), before)
            quantize_static(
                before,
                after,
                _Calibration(self.calibration, count, self.batch),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*STATIC_OPERATORS, *CARRIERS],
                per_channel=static.per_channel,
                activation_type=TYPES[static.activation],
                weight_type=TYPES[static.weight],
                nodes_to_exclude=list(float_layers),
                calibrate_method=METHODS[static.calibration],
                # Logits in 256 steps would tie where the trained model decides.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
            made = onnx.load(after)
        if static.raw_input and self.raw:
            _feed_pixels(made, self.raw)
        return made

    def _dynamic(self, recipe: Recipe) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder, onnxmodel.quiet():
            before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(self.prepared, before)
            quantize_dynamic(
                before,
                after,
                op_types_to_quantize=DYNAMIC_OPERATORS,
                weight_type=QuantType.QInt8,
                per_channel=recipe.per_channel,
            )
            return onnx.load(after)


def to_fp16(model: onnx.ModelProto, float_layers: Sequence[str] = ()) -> onnx.ModelProto:
    """Weights and arithmetic in half precision; inputs and outputs keep their types."""
    with onnxmodel.quiet():
        half: onnx.ModelProto = convert_float_to_float16(
            copied(model), keep_io_types=True, node_block_list=list(float_layers)
        )
    return half


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds the first `count` calibration rows in batches of a fixed size."""

    def __init__(self, rows: Rows, count: int, batch: int) -> None:
        self._feeds = iter(
            rows.slice(start, min(start + batch, count)) for start in range(0, count, batch)
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


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
    replace_constant(model, quantizer.input[1], np.array(1, np.float32))
    replace_constant(model, quantizer.input[2], np.array(raw.zero, np.uint8))
    makers = {name: node for node in model.graph.node for name in node.output}
    subtract = makers[raw.centred]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == quantizer.output[0]:
                node.input[index] = raw.pixels
    for node in (quantizer, subtract, makers[subtract.input[0]]):
        model.graph.node.remove(node)


def _trim(model: onnx.ModelProto) -> None:
    """Drop what says nothing: zero points of zero before convolutions, and unused constants.

    Elsewhere ONNX Runtime looks for the zero point before it takes a kernel of whole numbers.
    """
    known = constants(model)
    fed = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]}
    for node in model.graph.node:
        if (
            node.op_type == "DequantizeLinear"
            and node.output[0] in fed
            and len(node.input) > 2
            and node.input[2] in known
            and not known[node.input[2]].any()
            and known[node.input[0]].dtype in (np.int8, np.int32)
        ):
            del node.input[2]
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    for tensor in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(tensor)


def _tagged(made: onnx.ModelProto, original: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """Give a variant the original's metadata and its recipe, and nothing of the quantizer's."""
    facts = onnxmodel.metadata(original)
    onnxmodel.strip(made)
    onnxmodel.drop_unused_domains(made)
    variant = "fp16" if recipe.kind == "half" else "int8"
    facts |= {
        f"{onnxmodel.METADATA}variant": variant,
        f"{onnxmodel.METADATA}recipe": recipe.name,
    }
    del made.metadata_props[:]
    for key, value in facts.items():
        made.metadata_props.add(key=key, value=value)
    made.graph.name = original.graph.name
    made.producer_name = original.producer_name
    made.producer_version = original.producer_version
    made.ir_version = original.ir_version
    return made
