"""The command `ferry new`: what a project gets one more of."""

import click

from serving.console import json_option, note, show


@click.command()
@click.argument("what", type=click.Choice(["experiment"]))
@click.argument("name")
@click.option("--dataset", metavar="D", required=True, help="A section of `datasets`.")
@click.option("--model", metavar="M", required=True, help="An architecture, such as mlp or cnn.")
@json_option
def new(what: str, name: str, dataset: str, model: str, as_json: bool) -> None:  # noqa: ARG001 - the only one
    """Write the section of experiment NAME into params.yaml.

    It has the few lines that are needed; `ferry config NAME` prints all that it comes to. The
    model's settings are those of the first experiment with it, and the loss fits the data set.

    Example: ferry new experiment mine --dataset digits --model mlp
    """
    from pipeline.commands.options import enter_project
    from pipeline.project.new import new_experiment

    enter_project()
    made = new_experiment(name, dataset=dataset, model=model)
    show(made, as_json=as_json, text=made.section.rstrip())
    note(f"Written into {made.params}. Next: dvc repro bundle@{name}")
