"""How a session runs: what is read, what is refused, and what is told."""

import pytest

from serving.errors import UnknownNameError, UsageError
from serving.runtime.settings import SessionSettings, check_settings, parse_settings

BASE = SessionSettings(threads=2)


def test_words_change_what_they_name():
    words = ["parallel=2", "spinning=off", "binding=on", "optimize=basic", "conv_search=heuristic"]
    assert parse_settings(words, BASE) == SessionSettings(
        threads=2,
        parallel=2,
        spinning=False,
        binding=True,
        optimize="basic",
        conv_search="heuristic",
    )
    assert parse_settings([], BASE) is not None
    assert parse_settings(["threads=7"], BASE).threads == 7


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("paralel=2", UnknownNameError, "no setting named 'paralel'; did you mean 'parallel'"),
        ("binding", UsageError, "a setting is NAME=VALUE, got 'binding'"),
        ("binding=yes", UsageError, "binding must be one of on, off, got 'yes'"),
        ("parallel=two", UsageError, "parallel must be a whole number, got 'two'"),
        ("optimize=most", UsageError, "optimize must be one of none, basic, extended, all"),
    ],
)
def test_other_words_are_refused(word, error, message):
    with pytest.raises(error, match=message):
        parse_settings([word], BASE)


@pytest.mark.parametrize(
    ("words", "provider", "message"),
    [
        (["threads=0"], "cpu", "threads must be 1 or more, got 0"),
        (["parallel=-1"], "cpu", "parallel must be 1 or more, got -1"),
        (["tf32=on"], "cpu", "tf32=on is for cuda, not for cpu"),
        (["fp16=on"], "cuda", "fp16=on is for tensorrt, not for cuda"),
        (["conv_search=default"], "tensorrt", "conv_search=default is for cuda"),
        (["cuda_graph=on"], "cuda", "needs binding=on"),
    ],
)
def test_what_does_not_go_together_is_refused(words, provider, message):
    with pytest.raises(UsageError, match=message):
        check_settings(parse_settings(words, BASE), provider)


@pytest.mark.parametrize(
    ("words", "provider"),
    [
        (["parallel=2", "binding=on", "spinning=off"], "cpu"),
        (["cuda_graph=on", "binding=on", "tf32=on", "nhwc=on"], "cuda"),
        (["cuda_graph=on", "binding=on", "fp16=on"], "tensorrt"),
    ],
)
def test_what_goes_together_is_not(words, provider):
    check_settings(parse_settings(words, BASE), provider)


def test_only_what_differs_is_told():
    assert BASE.describe() == ""
    changed = parse_settings(["parallel=3", "spinning=off"], BASE)
    assert changed.describe() == "parallel=3 spinning=off"
    assert changed.cores == 6
