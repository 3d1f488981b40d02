"""The section `benchmark` of an experiment: what is read, and what is refused by its path."""

from typing import Any

import pytest

from pipeline.config.experiment import BenchmarkConfig, Params
from pipeline.config.params import load
from pipeline.config.reading import read_section
from pipeline.errors import ConfigError

WHERE = "experiments.x.benchmark"
GOOD: dict[str, Any] = {
    "batch_sizes": [1, 64],
    "threads": [1, 0],
    "seconds": 0.5,
    "rounds": 10,
    "beside": ["eager", "pyfunc"],
    "growth_calls": 1000,
    "cold_starts": 3,
    "seed": 1,
}


def read(**changes: Any) -> BenchmarkConfig:
    return read_section(BenchmarkConfig, {**GOOD, **changes}, WHERE)


def test_what_is_good_is_read() -> None:
    config = read()
    assert config.batch_sizes == (1, 64)
    assert config.threads == (1, 0)
    assert config.beside == ("eager", "pyfunc")
    assert (config.rounds, config.growth_calls, config.cold_starts) == (10, 1000, 3)


@pytest.mark.parametrize("key", GOOD)
def test_every_key_is_needed(key: str) -> None:
    raw = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(ConfigError, match=f"{WHERE}.{key} is missing"):
        read_section(BenchmarkConfig, raw, WHERE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_sizes", []),
        ("batch_sizes", [0]),
        ("batch_sizes", [1, 1]),
        ("batch_sizes", ["1"]),
        ("threads", []),
        ("threads", [-1]),
        ("threads", [1.5]),
        ("seconds", 0),
        ("seconds", "1e-3"),
        ("rounds", 0),
        ("rounds", True),
        ("beside", []),
        ("beside", ["pyfunc"]),
        ("beside", ["eager", "eager"]),
        ("beside", ["eager", "jax"]),
        ("growth_calls", -1),
        ("cold_starts", -1),
        ("seed", 0.5),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{key: value})
    assert str(caught.value).startswith(f"{WHERE}.{key}")
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_offers_the_right_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        read(round=3)


def test_no_calls_and_no_starts_are_a_choice() -> None:
    config = read(growth_calls=0, cold_starts=0)
    assert (config.growth_calls, config.cold_starts) == (0, 0)


@pytest.fixture(scope="module")
def params() -> Params:
    return load()


def test_every_experiment_is_measured_where_the_aims_are(params: Params) -> None:
    for name, experiment in params.experiments.items():
        config = experiment.benchmark
        assert {1, 64} <= set(config.batch_sizes), name
        assert 1 in config.threads, name
        assert config.rounds % 2 == 0, f"{name}: each goes first equally often"
        assert config.beside[0] == "eager", name


def test_the_demo_does_not_wait_for_a_compiler(params: Params) -> None:
    for name in ("digits-mlp", "digits-cnn"):
        assert "compile" not in params.experiment(name).benchmark.beside
