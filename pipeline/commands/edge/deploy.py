"""The command `ferry deploy`: a bundle goes to devices, or the one before comes back."""

import sys
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.edge.options import access, reach_options
from pipeline.commands.options import enter_project, track_option
from serving.console import PATH, json_option, note, show, terminal_columns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from serving.edge.targets import DeviceTarget


class Board:
    """One line of each device on stderr: rewritten on a terminal that has room, else a log."""

    def __init__(self, targets: "Sequence[DeviceTarget]") -> None:
        """Without a word yet."""
        import shutil
        import threading

        from serving.edge.targets import short_names

        self.called = short_names((one.name, one.host) for one in targets)
        self.steps = dict.fromkeys(self.called, "waiting")
        self.live = sys.stderr.isatty() and len(targets) < shutil.get_terminal_size().lines
        self.drawn = False
        self.lock = threading.Lock()

    def tell(self, target: "DeviceTarget", step: str) -> None:
        """Show what a device is doing."""
        from serving.errors import on_one_line

        with self.lock:
            self.steps[target.name] = step
            if not self.live:
                note(f"{self.called[target.name]}: {step}")
                return
            width = max(map(len, self.called.values()))
            up = f"\x1b[{len(self.steps)}A" if self.drawn else ""
            lines = (f"{self.called[name]:<{width}}  {said}" for name, said in self.steps.items())
            most = terminal_columns() - 1
            shown = (f"\x1b[K{on_one_line(line)[:most]}\n" for line in lines)
            click.echo(up + "".join(shown), err=True, nl=False)
            self.drawn = True


@click.command()
@click.argument("words", metavar="[BUNDLE] TARGET...", nargs=-1)
@reach_options
@click.option("--rollback", is_flag=True, help="Go back to the version before; without BUNDLE.")
@click.option("--provider", metavar="NAME", default="cpu", help="Execution provider there. (cpu)")
@click.option(
    "--key",
    metavar="PUB.pem",
    type=PATH,
    help="Refuse what the holder of this P-256 key did not sign.",
)
@track_option
@json_option
def deploy(
    words: tuple[str, ...],
    hosts: "Path | None",
    rollback: bool,
    provider: str,
    key: "Path | None",
    track: bool,
    as_json: bool,
    **reach: Any,
) -> None:
    """Serve BUNDLE on devices, if it passes its tests there.

    BUNDLE is a folder, its name in bundles/, or models:/NAME@champion. A TARGET is
    user@host:/opt/model, over ssh and rsync, or a folder of this machine.

    The bundle is uploaded beside the version that is served. Its own runner tests and times it
    there; only if both pass, the link /opt/model/current is switched to it. Whatever fails, or is
    killed, a whole version is served at every moment. The last three are kept.

    Exit status 1 if one device failed.

    Example: ferry deploy mnist-tiny pi@sensor:/opt/model --hosts fleet.txt
    """
    from pipeline.project.devices import record
    from serving.bundles.finding import located
    from serving.edge import deploy as rollout

    targets = _targets(words if rollback else words[1:], hosts, asked=bool(words) or rollback)
    way = access(reach["ssh_config"], reach["python"])
    board = Board(targets)
    plan = rollout.DeployPlan(
        access=way, provider=provider, key=key, jobs=reach["jobs"], tell=board.tell
    )
    if rollback:
        report = rollout.roll_back(targets, plan)
    else:
        report = rollout.deploy(located(words[0]), targets, plan)
    enter_project()
    record(report.devices, track=track)
    show(report, as_json=as_json, text=rollout.as_table(report))
    if way.stop.is_set():
        raise KeyboardInterrupt
    report.require()


def _targets(
    words: "Sequence[str]", hosts: "Path | None", *, asked: bool
) -> "tuple[DeviceTarget, ...]":
    """Where it goes; a usage error where nothing says so."""
    from serving.edge.targets import HOW, all_targets

    targets = all_targets(words, hosts)
    if not asked:
        raise click.UsageError("say which BUNDLE goes where: ferry deploy BUNDLE TARGET...")
    if not targets:
        raise click.UsageError(f"say where it goes: {HOW}, or --hosts FILE")
    return targets
