"""`ferry quantize EXPERIMENT`: write the fp16 and int8 variants of the exported model.

A variant that params.yaml skips is not made, and the metrics say why.
int8 is QDQ with weights per channel (S8) and activations U8, calibrated on training rows alone;
the form that ONNX Runtime's x86-64 kernels run fastest.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from pipeline import onnxmodel, ready
from pipeline.config import Experiment, QuantizeConfig, Variant
from pipeline.errors import ConfigError
from serving.files import sha256_of_bytes, write_json

__all__ = ["QuantizeReport", "VariantFile", "quantize", "to_fp16", "to_int8"]

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
CALIBRATION_BATCH = 64
QUANTIZED_OPERATORS = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Reshape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFile:
    """One variant that was written."""

    bytes: int
    sha256: str
    size_ratio: float
    """Of the fp32 file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """What was written: `metrics/E/quantize.json`."""

    experiment: str
    calibration_rows: int
    calibration_method: str
    seconds: float
    variants: Mapping[Variant, VariantFile]
    skipped: Mapping[Variant, str]
    """The variants that were not made, with the reason."""


def quantize(
    model: Path, data: Path, folder: Path, metrics: Path, *, experiment: Experiment
) -> QuantizeReport:
    """Write the variants of `model` to `folder`, as `model.fp16.onnx` and `model.int8.onnx`.

    `data` is the preprocessed data set, whose training split is calibrated on. Raises
    MissingInputError, IntegrityError, ModelError and ConfigError for too few rows.
    """
    start = time.perf_counter()
    config = experiment.quantize
    original = onnxmodel.load(model, f"ferry export {experiment.name}")
    made: dict[Variant, onnx.ModelProto] = {}
    rows = 0
    if "fp16" not in config.skip:
        made["fp16"] = to_fp16(original)
    if "int8" not in config.skip:
        calibrating = calibration_rows(data, config, experiment.name)
        made["int8"], rows = to_int8(original, calibrating, config), len(calibrating)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("model.*.onnx"):
        left.unlink()  # of an earlier run that skipped less
    report = QuantizeReport(
        experiment=experiment.name,
        calibration_rows=rows,
        calibration_method=config.method,
        seconds=time.perf_counter() - start,
        variants={
            variant: _save(_tagged(one, original, variant), folder, variant, model.stat().st_size)
            for variant, one in made.items()
        },
        skipped=config.skip,
    )
    write_json(metrics, report)
    return report


def calibration_rows(data: Path, config: QuantizeConfig, name: str) -> np.ndarray[Any, Any]:
    """Rows drawn from the training split with the experiment's seed, in a fixed order."""
    train = ready.open_split(data, "train")
    if config.calibration_rows > len(train.labels):
        raise ConfigError(
            f"experiments.{name}.quantize.calibration_rows must be at most {len(train.labels)}, "
            f"the rows of the training split, got {config.calibration_rows}"
        )
    generator = np.random.default_rng(config.seed)
    chosen = generator.choice(len(train.labels), config.calibration_rows, replace=False)
    return np.asarray(train.inputs[np.sort(chosen)])


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in half precision; inputs and outputs keep their types."""
    with onnxmodel.quiet():
        half: onnx.ModelProto = convert_float_to_float16(_copy(model), keep_io_types=True)
    return half


def to_int8(
    model: onnx.ModelProto, rows: np.ndarray[Any, Any], config: QuantizeConfig
) -> onnx.ModelProto:
    """Quantize with ranges that are measured on `rows`, raw rows as the model takes them."""
    with tempfile.TemporaryDirectory() as folder, onnxmodel.quiet():
        prepared, target = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(_copy(model), prepared)
        quantize_static(
            prepared,
            target,
            _Rows(model.graph.input[0].name, rows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[config.method],
            # Logits in 256 steps would tie where the trained model decides.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        return onnx.load(target)


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds the calibration rows in batches of a fixed size."""

    def __init__(self, name: str, rows: np.ndarray[Any, Any]) -> None:
        self._feeds = iter(
            {name: rows[start : start + CALIBRATION_BATCH]}
            for start in range(0, len(rows), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self._feeds, None)


def _tagged(variant: onnx.ModelProto, original: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Give a variant the original's metadata, and nothing of the tools that made it."""
    prefix = onnxmodel.METADATA
    facts = {key.removeprefix(prefix): value for key, value in onnxmodel.metadata(original).items()}
    onnxmodel.strip(variant)
    onnxmodel.drop_unused_domains(variant)
    onnxmodel.set_metadata(variant, facts | {"variant": name})
    variant.producer_name = original.producer_name
    variant.producer_version = original.producer_version
    return variant


def _save(
    model: onnx.ModelProto, folder: Path, variant: Variant, original_size: int
) -> VariantFile:
    content = onnxmodel.save(model, folder / f"model.{variant}.onnx")
    return VariantFile(
        bytes=len(content),
        sha256=sha256_of_bytes(content),
        size_ratio=len(content) / original_size,
    )


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
