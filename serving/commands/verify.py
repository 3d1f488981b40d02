"""The command `ferry verify`: check everything that a bundle says of itself."""

from typing import TYPE_CHECKING

import click

from serving.commands.options import limit_options
from serving.console import PATH, allow_option, json_option, show

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--key",
    metavar="PUB.pem",
    type=PATH,
    help="Refuse what the holder of this P-256 key did not sign.",
)
@click.option(
    "--digest", metavar="SHA256", help="Refuse a bundle of another digest than this, that you know."
)
@click.option(
    "--provider", metavar="NAME", default="cpu", help="Execution provider: cpu, cuda, ... (cpu)"
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads within one operator. (all cores)",
)
@allow_option
@limit_options
@json_option
def verify(
    bundle: "Path",
    key: "Path | None",
    digest: str | None,
    provider: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check everything that BUNDLE says of itself.

    BUNDLE is a folder, its name in bundles/, or models:/NAME@champion.

    It is refused if one byte differs. The checks are the sha256 of every file, metadata, signature,
    labels, gates, golden outputs and the self-test of the runner. Exit status 1 when a check fails.

    That finds accidents. Whoever can write the folder can write a manifest that fits: only --key,
    for a bundle that `ferry sign` signed, or --digest tells that, or the registry, of a bundle that
    is named by it. The first line says what the result promises. A runner that is not the one of
    this ferry is run in no case, and passes only by the word of one of the three.

    Example: ferry verify bundles/mnist-cnn --key pub.pem
    """
    from serving.bundles.finding import folder_of, is_registered_name, located
    from serving.bundles.registry import version_named
    from serving.bundles.verify import Trust, as_table
    from serving.bundles.verify import verify as check
    from serving.runtime import guard

    if is_registered_name(str(bundle)):
        registry, version = version_named(str(bundle))
        registered = f"{registry.name}/{version}", registry.versions[version].digest
        folder, trust = folder_of(registry, version), Trust(key, digest, registered)
    else:
        folder, trust = located(bundle), Trust(key, digest)
    guard.limit_steps()
    report = check(folder, provider=provider, threads=threads, trust=trust)
    show(report, as_json=as_json, text=as_table(report))
    report.require()
