import itertools
from typing import Any

import pytest

from serving.errors import UsageError
from serving.measuring.screening import Candidate, candidates, defaults, powers_up_to
from serving.runtime.settings import SessionSettings, check_settings

GOALS = ("latency", "throughput")


def grid(goal: str = "throughput", provider: str = "cpu", **given: Any) -> tuple[Candidate, ...]:
    sizes = given.pop("batch_sizes", (1,) if goal == "latency" else (1, 16))
    usual = {"cores": 2, "bindable": True, "allow_reduced_precision": False}
    return candidates(goal, provider, sizes, **(usual | given))


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt", "openvino", "coreml"])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("cores", [1, 2, 6])
def test_every_candidate_makes_sense_and_none_comes_twice(
    goal: str, provider: str, cores: int
) -> None:
    found = grid(goal, provider, cores=cores, allow_reduced_precision=True)
    assert len(set(found)) == len(found)
    for one in found:
        check_settings(one.settings, provider)
        assert one.settings.cores <= cores


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("bindable", [True, False])
def test_the_runtimes_own_settings_are_among_them(goal: str, provider: str, bindable: bool) -> None:
    own = SessionSettings(threads=4, spinning=True, binding=False, parallel=1)
    found = grid(goal, provider, cores=4, bindable=bindable)
    assert defaults(4) == own
    sizes = {one.batch_size for one in found if one.settings == own}
    assert sizes == ({1} if goal == "latency" else {1, 16})


def test_two_cores_for_throughput() -> None:
    found = {(s.threads, s.parallel, s.spinning, s.binding) for s in (c.settings for c in grid())}
    assert found == {
        (threads, parallel, spinning, binding)
        for threads, parallel, spinning in (
            (1, 1, True),
            (1, 2, True),
            (2, 1, True),
            (2, 1, False),
        )
        for binding in (True, False)
    }
    assert len(grid()) == 16


def test_a_latency_is_that_of_one_call_alone() -> None:
    found = grid("latency", cores=8)
    assert {one.settings.parallel for one in found} == {1}
    assert {one.batch_size for one in found} == {1}
    assert {one.settings.threads for one in found} == {1, 2, 4, 8}
    assert {one.batch_size for one in grid("latency", batch_sizes=(4,))} == {4}
    with pytest.raises(UsageError, match="one batch size, got 1, 4; name one"):
        grid("latency", batch_sizes=(1, 4))


def test_one_thread_has_nobody_to_spin_for() -> None:
    assert all(one.settings.spinning for one in grid(cores=8) if one.settings.threads == 1)


def test_what_cannot_be_bound_is_not() -> None:
    assert not any(one.settings.binding for one in grid(bindable=False))
    assert not any(one.settings.cuda_graph for one in grid(provider="cuda", bindable=False))


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
def test_the_arithmetic_stays_the_models_own_unless_allowed(provider: str) -> None:
    found = grid(provider=provider)
    assert not any(one.settings.tf32 or one.settings.fp16 for one in found)
    allowed = grid(provider=provider, allow_reduced_precision=True)
    assert any(one.settings.tf32 for one in allowed) == (provider == "cuda")
    assert any(one.settings.fp16 for one in allowed) == (provider == "tensorrt")
    assert set(found) <= set(allowed)


def test_a_gpu_has_its_own_knobs() -> None:
    found = [one.settings for one in grid(provider="cuda", cores=16)]
    assert {(one.nhwc, one.conv_search) for one in found} == {
        (nhwc, search) for nhwc in (True, False) for search in ("exhaustive", "heuristic")
    }
    # A captured graph lies in one caller's memory.
    assert {one.parallel for one in found if one.cuda_graph} == {1}
    assert {one.parallel for one in found} == {1, 2}
    assert {one.threads for one in found} == {1, 16}


def test_candidates_of_one_session_stand_side_by_side() -> None:
    """The screening opens a session once for all that differ in batch size and binding."""
    sessions = [
        (one.settings.threads, one.settings.parallel, one.settings.spinning)
        for one in grid(cores=4)[2:]  # after the defaults
    ]
    changes = sum(first != second for first, second in itertools.pairwise(sessions))
    assert changes == len(set(sessions)) - 1


def test_powers() -> None:
    assert powers_up_to(1) == [1]
    assert powers_up_to(8) == [1, 2, 4, 8]
    assert powers_up_to(6) == [1, 2, 4, 6]


def test_a_candidate_tells_what_it_is() -> None:
    settings = SessionSettings(threads=1, parallel=2, binding=True)
    one = Candidate(settings=settings, batch_size=16)
    assert one.describe() == "threads 1, parallel 2, binding on, batch 16"
    assert one.rows_at_a_time == 32
