"""The command `ferry config`, which is no stage: what params.yaml says of an experiment."""

import click

from pipeline.commands.options import complete_experiment, enter_project
from serving.console import columns, json_option, show


@click.command()
@click.argument("experiment", shell_complete=complete_experiment)
@json_option
def config(experiment: str, as_json: bool) -> None:
    """Print every setting of EXPERIMENT, and where it stands.

    That is its own section of params.yaml, or `defaults` for what it does not say.

    Example: ferry config mnist-cnn
    """
    from pipeline.config.params import resolve
    from pipeline.config.yamlfile import dump_value

    enter_project()
    settings = resolve(experiment)
    lines = [(key, dump_value(one.value), one.source) for key, one in settings.items()]
    show(settings, as_json=as_json, text=columns(lines))
