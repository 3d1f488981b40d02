"""The command `ferry doctor`, with what only a project has: the cache of DVC."""

import click

from serving.commands.doctor import doctor as machine_doctor
from serving.console import json_option, show


@click.command()
@click.option("--cache", is_flag=True, help="Look for rotted objects in DVC's cache instead.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, cache: bool, as_json: bool) -> None:
    """Say what on this machine will cause trouble, and how to fix it.

    It looks at the installation as well. Exit status 1 if there is a problem, 0 if there are only
    warnings.

    With --cache it hashes every object of DVC's cache instead, which takes some seconds for each
    GiB. DVC does not do that: it copies an object that has rotted on the disk into every checkout.
    Exit status 1 if there is one; which outputs it is of and the commands that mend it are printed.

    Example: ferry doctor

    Example: ferry doctor --cache
    """
    if not cache:
        ctx.invoke(machine_doctor, as_json=as_json)
        return
    from pipeline.project.cache import as_text, look_at_cache
    from serving.console import progress

    with progress() as log:
        report = look_at_cache(log)
    show(report, as_json=as_json, text=as_text(report))
    ctx.exit(1 if report.rotted else 0)
