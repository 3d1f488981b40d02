"""Every planted fault is named at the node that it was planted in."""

from math import isfinite

import pytest
from foreign_faults import faults
from planted_faults import FAULTS, INT8_LIMIT, PYTORCH, SOUND, Fault, cases, planted, subject

from pipeline.proof.tracing.divergence import first_divergence

KINDS = 12
"""Of faults, at least."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "against"), [pytest.param(*one, id=f"{one[0].kind} - {one[1]}") for one in cases()]
)
def test_a_planted_fault_is_named_at_its_node(fault: Fault, against: str) -> None:
    case = planted(fault, against)
    found = first_divergence(case.reference, case.model, case.feeds, case.limit)
    assert found is not None
    assert found.node == case.node
    assert found.reference == (against if against == PYTORCH else "unoptimized ONNX Runtime")
    if found.relative_diff is not None:
        # What it reads is less far off than what it makes.
        assert isfinite(found.relative_diff)
        assert (found.input_relative_diff or 0.0) < found.relative_diff
    assert case.node in found.describe()


@pytest.mark.parametrize("name", sorted({fault.subject for fault in FAULTS}))
def test_a_sound_model_has_no_node_beyond_its_limit(name: str) -> None:
    sound = subject(name)
    found = first_divergence(sound.graph, sound.model, sound.feeds, sound.limit)
    if found is not None:
        # Rounding somewhere: the largest is named, as nothing is beyond the limit.
        assert found.relative_diff is not None
        assert found.relative_diff < (INT8_LIMIT if name == "int8" else 1e-5)
    assert first_divergence(sound.model, sound.model, sound.feeds, sound.limit) is None


def test_there_are_faults_of_many_kinds() -> None:
    assert len({fault.kind for fault in FAULTS}) == len(FAULTS) >= KINDS
    beside = {against: sum(against in fault.against for fault in FAULTS) for against in SOUND_TOO}
    assert min(beside.values()) >= KINDS


SOUND_TOO = (PYTORCH, SOUND)


def test_planting_leaves_the_sound_model_alone() -> None:
    for fault in FAULTS:
        before = subject(fault.subject).model.SerializeToString()
        case = planted(fault, SOUND)
        assert subject(fault.subject).model.SerializeToString() == before
        assert case.model.SerializeToString() != before


def test_faults_in_files_of_other_makers_are_named_at_their_nodes() -> None:
    found = faults()
    wrong = [(one.file, one.kind, one.node, one.named()) for one in found]
    wrong = [one for one in wrong if one[2] != one[3]]
    assert len(found) > 60
    assert len({one.file for one in found}) > 40
    # Within a function of the file no value is known to both.
    assert [one for one in wrong if one[0] != "functions_of_its_own"] == []
    assert len(wrong) / len(found) <= 1 / 60
