"""The command `ferry new`: what a project gets one more of."""

import click

from serving.console import json_option, note, show


@click.command()
@click.argument("what", type=click.Choice(["experiment"]))
@click.argument("name")
@click.option("--dataset", metavar="D", required=True, help="A section of `datasets`.")
@click.option("--model", metavar="M", required=True, help="An architecture, such as mlp or cnn.")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Setting of the experiment, as `ferry config` names it; may be repeated.",
)
@json_option
def new(
    what: str,  # noqa: ARG001 - the only one
    name: str,
    dataset: str,
    model: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the section of experiment NAME into params.yaml.

    It has the few lines that are needed; `ferry config NAME` prints all that it comes to. The
    model's settings are those of the first experiment with it, and the loss fits the data set.
    --set changes what is written, and gives the settings of a model that no experiment has yet.

    Example: ferry new experiment mine --dataset digits --model mlp

    Example: ferry new experiment my --dataset D --model M --set model.width=9
    """
    from pipeline.commands.options import enter_project
    from pipeline.project.new import new_experiment

    enter_project()
    made = new_experiment(name, dataset=dataset, model=model, given=settings)
    show(made, as_json=as_json, text=made.section.rstrip())
    note(f"Written into {made.params}. Next: dvc repro bundle@{name}")
