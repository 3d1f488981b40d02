"""What a person reads of a comparison: tables, the notes beside them and the facts of a page."""

from dataclasses import replace

import sample_metrics

from pipeline.proof.tables import cell_lines, facts, notes, pair_table, parity_table, ulps
from pipeline.records.parity import (
    HostileRow,
    NonFinite,
    OnnxReferenceAnswer,
    PairReport,
    ParityReport,
    SideInfo,
    SkippedCell,
    VariantParity,
)


def report(**variants: VariantParity) -> ParityReport:
    return ParityReport(
        experiment="digits-mlp",
        dataset="digits",
        rows=360,
        passed=all(variant.passed for variant in variants.values()),
        output="logits",
        torch_accuracy=0.9953,
        weights_sha256="ab" * 32,
        sample_rows=360,
        variants=variants,
    )


def test_a_table_has_a_line_for_each_variant() -> None:
    text = parity_table(report(fp32=sample_metrics.variant(), int8=sample_metrics.variant(flips=2)))
    first, _, header, fp32, int8, *_ = text.splitlines()
    assert first == "PyTorch: accuracy 99.53% on 360 rows"
    assert header.split()[:4] == ["variant", "gate", "accuracy", "flips"]
    assert fp32.split()[:5] == ["fp32", "passed", "99.50%", "0", "1"]
    assert int8.split()[3] == "2"
    assert "logits[812, 7]" in int8
    assert "60 dB" in int8


def test_a_provider_that_is_not_there_is_told_once() -> None:
    text = parity_table(report(fp32=sample_metrics.variant(), int8=sample_metrics.variant()))
    assert text.count("cuda: skipped: no <card> here") == 1


def test_an_exporter_that_cannot_is_told_by_its_own_name() -> None:
    made = sample_metrics.variant()
    reason = "TorchScript cannot export the model: no such operator"
    skipped = SkippedCell(exporter="torchscript", provider="cpu", level="", reason=reason)
    text = parity_table(report(fp32=replace(made, cells=(*made.cells, skipped))))
    assert f"torchscript: skipped: {reason}" in text


def test_failures_come_first_with_the_layer() -> None:
    failed = sample_metrics.variant(passed=False, diff=4e-3, flips=1)
    lines = list(notes(failed))
    assert lines[0] == "FAILED: 4.0e-03 at logits[812, 7], limit 1.0e-04"
    assert lines[1].startswith("largest divergence: /conv2/Conv (Conv): x is off by 1.0e-01")
    assert lines[2] == "flips of rows 12: 0.00% to 1.50% of all rows, McNemar p = 1"


def test_many_flips_are_cut_short() -> None:
    lines = list(notes(sample_metrics.variant(flips=9)))
    assert lines[0].startswith("flips of rows 12, 13, 14, 15, 16, …: ")


def test_what_is_remarkable_is_told_and_the_rest_is_not() -> None:
    plain = list(notes(sample_metrics.variant()))
    assert plain == [
        "onnx.reference on 4 rows: 2.0e-06 from this model, 1.0e-06 from the reference"
    ]
    odd = replace(
        sample_metrics.variant(),
        first_nonfinite=NonFinite(node="a/Log", operator="Log", tensor="x", kind="infinity"),
        hostile=(
            HostileRow(
                name="zeros", passed=True, max_abs_diff=0.0, limit=None, message="refused by both"
            ),
            HostileRow(
                name="far", passed=True, max_abs_diff=9.0, limit=None, message="", gated=False
            ),
        ),
        zero_rows="ends the process with SIGABRT",
        onnx_reference=OnnxReferenceAnswer(
            rows=4, to_reference=None, to_model=None, skipped="it lacks Fused"
        ),
    )
    assert list(notes(odd)) == [
        "a/Log (Log) is the first to make infinity, in x",
        "hostile row 'zeros': refused by both",
        "at and beyond the ends of the rows' range, where no limit holds: 'far' 9.0e+00",
        "a batch without rows ends the process with SIGABRT",
        "no answer of onnx.reference: it lacks Fused",
    ]
    message = dict(facts(odd))
    assert message["onnx.reference"] == "no answer: it lacks Fused"
    assert message["batch without rows"] == "ends the process with SIGABRT"


def test_a_reconstruction_has_no_columns_of_classes() -> None:
    none = {"accuracy": None, "flips": None, "near_ties": None, "flip_rate": None}
    made = replace(
        sample_metrics.variant(),
        accuracy_loss=None,
        mcnemar_p=None,
        max_probability_diff=None,
        snr_db=None,
        kernel_snr_db=None,
        **none,  # type: ignore[arg-type]
    )
    header, line = parity_table(report(fp32=made)).splitlines()[2:4]
    assert header.split() == [
        "variant",
        "gate",
        "max",
        "diff",
        "at",
        "of",
        "scale",
        "SNR",
        "between",
        "batches",
    ]
    assert line.split()[:3] == ["fp32", "passed", "3.1e-06"]
    assert "exact" in line
    assert "real flips (95 %)" not in dict(facts(made))
    assert "McNemar p" not in dict(facts(made))


def test_two_models_are_one_line_with_their_rows() -> None:
    made = PairReport(
        reference=SideInfo(name="a.onnx", sha256="ab" * 32),
        other=SideInfo(name="b.onnx@cuda", sha256="cd" * 32),
        data="rows.npz",
        rows=360,
        shared={},
        passed=True,
        result=sample_metrics.variant(),
    )
    text = pair_table(made)
    assert text.startswith("a.onnx, accuracy 99.53%, on 360 rows of rows.npz\n")
    assert "b.onnx@cuda  passed" in text


def test_every_cell_is_a_line() -> None:
    run, skipped = cell_lines(sample_metrics.variant(flips=2))
    assert run[:6] == ("dynamo", "cpu", "all", "256", "360", "passed")
    assert run[6:] == ("3.1e-06", "3.1e-07", "60 dB", "2", "1")
    assert skipped == ("dynamo", "cuda", "any", "–", "–", "skipped", "no <card> here")


def test_the_histogram_is_of_the_worst_way_that_ships() -> None:
    made = sample_metrics.variant()
    worse = sample_metrics.cell(diff=1.0, flips=0)
    other = replace(worse, outputs=(replace(worse.outputs[0], ulps=(1, 2)), worse.outputs[1]))
    second = replace(other, exporter="torchscript")
    sampled = replace(other, rows=100)
    assert ulps(report(fp32=made)) == {"fp32": (1000, 2000, 500, 100)}
    assert ulps(report(fp32=replace(made, cells=(*made.cells, other)))) == {"fp32": (1, 2)}
    beside = replace(made, cells=(*made.cells, second, sampled))
    assert ulps(report(fp32=beside)) == {"fp32": (1000, 2000, 500, 100)}
