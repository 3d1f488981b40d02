"""The command `ferry track`, which is no stage: what MLflow has of the runs that were recorded."""

import click

from serving.console import json_option, progress, show


@click.command()
@click.option("--sync/--no-sync", default=False, help="Whether to send what is left. (no)")
@json_option
def track(sync: bool, as_json: bool) -> None:
    """Tell how much MLflow has of each run, and send it the rest.

    What a stage records is kept in tracking/ first. It waits some seconds for MLflow; what a server
    did not take in that time, or because it was down, is sent by --sync, each record once; so are
    the versions and aliases of the registry.

    Example: ferry track --sync
    """
    from pipeline.commands.options import enter_project
    from pipeline.project.registry import mlflow_mirror
    from pipeline.tracking import sending
    from serving.errors import FerryError

    enter_project()
    left, failures = [], []
    if sync:
        with progress() as log:
            left = sending.sync(log)
            failures = [] if sending.is_silent(left) else mlflow_mirror.mirror_all(log)
    states = sending.states()
    show(states, as_json=as_json, text=sending.as_table(states))
    if left:
        reason = left[0].problem or "the lines above say why"
        failures.insert(0, f"{len(left)} of {len(states)} runs are not sent: {reason}")
    if failures:
        raise FerryError("; ".join(failures))
