"""The whole comparison of two models: what passes, what fails and in which words."""

import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import proof_models as small
import pytest
from click.testing import CliRunner, Result
from small_models import image_net, rows_for

from pipeline.cli import ferry
from pipeline.config.experiment import GateConfig
from pipeline.errors import ParityError
from pipeline.proof.differences import DecisionRule
from pipeline.proof.measure import keep, measure, progress
from pipeline.proof.pair import compare, limits_of_pair, refuse_failures
from pipeline.proof.prove import ParityPlan, Way, asked_rows, prove
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide
from pipeline.proof.tables import cell_lines, facts, pair_table
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import parse
from pipeline.records import read
from pipeline.records.parity import PairReport, SkippedCell
from serving.errors import InputError
from serving.files import write_json
from serving.runtime.tensors import Array, TensorInfo

LIMITS = GateConfig(
    max_abs_diff=1e-4,
    max_scaled_diff=None,
    max_probability_diff=1e-4,
    min_snr_db=None,
    min_kernel_snr_db=None,
    flips=0,
    accuracy_loss=0.0,
    error_increase=None,
    batch_diff=1e-4,
)
EXACT = DecisionRule(near=0.0)
LOOSE = replace(LIMITS, max_abs_diff=1e3, max_probability_diff=None, flips=1000)


def pair(
    reference: ModelSide, other: ModelSide, rows: Rows | None = None, limits: GateConfig = LIMITS
) -> PairReport:
    return compare(
        reference, other, rows or small.rows(), limits=limits, batch_sizes=(1, 7, 64), hostile=False
    )


BAR = progress("rows", 1)


def test_the_same_model_passes_at_every_batch_size() -> None:
    side = small.side(small.linear())
    report = compare(side, side.at("none"), small.rows(), limits=LIMITS, batch_sizes=(1, 7, 64))
    assert report.passed
    assert report.rows == 300
    result = report.result
    assert [cell.batch_size for cell in result.run] == [1, 7, 64]
    assert (result.flips, result.near_ties) == (0, 0)
    assert result.accuracy is not None
    assert result.accuracy_loss == 0
    assert result.mcnemar_p == 1
    assert result.zero_rows == "answered 0 rows"
    assert len(result.hostile) == 7
    assert result.first_divergence is None


def test_planted_flips_are_counted_named_and_failed() -> None:
    """A bias on one class flips the rows that numpy says it does."""
    bias = np.array([0, 0, 0.5, 0], np.float32)
    rows = small.rows()
    logits = rows.inputs["features"] @ small.weights()
    expected = np.flatnonzero(logits.argmax(1) != (logits + bias).argmax(1))
    report = pair(small.side(small.linear()), small.side(small.linear(bias=bias)))
    result = report.result
    assert not report.passed
    assert result.flips == len(expected) > 5
    named = [flip.row for flip in result.run[0].decisions[0].named]
    assert named == expected[:20].tolist()
    assert any(message.startswith("5.0e-01 at logits[") for message in result.failures)
    assert f"{len(expected)} flips, limit 0" in result.failures
    assert result.first_divergence is not None
    assert result.first_divergence.node == "dense/Gemm"
    assert result.flip_rate is not None
    assert result.flip_rate.low < len(expected) / 300 < result.flip_rate.high


def test_a_wider_limit_makes_no_more_near_ties() -> None:
    bias = np.array([0, 0, 0.5, 0], np.float32)
    sides = small.side(small.linear()), small.side(small.linear(bias=bias))
    strict, loose = pair(*sides), pair(*sides, limits=LOOSE)
    assert loose.result.flips == strict.result.flips
    # But what a limit of the gate on accuracy says still holds.
    assert loose.passed == (loose.result.accuracy_loss <= 0)


def test_what_is_no_number_fails_and_its_maker_is_named(tmp_path: Path) -> None:
    side = small.side(small.logarithm())
    report = pair(side, side.at("basic"), limits=replace(LOOSE, accuracy_loss=None))
    assert not report.passed
    (message,) = report.result.failures
    assert "values are NaN or infinite, first at values[" in message
    assert report.result.first_nonfinite is not None
    assert report.result.first_nonfinite.node == "main/Log"
    with pytest.raises(ParityError, match=r"main/Log \(Log\) is the first to make NaN"):
        refuse_failures({"b.onnx": report.result}, None)
    write_json(tmp_path / "report.json", report)
    assert read(PairReport, tmp_path / "report.json", "ferry parity") == report


def test_models_without_classes_decide_nothing() -> None:
    side = small.side(small.two_inputs())
    generator = np.random.default_rng(0)
    inputs = {
        "ids": generator.integers(0, 4, 50),
        "offsets": generator.random((50, small.FEATURES), dtype=np.float32),
    }
    report = pair(side, side.at("none"), Rows(name="two", inputs=inputs, labels=None))
    assert report.passed
    assert report.result.flips is None
    assert report.result.accuracy is None
    assert [one.output for one in report.result.run[0].outputs] == ["sum", "odd"]
    assert "–" in pair_table(report)


def test_an_answer_that_depends_on_its_batch_fails() -> None:
    side = small.side(small.less_the_mean())
    report = pair(side, side, limits=LOOSE)
    assert not report.passed
    message = [failure for failure in report.result.failures if "limit 1.0e-04" in failure]
    assert len(message) == 1
    assert "in batches of 1, 7, 64" in message[0] or "alone and" in message[0]


@dataclass(frozen=True)
class Wide:
    """A side with an answer of a thousand values a row, and a count of the rows it was asked."""

    asked: list[int]
    name: str = "wide"
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    sha256: str = ""

    def answer(self, feeds: Mapping[str, np.ndarray], _batch_size: int) -> dict[str, np.ndarray]:
        features = feeds["features"]
        self.asked.append(len(features))
        return {"values": np.repeat(features, 1000 // small.FEATURES, axis=1)}


def test_answers_of_another_shape_are_refused() -> None:
    class Narrow(Wide):
        def answer(self, feeds: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
            return {"values": super().answer(feeds, size)["values"][:, :10]}

    kept = keep(Wide([]), small.rows(9, labelled=False), EXACT)
    with pytest.raises(InputError) as caught:
        measure(kept, Narrow([], name="narrow"), np.arange(9), (4,), EXACT, BAR)
    assert str(caught.value) == (
        "narrow answers values as [9, 10], the other side as [9, 996]: they cannot be compared"
    )


def test_the_memory_does_not_grow_with_the_rows() -> None:
    """40,000 rows answer 160 MB a side; a chunk of them is what is held."""
    side, rows = Wide([]), small.rows(40_000, labelled=False)
    tracemalloc.start()
    kept = keep(side, rows, EXACT)
    found, spread = measure(kept, side, np.arange(40_000), (64,), EXACT, BAR)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (values,) = found[64].outputs()
    assert values.values == 40_000 * 996
    assert values.snr_db is None
    assert spread.max_abs_diff == 0
    assert max(side.asked) <= 2048
    assert peak < 130 * 2**20


def test_a_sample_keeps_the_numbers_of_its_rows() -> None:
    rows = small.rows(200)
    reference = small.side(small.linear())
    kept = keep(reference, rows, EXACT)
    off = small.side(small.linear(bias=np.full(small.CLASSES, 3, np.float32)))
    numbers = np.array([5, 90, 199])
    found, _ = measure(kept, off, numbers, (2,), EXACT, BAR)
    logits = found[2].outputs()[0]
    assert logits.max_abs_at[0] in numbers
    assert logits.max_abs_diff == pytest.approx(3, abs=1e-5)


def plan(rows: int, sample: int, **changes: object) -> ParityPlan:
    made = ParityPlan(
        limits=LIMITS,
        rule=DecisionRule(near=2e-4),
        batch_sizes=(1, 7, 64),
        levels=("none", "all"),
        sample=np.arange(sample),
        onnx_reference_rows=2,
        hostile=True,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_what_ships_is_asked_all_and_the_rest_a_sample() -> None:
    side, rows = small.side(small.linear()), small.rows(150)
    kept = keep(side, rows, EXACT)
    ways = [
        Way(exporter="dynamo", provider="cpu", side=side),
        Way(exporter="dynamo", provider="cuda", side="no card"),
        Way(exporter="torchscript", provider="cpu", side=side),
    ]
    result = prove(side, kept, ways, plan(150, 20), "side")
    cells = {(cell.exporter, cell.level, cell.batch_size): cell.rows for cell in result.run}
    assert cells == {
        ("dynamo", "all", 1): 150,
        ("dynamo", "all", 7): 150,
        ("dynamo", "all", 64): 150,
        ("dynamo", "none", 64): 150,
        ("dynamo", "none", 1): 20,
        ("dynamo", "none", 7): 20,
        ("torchscript", "all", 64): 150,
        ("torchscript", "all", 1): 20,
        ("torchscript", "all", 7): 20,
        ("torchscript", "none", 64): 20,
        ("torchscript", "none", 1): 20,
        ("torchscript", "none", 7): 20,
    }
    (skipped,) = [cell for cell in result.cells if isinstance(cell, SkippedCell)]
    assert (skipped.provider, skipped.reason) == ("cuda", "no card")
    assert result.passed
    asked = sum(cell.rows for cell in result.run) + 2 * 20
    assert asked_rows(ways, plan(150, 20), 150) == asked, "the sample at the largest size as well"
    assert len(cell_lines(result)) == 13


def test_a_way_that_does_not_ship_fails_alone() -> None:
    side, rows = small.side(small.linear()), small.rows(100)
    off = small.side(small.linear(bias=np.full(small.CLASSES, 3, np.float32)))
    ways = [
        Way(exporter="dynamo", provider="cpu", side=side),
        Way(exporter="torchscript", provider="cpu", side=off),
    ]
    result = prove(side, keep(side, rows, EXACT), ways, plan(100, 100), "side")
    assert result.passed
    assert result.max_abs_diff < 1e-4
    failed = [cell for cell in result.run if not cell.passed]
    assert {cell.exporter for cell in failed} == {"torchscript"}


def test_noise_has_a_limit_of_its_own() -> None:
    bias = np.full(small.CLASSES, 0.02, np.float32)
    limits = replace(LOOSE, min_snr_db=60.0, accuracy_loss=None)
    report = pair(small.side(small.linear()), small.side(small.linear(bias=bias)), limits=limits)
    (message,) = report.result.failures
    assert message.endswith(" dB of logits over the noise, limit 60 dB")
    assert dict(facts(report.result))["signal to noise"].endswith(" dB")


def test_a_hostile_row_alone_is_explained_by_itself() -> None:
    rows, linear = small.rows(), small.side(small.linear())
    largest = float(np.abs(linear.answer(rows.inputs, 64)["logits"]).max())
    report = compare(
        linear,
        small.side(small.capped(largest)),
        rows,
        limits=LIMITS,
        batch_sizes=(64,),
    )
    (message,) = report.result.failures
    assert "at the hostile row 'all at their largest', limit " in message
    assert report.result.first_divergence is not None
    # The value that the reference knows too.
    assert report.result.first_divergence.node == "main/Clip"


# Limits in parts of an output's own scale


def scaled(
    reference: ModelSide, other: ModelSide, limit: float | None = None, rows: int = 60
) -> PairReport:
    return pair(reference, other, small.rows(rows, labelled=False), limits_of_pair(limit))


def tiny(factor: float) -> ModelSide:
    return small.side(small.linear(np.float32(factor) * small.weights()))


def test_a_model_that_is_minus_another_fails_however_small_its_outputs_are() -> None:
    result = scaled(tiny(1e-6), tiny(-1e-6)).result
    assert result.max_abs_diff < 1e-4
    assert [one.split()[1:4] for one in result.failures] == [
        ["of", "its", "scale"],
        ["flips,", "limit", "0"],
    ]
    assert (result.flips, result.near_ties) == (60, 0)
    assert scaled(tiny(1e-6), tiny(1e-6 * (1 + 1e-6))).passed


def test_what_the_user_says_is_an_absolute_limit() -> None:
    result = scaled(tiny(1e-6), tiny(-1e-6), 1e-4).result
    assert result.failures == ("60 flips, limit 0",), "near-ties are not a matter of the limit"
    thousands = small.weights() * np.float32(3e3)
    off = thousands * np.float32(1 + 1e-6)
    sides = [small.side(small.linear(one)) for one in (thousands, off)]
    assert scaled(*sides).passed
    assert "at logits[" in scaled(*sides, 1e-4).result.failures[0]


def test_many_classes_of_other_weights_are_real_flips() -> None:
    rng = np.random.default_rng(6)
    one, other = (
        small.side(small.wide(rng.standard_normal((small.FEATURES, 30_000)) / 4)) for _ in range(2)
    )
    result = scaled(one, other, rows=9).result
    assert result.max_abs_diff < 1e-2
    assert (result.flips, result.near_ties) == (9, 0)
    assert "of its scale at probabilities[" in result.failures[0]
    assert scaled(one, one.at("none"), rows=9).passed


def test_tiny_answers_that_depend_on_their_batch_fail_too() -> None:
    side = small.side(small.less_the_mean(1e-6))
    result = scaled(side, side).result
    assert result.max_abs_diff < 1e-4
    assert any(" of an output's scale " in message for message in result.failures)


# The command


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(ferry, ["parity", *arguments])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.onnx").write_bytes(small.linear().SerializeToString())
    bias = np.array([0, 0, 0.5, 0], np.float32)
    (tmp_path / "b.onnx").write_bytes(small.linear(bias=bias).SerializeToString())
    rows = small.rows()
    np.savez(tmp_path / "rows.npz", **rows.inputs, labels=rows.labels)
    return tmp_path


def ask(files: Path, other: str, *options: str) -> Result:
    """Compare a.onnx with another one on the rows beside them."""
    sides = (str(files / "a.onnx"), str(files / other))
    return invoke(*sides, "--data", str(files / "rows.npz"), *options)


def test_two_files_that_agree_exit_with_0(files: Path) -> None:
    report = files / "report.json"
    found = ask(files, "a.onnx@cpu", "--output", str(report), "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == json.loads(report.read_text())
    result = json.loads(found.stdout)["result"]
    assert result["batch_sizes"] == [1, 7, 256]
    assert result["hostile"]


def test_two_files_that_do_not_exit_with_1_and_the_whole_table(files: Path) -> None:
    report = files / "report.json"
    found = ask(files, "b.onnx", "--output", str(report))
    assert found.exit_code == 1
    assert "FAILED: " in found.stdout
    assert "dense/Gemm" in found.stdout
    assert f"first divergence at dense/Gemm; see {report}" in found.stderr
    assert not read(PairReport, report, "ferry parity").passed


def test_limits_are_options(files: Path) -> None:
    limits = ("--limit", "0.6", "--flips", "300", "--batch-size", "5", "--explain")
    found = ask(files, "b.onnx", *limits)
    assert found.exit_code == 0, found.output
    assert "largest divergence: dense/Gemm (Gemm)" in found.stdout
    assert "McNemar p" in found.stdout


def test_rows_that_no_data_holds_can_be_left_out(files: Path) -> None:
    result = json.loads(ask(files, "a.onnx", "--no-hostile", "--json").stdout)["result"]
    assert result["hostile"] == []
    assert result["zero_rows"] == "not asked"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.onnx", "b.onnx"), "got 2 (a.onnx, b.onnx) and no --data"),
        (("mnist-cnn", "--data", "mnist:test"), "got 1 (mnist-cnn) and --data"),
        (("a", "b", "c", "--data", "x.npy"), "give one experiment, or two models and --data ROWS"),
        ((), "Missing argument"),
    ],
)
def test_what_makes_no_sense_exits_with_2(arguments: tuple[str, ...], message: str) -> None:
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert message in found.stderr


def test_kernels_that_overflow_are_told_from_the_graph_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a processor without VNNI, where the optimized kernels alone are off."""
    original = image_net()
    quantizer = Quantizer(original, rows_for(original, 16))
    int8 = small.side(quantizer.apply(parse("static-u8s8")))
    loose = replace(limits_of_pair(1e3, None), batch_diff=1e3)
    rows = rows_for(original, 64)
    reduced = small.side(quantizer.apply(parse("static-u8s8-reduced")))
    assert pair(reduced, reduced, rows, loose).passed
    written = int8.at("none")
    off = small.side(quantizer.apply(parse("weights-int8")))
    answer = ModelSide.answer

    def overflowing(side: ModelSide, *asked: Any) -> dict[str, Array]:
        return answer(off if side is int8 else side, *asked)

    monkeypatch.setattr(ModelSide, "answer", overflowing)
    monkeypatch.setattr("pipeline.proof.prove.overflows", lambda: True)
    result = pair(written, int8, rows, loose).result
    assert not result.passed
    assert "between optimized kernels and the graph as written, limit 40 dB" in result.failures[0]
    assert "weights of int8 go beyond ±64, and sums of their products overflow" in result.notes[0]
