"""The command `ferry promote`: the challenger takes the champion's place, if it holds."""

import click

from pipeline.commands.options import complete_registered, enter_project, track_option
from serving.commands.options import limit_options
from serving.console import allow_option, json_option, note, progress, show


def reason(_context: click.Context, _option: click.Parameter, given: str | None) -> str:
    """The reason that was given, which is recorded; "" for no force."""
    if given is not None and not given.strip():
        raise click.BadParameter("it is empty; say why in some words")
    return given or ""


@click.command()
@click.argument("name", shell_complete=complete_registered)
@click.option(
    "--version",
    metavar="N",
    type=click.IntRange(min=1),
    help="The version to promote. (the challenger)",
)
@click.option(
    "--expect",
    metavar="N",
    type=click.IntRange(min=0),
    help="Refuse unless version N is the champion; 0 for none.",
)
@click.option(
    "--force",
    metavar="REASON",
    callback=reason,
    help="Promote it even if it does not hold, and say why.",
)
@track_option
@allow_option
@limit_options
@json_option
def promote(
    name: str, version: int | None, expect: int | None, force: str, track: bool, as_json: bool
) -> None:
    """Make the challenger of NAME the champion, if it holds.

    Its bundle must pass `ferry verify`, and its gates of parity be met. Beside the champion it
    answers the test rows of its data set, now: it may not be worse beyond noise, by McNemar's exact
    test or, of errors, a paired one. And it is timed, in turns with the champion: at no batch size
    may it take longer than the limit, beyond noise. The limits stand in params.yaml, in `registry`.

    Exit status 1 when it does not hold, and when another version became the champion meanwhile.
    With --force it is promoted all the same; the reason and what failed are recorded.

    Example: ferry promote mnist-cnn
    """
    from pipeline.project.registry.history import gates_as_text
    from pipeline.project.registry.mlflow_mirror import mirrored
    from pipeline.project.registry.versions import Promotion
    from pipeline.project.registry.versions import promote as move

    enter_project()
    asked = Promotion(version=version, expect=expect, force=force)
    with mirrored(name, wanted=track), progress() as log:
        report = move(name, asked, log=log)
    text = f"{report.name}/{report.version}  {report.describe()}"
    if report.gates:
        text += f"\n\n{gates_as_text(report.gates)}"
    else:
        note("nothing is changed")
    show(report, as_json=as_json, text=text)
    report.require()
