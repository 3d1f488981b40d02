"""What ONNX's own tests answer, our sessions answer, bit for bit as bare ONNX Runtime does."""

from onnx_cases import KINDS, cases, outcome, sample

OTHERWISE = 15
"""Cases of the sample, at most, that ONNX Runtime answers otherwise than ONNX defines."""


def test_a_sample_of_the_cases_that_come_with_onnx() -> None:
    found = [outcome(case) for case in sample()]
    assert len(found) == 300
    assert [one.name for one in found if not one.right] == []
    assert all(len(one.ours.splitlines()) <= 1 for one in found)
    answered = [one for one in found if not one.ours]
    assert len(answered) > 230
    otherwise = [one for one in answered if not one.as_stored]
    assert not [one.name for one in otherwise if one.bare_as_stored]
    assert len(otherwise) < OTHERWISE


def test_the_sample_is_the_same_each_time_and_of_all_kinds() -> None:
    names = [case.name for case in sample()]
    assert names == [case.name for case in sample()]
    assert len({*names}) == 300
    assert all({case.name for case in cases(kind)} & {*names} for kind in KINDS)
