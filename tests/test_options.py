"""One word for one option: the commands of `ferry` agree on names, short names and help."""

from collections import defaultdict

import click
import pytest

from pipeline.cli import ferry
from serving.cli import WATCHED

FIRST_WORDS = {
    "--batch-size": "Batch size",
    "--data": "Rows",
    "--output": "Where",
    "--json": "Print the result as JSON.",
    "--provider": "Execution provider",
    "--seed": "Seed",
    "--task": "What the model tells",
    "--threads": "Threads within one operator",
    "--track": "Whether to record it in MLflow.",
}
"""How the help of an option begins, in every command that has it."""
OTHER_WORDS = {
    "--batch": "--batch-size",
    "--batch-rows": "--batch-size",
    "--out": "--output",
    "--rows": "--data",
    "--ep": "--provider",
    "--num-threads": "--threads",
}
"""Names that would be a second word for the same thing."""
OPTIONS: dict[str, list[tuple[str, click.Option]]] = defaultdict(list)
for name, command in ferry.commands.items():
    for option in command.params:
        if isinstance(option, click.Option):
            OPTIONS[max(option.opts, key=len)].append((name, option))


@pytest.mark.parametrize("name", FIRST_WORDS)
def test_an_option_says_the_same_in_every_command(name: str) -> None:
    for command, option in OPTIONS[name]:
        assert (option.help or "").startswith(FIRST_WORDS[name]), command


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_an_option_has_one_short_name_and_one_way_to_be_given(name: str) -> None:
    assert len({tuple(sorted(option.opts)) for _, option in OPTIONS[name]}) == 1
    assert name not in OTHER_WORDS, f"{name} is called {OTHER_WORDS.get(name)} elsewhere"


@pytest.mark.parametrize("name", ["--batch-size", "--data", "--provider", "--seed", "--threads"])
def test_an_option_takes_the_same_in_every_command(name: str) -> None:
    metavars = {option.metavar for _, option in OPTIONS[name]}
    assert len(metavars) == 1, metavars


@pytest.mark.parametrize("name", ["--call-timeout", "--max-memory"])
def test_a_command_that_is_watched_takes_its_limits(name: str) -> None:
    assert {command for command, _ in OPTIONS[name]} == WATCHED


def test_an_output_has_a_short_name() -> None:
    assert all("-o" in option.opts for _, option in OPTIONS["--output"])


@pytest.mark.parametrize("name", ferry.commands)
def test_every_command_has_an_example_and_json(name: str) -> None:
    command = ferry.commands[name]
    assert "Example: ferry " in (command.help or "")
    assert "--json" in [word for option in command.params for word in option.opts]
