"""Inputs that are the same for all rows: predict, parity, quantize and bundle take them alike."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_onnx import FLOAT, model, node

from pipeline.config.experiment import GateConfig, MinSpeedup, QuantizeConfig
from pipeline.config.params import stage_defaults
from pipeline.proof.pair import compare
from pipeline.proof.rows import Rows, open_rows
from pipeline.proof.sides import ModelSide, model_side, open_side
from pipeline.stages.bundle import bundle_file
from pipeline.stages.quantize import quantize_file
from serving import open_model
from serving.batch.predict import predict
from serving.batch.run import PredictOptions
from serving.bundles.verify import verify
from serving.errors import FerryError
from serving.files import write_json
from serving.runtime.session import open_session

SHARED = {"rate": "16", "state": "0.5"}
ROWS = np.random.default_rng(3).normal(size=(24, 8)).astype(np.float32)
LIMITS = GateConfig.only(max_abs_diff=1e-5, batch_diff=1e-5, flips=0)
WEIGHT = np.random.default_rng(4).normal(size=(8, 4)).astype(np.float32)


def detector(factor: float = 1.0, batch: str | int = "batch") -> onnx.ModelProto:
    """As models of streams are: rows, a state with the rows on its second axis, and a rate."""
    nodes = [
        node("MatMul", "rows weight", "seen"),
        node("ReduceSum", "state first", "before", keepdims=0),
        node("Add", "seen before", "sum"),
        node("Cast", "rate", "divisor", to=FLOAT),
        node("Div", "sum divisor", "answer"),
        node("Unsqueeze", "answer first", "one"),
        node("Concat", "one one", "next", axis=0),
    ]
    inputs = {
        "rows": (FLOAT, [batch, 8]),
        "state": (FLOAT, [2, batch, 4]),
        "rate": (TensorProto.INT64, []),
    }
    outputs = {"answer": (FLOAT, [batch, 4]), "next": (FLOAT, [2, batch, 4])}
    return model(nodes, inputs, outputs, {"weight": factor * WEIGHT, "first": np.array([0])})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "detector.onnx"
    path.write_bytes(detector().SerializeToString())
    np.save(tmp_path / "rows.npy", ROWS)
    return path


def side(path: Path, shared: dict[str, str] | None = SHARED) -> ModelSide:
    found = open_side(str(path), pytest.fail, shared)
    assert isinstance(found, ModelSide)
    return found


def rows_of(path: Path) -> Rows:
    return open_rows(str(path.with_name("rows.npy")), side(path).inputs)


def answered() -> np.ndarray:
    """By numpy: the state is 0.5 in both layers."""
    return (ROWS @ WEIGHT + 1.0) / 16


def test_predict_feeds_them_and_leaves_the_next_state_out(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = path.with_name("out.csv")
    options = PredictOptions(shared=SHARED, batch_rows=5, threads=1)
    predict(path, [path.with_name("rows.npy")], output=output, options=options)
    lines = list(csv.DictReader(output.open(encoding="utf-8")))
    assert list(lines[0]) == ["id", "answer"]
    found = np.array([np.fromstring(line["answer"].strip("[]"), sep=",") for line in lines])
    np.testing.assert_allclose(found, answered(), rtol=1e-4, atol=1e-6)
    assert "output next is float32 [2, 'batch', 4], not one answer a row" in capsys.readouterr().err


def test_a_model_of_one_row_at_a_time(path: Path) -> None:
    path.write_bytes(detector(batch=1).SerializeToString())
    found = open_model(path, shared=SHARED).answers(ROWS)
    assert list(found) == ["answer"]
    np.testing.assert_allclose(found["answer"], answered(), atol=1e-6)


def test_a_run_with_another_value_is_another_run(path: Path) -> None:
    rows, output = path.with_name("rows.npy"), path.with_name("out.csv")
    predict(path, [rows], output=output, options=PredictOptions(shared=SHARED))
    with pytest.raises(FerryError, match="--overwrite begins again"):
        predict(path, [rows], output=output, options=PredictOptions(shared=SHARED | {"rate": "8"}))


def test_parity_and_its_explanation_feed_them(path: Path) -> None:
    other = path.with_name("other.onnx")
    other.write_bytes(detector(1.1).SerializeToString())
    report = compare(side(path), side(other), rows_of(path), limits=LIMITS, batch_sizes=(1, 7))
    result = report.result
    assert result.first_divergence is not None
    assert result.first_divergence.node == "MatMul/seen"
    assert result.zero_rows == "answered 0 rows"
    assert result.notes[0].startswith("output next is float32 [2, 'batch', 4], not one answer")
    assert result.onnx_reference.to_model == pytest.approx(0, abs=1e-6)


def test_a_bundle_keeps_what_was_proven_and_its_runner_feeds_it(path: Path) -> None:
    proof, made = path.with_suffix(".json"), path.with_name("made")
    report = compare(
        side(path), side(path).at("none"), rows_of(path), limits=LIMITS, batch_sizes=(7,)
    )
    assert (report.passed, report.shared) == (True, SHARED)
    write_json(proof, report)
    bundle_file(path, made, rows=str(path.with_name("rows.npy")), parity=proof, golden_rows=4)
    assert verify(made).passed
    np.testing.assert_allclose(open_model(made).answers(ROWS)["answer"], answered(), atol=1e-6)
    assert side(made, None).session.given == SHARED
    done = subprocess.run(
        [sys.executable, "-I", "-B", "made/runner.py", "predict", "rows.npy"],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = list(csv.DictReader(done.stdout.splitlines()))
    found = np.array([np.fromstring(line["answer"].strip("[]"), sep=",") for line in lines])
    np.testing.assert_allclose(found, answered(), atol=1e-6)


def test_quantize_calibrates_and_judges_with_them(path: Path) -> None:
    usual = stage_defaults("quantize", QuantizeConfig)
    config = replace(
        usual,
        recipes=("static-u8s8-reduced",),
        seconds=0.01,
        batch_sizes=(1,),
        error_increase=100.0,
        min_speedup=MinSpeedup(fp16=1e-3, int8=1e-3),
        goal="speed",
    )
    rows, folder = str(path.with_name("rows.npy")), path.with_name("small")
    report = quantize_file(
        path, rows, folder, config=config, variants=("int8",), min_snr_db={}, shared=SHARED
    )
    (tried,) = report.searches["int8"].tries
    assert "cannot be applied" not in tried.verdict
    assert tried.quality is not None
    assert tried.quality.loss is not None


WRONG = {
    "no input": ({"pitch": "1"}, "has no input 'pitch' to share; it has rows, state, rate"),
    "no number": ({"rate": "fast"}, "'fast' does not fit its input 'rate', int64 []"),
    "no whole number": ({"rate": "1.5"}, "int64 []: it is no whole number"),
    "another shape": ({"state": "[1, 2]"}, "does not fit its input 'state', float32 [2, batch, 4]"),
    "all": ({"rows": "0", **SHARED}, "one must be the rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(path: Path, name: str) -> None:
    shared, message = WRONG[name]
    with pytest.raises(FerryError) as caught:
        open_session(path, shared=shared)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_without_them_every_command_says_what_to_do(path: Path) -> None:
    rows = str(path.with_name("rows.npy"))
    usual = stage_defaults("quantize", QuantizeConfig)
    folder = path.with_name("small")
    for refuse in (
        lambda: open_model(path),
        lambda: model_side("net", path.read_bytes()),
        lambda: quantize_file(path, rows, folder, config=usual, variants=("int8",), min_snr_db={}),
    ):
        with pytest.raises(FerryError, match="--shared NAME=VALUE gives an input one value"):
            refuse()


def test_values_may_be_lists_and_texts() -> None:
    nodes = [
        node("Mul", "rows scale", "scaled"),
        node("Identity", "word", "said"),
    ]
    inputs = {
        "rows": (FLOAT, ["n", 2]),
        "scale": (FLOAT, [2]),
        "word": (TensorProto.STRING, ["n"]),
    }
    outputs = {"scaled": (FLOAT, ["n", 2]), "said": (TensorProto.STRING, ["n"])}
    content = model(nodes, inputs, outputs).SerializeToString()
    session = open_session(content, shared={"scale": "[1, 10]", "word": "hum"})
    found = session.run({"rows": np.ones((3, 2), np.float32)})
    assert found["scaled"].tolist() == [[1, 10]] * 3
    assert found["said"].tolist() == ["hum"] * 3
