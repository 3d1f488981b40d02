"""What may stand in the section `benchmark`: the words of each refusal, and the limits."""

from itertools import permutations
from typing import Any, get_args

import pytest

from pipeline.config.experiment import LARGEST, BenchmarkConfig, Rival
from pipeline.config.reading import read_section
from pipeline.errors import ConfigError

WHERE = "experiments.digits-cnn.benchmark"
NAMES = "'eager', 'channels_last', 'compile' or 'pyfunc'"
WRONG: list[tuple[str, object, str]] = [
    ("batch_sizes", 1, " must be a list, got 1"),
    ("batch_sizes", [1, True], ".1 must be an integer, got True"),
    ("batch_sizes", [LARGEST + 1], f".0 must be less than or equal to {LARGEST}, got {2**32}"),
    ("batch_sizes", [8, 1, 8], " must be a list that has nothing twice, got [8, 1, 8]"),
    ("threads", None, " must be a list, got None"),
    ("threads", [1, 2, -2], ".2 must be greater than or equal to 0, got -2"),
    ("threads", ["all"], ".0 must be an integer, got 'all'"),
    ("seconds", -0.5, " must be greater than 0, got -0.5"),
    ("seconds", float("nan"), " must be a finite number, got nan"),
    ("seconds", float("inf"), " must be a finite number, got inf"),
    ("seconds", "5e-1", " must be a number, got the text '5e-1'; write 5.0e-1"),
    ("rounds", 2.5, " must be an integer, got 2.5"),
    ("beside", "eager", " must be a list, got 'eager'"),
    ("beside", ["Eager"], f".0 must be {NAMES}, got 'Eager'"),
    ("beside", ["eager", None], f".1 must be {NAMES}, got None"),
    ("beside", ["pyfunc", "pyfunc"], " must be a list that has nothing twice, got"),
    ("growth_calls", 1.0, " must be an integer, got 1.0"),
]


def section(**changes: object) -> dict[str, Any]:
    good = {
        "batch_sizes": [1],
        "threads": [1],
        "seconds": 0.1,
        "rounds": 2,
        "beside": ["eager"],
        "growth_calls": 0,
        "cold_starts": 0,
        "seed": 0,
    }
    return good | changes


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_a_refusal_names_path_value_and_what_was_expected(
    key: str, value: object, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_section(BenchmarkConfig, section(**{key: value}), WHERE)
    assert str(caught.value).startswith(f"{WHERE}.{key}{words}")


@pytest.mark.parametrize("raw", [None, 3, [], "eager"])
def test_what_is_no_mapping_is_refused(raw: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{WHERE} must be a mapping, got "):
        read_section(BenchmarkConfig, raw, WHERE)


@pytest.mark.parametrize("beside", list(permutations(get_args(Rival), 3)))
def test_rivals_are_kept_in_the_order_they_are_given(beside: tuple[str, ...]) -> None:
    raw = section(beside=list(beside))
    if "eager" in beside:
        assert read_section(BenchmarkConfig, raw, WHERE).beside == beside
        return
    with pytest.raises(ConfigError, match=rf"^{WHERE}\.beside must be a list with eager"):
        read_section(BenchmarkConfig, raw, WHERE)


def test_the_least_and_the_most_are_read() -> None:
    least = read_section(BenchmarkConfig, section(seconds=1e-9, rounds=1, threads=[0]), WHERE)
    assert (least.seconds, least.rounds, least.threads) == (1e-9, 1, (0,))
    most = read_section(BenchmarkConfig, section(seed=LARGEST, batch_sizes=[LARGEST]), WHERE)
    assert (most.seed, most.batch_sizes) == (LARGEST, (LARGEST,))


def test_the_same_thread_count_may_be_written_twice() -> None:
    # Counts that mean the same are dropped when it runs: 0 may well be 2 on this machine.
    assert read_section(BenchmarkConfig, section(threads=[1, 1]), WHERE).threads == (1, 1)
