"""The command `ferry doctor`: what on this machine will cause trouble."""

import click

from serving.console import json_option, show


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what on this machine will cause trouble, and how to fix it.

    It looks at the installation as well. Exit status 1 if there is a problem, 0 if there are only
    warnings.

    Example: ferry doctor
    """
    from pathlib import Path

    from serving.machine.doctor import as_text, diagnose

    diagnosis = diagnose(Path())
    show(diagnosis, as_json=as_json, text=as_text(diagnosis))
    ctx.exit(1 if diagnosis.problems else 0)
