"""The variants: smaller, close, deterministic, and of the form that was promised."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from project import Project

from pipeline import onnxmodel
from pipeline.errors import ConfigError, MissingInputError, ModelError
from pipeline.quantize import QuantizeReport, calibration_rows, quantize, to_int8
from pipeline.ready import open_split
from serving.session import open_session


def logits(path: Path, rows: np.ndarray) -> np.ndarray:
    return open_session(path).run({"images": rows})["logits"]


def weight_bytes(path: Path) -> int:
    """Of the kernels alone: the files of a tiny network are mostly graph."""
    tensors = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    return sum(tensor.nbytes for tensor in tensors if tensor.ndim > 1 and tensor.size > 50)


@pytest.mark.parametrize(("variant", "times"), [("fp16", 2), ("int8", 4)])
def test_a_variant_is_smaller_and_close(exported: Project, variant: str, times: int) -> None:
    rows = np.array(open_split(exported.data, "test").inputs)
    small, whole = exported.models[variant], exported.models["fp32"]
    wanted, found = logits(whole, rows), logits(small, rows)
    assert weight_bytes(whole) == times * weight_bytes(small)
    assert 0 < np.abs(wanted - found).max() < 0.05 * np.abs(wanted).max()
    assert (wanted.argmax(1) == found.argmax(1)).mean() > 0.98


def test_inputs_outputs_and_metadata_stay(exported: Project) -> None:
    whole = open_session(exported.models["fp32"])
    for variant in ("fp16", "int8"):
        session = open_session(exported.models[variant])
        assert (session.inputs, session.outputs) == (whole.inputs, whole.outputs)
        assert session.metadata == {**whole.metadata, "ferry.variant": variant}


def test_int8_is_qdq_with_signed_weights_per_channel_and_unsigned_activations(
    exported: Project,
) -> None:
    model = onnx.load(exported.models["int8"])
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights, activations = [], []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            activations.append(constants[node.input[2]].data_type)
        if node.op_type == "DequantizeLinear" and node.input[0].endswith("weight_quantized"):
            weights.append(
                (constants[node.input[0]].data_type, list(constants[node.input[1]].dims))
            )
    assert activations
    assert set(activations) == {onnx.TensorProto.UINT8}
    assert {kind for kind, _ in weights} == {onnx.TensorProto.INT8}
    assert [scales for _, scales in weights if scales != [8] and scales != [10]] == []
    assert {domain.domain for domain in model.opset_import} == {""}


def test_the_logits_stay_in_float(exported: Project) -> None:
    model = onnx.load(exported.models["int8"])
    (maker,) = [node for node in model.graph.node if "logits" in node.output]
    assert maker.op_type == "Gemm"


def test_the_same_inputs_give_the_same_bytes(exported: Project, tmp_path: Path) -> None:
    run(exported, exported.models["fp32"], tmp_path)
    for variant in ("fp16", "int8"):
        made = (tmp_path / f"quantized/model.{variant}.onnx").read_bytes()
        assert made == exported.models[variant].read_bytes()


def test_calibration_rows_come_from_training_and_from_the_seed(exported: Project) -> None:
    config = exported.experiment.quantize
    rows = calibration_rows(exported.data, config, "x")
    train = {row.tobytes() for row in np.array(open_split(exported.data, "train").inputs)}
    assert len(rows) == config.calibration_rows
    assert all(row.tobytes() in train for row in rows)
    assert np.array_equal(rows, calibration_rows(exported.data, config, "x"))
    other = calibration_rows(exported.data, replace(config, seed=2), "x")
    assert not np.array_equal(rows, other)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_calibration_methods_run(exported: Project, method: str, tmp_path: Path) -> None:
    config = replace(exported.experiment.quantize, method=method, calibration_rows=128)  # type: ignore[arg-type]
    model = onnxmodel.load(exported.models["fp32"], "ferry export x")
    rows = calibration_rows(exported.data, config, "x")
    path = tmp_path / "m.onnx"
    onnxmodel.save(to_int8(model, rows, config), path)
    test = np.array(open_split(exported.data, "test").inputs)
    same = logits(path, test).argmax(1) == logits(exported.models["fp32"], test).argmax(1)
    assert same.mean() > 0.9


def test_more_rows_than_there_are_is_a_wrong_setting(exported: Project) -> None:
    config = replace(exported.experiment.quantize, calibration_rows=5000)
    with pytest.raises(ConfigError, match=r"experiments\.x\.quantize\.calibration_rows must be at"):
        calibration_rows(exported.data, config, "x")


def run(project: Project, model: Path, folder: Path, **skip: str) -> QuantizeReport:
    config = replace(project.experiment.quantize, skip=skip)
    return quantize(
        model,
        project.data,
        folder / "quantized",
        folder / "quantize.json",
        experiment=replace(project.experiment, quantize=config),
    )


def test_a_variant_that_is_skipped_is_not_made_and_the_metrics_say_why(
    exported: Project, tmp_path: Path
) -> None:
    run(exported, exported.models["fp32"], tmp_path)
    report = run(exported, exported.models["fp32"], tmp_path, int8="nine weights gain nothing")
    assert [path.name for path in (tmp_path / "quantized").iterdir()] == ["model.fp16.onnx"]
    assert list(report.variants) == ["fp16"]
    assert report.calibration_rows == 0
    written = json.loads((tmp_path / "quantize.json").read_text())
    assert written["skipped"] == {"int8": "nine weights gain nothing"}


def test_no_model_and_a_corrupt_model(exported: Project, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="`ferry export digits-cnn` makes it"):
        run(exported, tmp_path / "none.onnx", tmp_path)
    (tmp_path / "model.onnx").write_bytes(exported.models["fp32"].read_bytes()[:1000])
    with pytest.raises(ModelError, match="is not an ONNX file"):
        run(exported, tmp_path / "model.onnx", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_nothing_is_written_to_stdout(
    exported: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(exported, exported.models["fp32"], tmp_path)
    assert capfd.readouterr() == ("", "")
