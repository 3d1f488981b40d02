"""The command `ferry lint`: which place takes a model, and where it answers alike."""

from typing import TYPE_CHECKING, Any

import click

from serving.commands.options import MODEL, limit_options
from serving.console import json_option, shared_option, show, task_option
from serving.runtime import guard

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("model", metavar="MODEL", type=MODEL)
@click.option("--data", metavar="ROWS", help="Rows to compute what is lost, as for `ferry parity`.")
@click.option("--ort", metavar="VERSION", help="The ONNX Runtime that is there, as 1.17 or 1.21.0.")
@click.option(
    "--provider",
    metavar="NAME",
    help="Execution provider to judge, or several: cpu,cuda,coreml,nnapi,web.",
)
@task_option
@shared_option
@limit_options
@json_option
def lint(model: "Path", ort: str | None, provider: str | None, as_json: bool, **given: Any) -> None:
    """Judge whether MODEL runs, and answers alike, where it is to go.

    MODEL is an ONNX file, a bundle, its name in bundles/, or models:/NAME@champion.

    The weights tell whether int8 answers alike on every processor. Kernels of x86 without VNNI add
    products of bytes two by two in 16 bits, where weights beyond ±64 may overflow. Every product of
    integers with such weights is named. With --data, what it would answer there is computed,
    whatever this processor has.

    --ort asks for a version of ONNX Runtime, and --provider for execution providers: what stands
    against each is told, with its cure. Of a bundle alone, it is what its target needs.

    Exit status 1 when int8 is not alike everywhere, or what was asked for does not run MODEL; 0
    with warnings.

    Example: ferry lint small/net.int8.onnx --data rows.npz

    Example: ferry lint bundles/mnist-cnn --ort 1.17 --provider coreml,nnapi
    """
    from pipeline.targets.lint import as_text
    from pipeline.targets.lint import lint as judge
    from pipeline.targets.lint.providers import provider_names
    from pipeline.targets.lint.runtimes import as_version

    guard.limit_steps()
    report = judge(
        model,
        given["data"],
        given["task"],
        given["shared"],
        runtime=None if ort is None else as_version(ort),
        providers=() if provider is None else provider_names(provider),
    )
    show(report, as_json=as_json, text=as_text(report))
    if report.failed:
        click.get_current_context().exit(1)
