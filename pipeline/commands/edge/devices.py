"""The command `ferry devices`: what each device serves, as the device says."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.edge.options import access, reach_options
from serving.console import json_option, show

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("words", metavar="[TARGET]...", nargs=-1)
@reach_options
@json_option
def devices(words: tuple[str, ...], hosts: "Path | None", as_json: bool, **reach: Any) -> None:
    """Say what devices serve, since when, and what is wrong.

    Without a TARGET or --hosts it asks all that this project has deployed to. Every byte of what is
    served is compared with its manifest. A device that could not be asked is one of the lines.

    Exit status 1 if one of them serves no whole version, or could not be asked.

    Example: ferry devices pi@sensor:/opt/model --hosts fleet.txt
    """
    from pipeline.config import layout
    from pipeline.project.devices import deployed_here
    from serving.edge.state import as_table, require, states
    from serving.edge.targets import all_targets, parse_target

    targets = all_targets(words, hosts)
    if not targets:
        found = deployed_here(layout.project())
        targets = tuple(parse_target(one.target) for one in found)
    if not targets:
        raise click.UsageError("say which: user@host:/opt/model, or --hosts FILE")
    way = access(reach["ssh_config"], reach["python"])
    found_there = states(targets, way, jobs=reach["jobs"])
    if way.stop.is_set():
        raise KeyboardInterrupt
    show(found_there, as_json=as_json, text=as_table(found_there))
    require(found_there)
