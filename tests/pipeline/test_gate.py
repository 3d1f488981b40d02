"""The gate and the summary: which quantity fails where, in which words, and what is left alone."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import sample_metrics
from sample_metrics import cell

from pipeline.config.experiment import GateConfig, Params
from pipeline.proof.gate import (
    QUANTITIES,
    Evidence,
    accuracy_loss,
    failures,
    failures_as_shipped,
    probabilities,
    values,
    worst_of,
)
from pipeline.records.parity import BatchDifference, Cell, TargetErrors, VariantParity

LOGIT = 50
"""About the largest that the experiments give."""
NOTHING = GateConfig.only(batch_diff=1e-4)
ROWS = 360


def test_half_precision_may_round_otherwise_in_another_batch(params: Params) -> None:
    step = float(np.spacing(np.float16(LOGIT)))
    for experiment in params.experiments.values():
        limit = experiment.parity.fp16.batch_diff
        assert limit is None or limit >= step, experiment.name


def outside(cells: Sequence[Cell], rows: int, limits: GateConfig) -> list[str]:
    return list(failures(Evidence(cells=cells, rows=rows), limits))


def describe(found: Cell, rows: int = ROWS, **limits: float) -> list[str]:
    return outside([found], rows, replace(NOTHING, **limits))


def test_a_gate_that_looks_at_nothing_is_met_by_anything() -> None:
    assert describe(cell(diff=1e6, flips=360)) == []


@pytest.mark.parametrize(
    ("name", "measured", "limit", "line"),
    [
        ("max_abs_diff", 2e-3, 1e-4, "2.0e-03 at logits[812, 7], limit 1.0e-04"),
        ("max_scaled_diff", 4e-4, 1e-4, "4.0e-04 of its scale at logits[812, 7], limit 1.0e-04"),
        ("max_probability_diff", 2e-4, 1e-5, "2.0e-04 at probabilities[812, 7], limit 1.0e-05"),
        ("min_snr_db", 60.0, 70.0, "60 dB of logits over the noise, limit 70 dB"),
        ("flips", 3, 2, "3 flips, limit 2"),
        ("accuracy_loss", 0.03, 0.02, "0.03 points of accuracy lost, limit 0.02"),
        ("error_increase", 25.0, 2.0, "25.00 % more mean squared error, limit 2.00 %"),
    ],
)
def test_each_quantity_fails_alone_and_is_met_at_its_limit(
    name: str, measured: float, limit: float, line: str
) -> None:
    found = replace(cell(diff=2e-3, flips=3), errors=TargetErrors(reference=0.5, other=0.625))
    assert describe(found, **{name: limit}) == [line]
    assert describe(found, **{name: measured}) == []


def test_no_number_is_beyond_every_limit() -> None:
    found = cell(diff=1e-9, flips=0)
    logits = replace(found.outputs[0], nonfinite=4, max_abs_at=(17, 2))
    broken = replace(found, outputs=(logits, found.outputs[1]))
    assert describe(broken) == ["4 values are NaN or infinite, first at logits[17, 2]"]


def test_a_loss_of_accuracy_counts_on_the_whole_set_alone() -> None:
    sample = replace(cell(diff=1e-9, flips=0), rows=100)
    assert describe(sample, accuracy_loss=0.0) == []
    assert describe(sample, rows=100, accuracy_loss=0.0) != []


def test_accuracy_that_is_not_known_is_not_lost() -> None:
    found = cell(diff=1e-9, flips=0)
    unknown = replace(found.decisions[0], accuracy=None, reference_accuracy=None)
    assert accuracy_loss(replace(found, decisions=(unknown,))) is None
    assert accuracy_loss(replace(found, decisions=())) is None
    assert accuracy_loss(found) == pytest.approx(0.03)


def test_a_gain_is_a_negative_loss() -> None:
    found = cell(diff=1e-9, flips=0)
    better = replace(found, decisions=(replace(found.decisions[0], accuracy=0.9963),))
    assert accuracy_loss(better) == pytest.approx(-0.1)
    assert describe(better, accuracy_loss=0.0) == []


def test_the_worst_cell_is_the_one_that_is_named() -> None:
    mild = cell(diff=2e-4, flips=1)
    bad = replace(cell(diff=5e-4, flips=9), level="basic", provider="cuda")
    limits = replace(NOTHING, max_abs_diff=1e-4, flips=0)
    assert outside([mild, bad], ROWS, limits) == [
        "5.0e-04 at logits[812, 7] (cuda, optimization basic), limit 1.0e-04",
        "9 flips (cuda, optimization basic), limit 0",
    ]


def test_outputs_are_told_apart() -> None:
    cells = [cell(diff=1e-3, flips=0), cell(diff=2e-3, flips=0)]
    assert {one.output for _, one in values(cells)} == {"logits"}
    assert [one.max_abs_diff for _, one in probabilities(cells)] == [1e-4, 2e-4]


def evidence(*cells: Cell, batches: Sequence[BatchDifference] = ()) -> Evidence:
    return Evidence(cells=cells, rows=ROWS, batches=batches)


def test_a_summary_is_the_worst_of_every_quantity() -> None:
    few = cell(diff=9e-3, flips=1, size=1)
    many = cell(diff=1e-3, flips=7)
    found = worst_of(evidence(few, many))
    assert found["max_abs_diff"] == 9e-3
    assert found["max_probability_diff"] == pytest.approx(9e-4)
    assert found["flips"] == 7
    assert found["snr_db"] == 60


def test_what_fails_as_it_ships_hides_what_fails_otherwise() -> None:
    """One line is enough, and the plain one is the one to look at."""
    limits = replace(NOTHING, max_abs_diff=1e-4)
    worse = replace(cell(diff=9e-4, flips=0), level="none")
    found = failures_as_shipped(evidence(cell(diff=2e-4, flips=0), worse), limits)
    assert found == ["2.0e-04 at logits[812, 7], limit 1.0e-04"]
    (line,) = failures_as_shipped(evidence(cell(diff=1e-6, flips=0), worse), limits)
    assert "(optimization none)" in line


def test_optimized_kernels_that_answer_otherwise_fail_whatever_else_is_right() -> None:
    right = cell(diff=1e-9, flips=0)
    apart = replace(right.outputs[0], snr_db=19.4)
    limits = replace(NOTHING, min_kernel_snr_db=40)
    found = Evidence(cells=[right], rows=ROWS, kernels=[apart, right.outputs[1]])
    assert failures_as_shipped(found, limits) == [
        "19 dB of logits between optimized kernels and the graph as written, limit 40 dB"
    ]
    assert worst_of(found)["kernel_snr_db"] == 19.4
    assert worst_of(evidence(right))["kernel_snr_db"] is None


def test_a_difference_between_batches_fails_too() -> None:
    batches = (
        BatchDifference(
            max_abs_diff=2e-4, max_scaled_diff=4e-5, where="alone and first of 7", rows=16
        ),
    )
    found = evidence(cell(diff=1e-6, flips=0), batches=batches)
    assert failures_as_shipped(found, NOTHING) == ["2.0e-04 alone and first of 7, limit 1.0e-04"]
    assert worst_of(found)["batch_diff"] == 2e-4


def test_a_model_without_classes_has_no_decisions_to_sum_up() -> None:
    found = worst_of(evidence(replace(cell(diff=1e-6, flips=0), decisions=())))
    names = ("flips", "near_ties", "flip_rate", "accuracy", "accuracy_loss", "mcnemar_p")
    assert {found[name] for name in names} == {None}


def test_a_model_of_probabilities_alone_is_summed_up_by_them() -> None:
    whole = cell(diff=1e-3, flips=0)
    found = worst_of(evidence(replace(whole, outputs=(whole.outputs[1],))))
    assert found["max_abs_output"] == "probabilities"
    assert found["max_abs_diff"] == found["max_probability_diff"] == 1e-4


def test_what_is_no_number_is_the_place_that_is_told() -> None:
    whole = cell(diff=1e-3, flips=0)
    broken = replace(whole.outputs[1], nonfinite=2, max_abs_at=(5, 1))
    found = worst_of(evidence(replace(whole, outputs=(whole.outputs[0], broken))))
    assert (found["max_abs_output"], found["max_abs_at"]) == ("probabilities", (5, 1))
    assert found["nonfinite"] == 2


def test_the_samples_of_other_tests_are_such_a_summary() -> None:
    made = sample_metrics.variant(passed=False, diff=4e-3, flips=1)
    assert outside([made.cells[0]], ROWS, made.limits) == list(made.failures)  # type: ignore[list-item]


def test_every_limit_of_a_gate_is_that_of_a_quantity() -> None:
    """A limit that nothing looks at would be met by anything."""
    assert {one.limit for one in QUANTITIES} == {one.name for one in fields(GateConfig)}
    assert {one.name for one in QUANTITIES} <= {one.name for one in fields(VariantParity)}


def test_flips_of_another_table_name_it() -> None:
    found = cell(diff=1e-9, flips=0)
    other = replace(found.decisions[0], output="hidden.0", flips=3)
    both = replace(found, decisions=(*found.decisions, other))
    assert describe(both, flips=2) == ["3 flips of hidden.0, limit 2"]
