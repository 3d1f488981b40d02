"""The command `ferry lint`: whether a model answers alike on every processor."""

from typing import TYPE_CHECKING

import click

from serving.console import PATH, json_option, shared_option, show, task_option

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from serving.runtime.classes import Task


@click.command()
@click.argument("model", metavar="MODEL.onnx", type=PATH)
@click.option("--data", metavar="ROWS", help="Rows to compute what is lost, as for `ferry parity`.")
@task_option
@shared_option
@json_option
def lint(
    model: "Path",
    data: str | None,
    task: "Task | None",
    shared: "Mapping[str, str]",
    as_json: bool,
) -> None:
    """Judge whether int8 answers alike on every processor.

    The weights of MODEL.onnx tell. Kernels of x86 without VNNI add products of bytes two by two in
    16 bits, where weights beyond ±64 may overflow. Every product of integers with such weights is
    named. With --data, what it would answer there is computed, whatever this processor has. Exit
    status 1 when it is not alike everywhere.

    Example: ferry lint small/net.int8.onnx --data rows.npz
    """
    from pipeline.quantization.lint import as_text
    from pipeline.quantization.lint import lint as judge

    report = judge(model, data, task, shared)
    show(report, as_json=as_json, text=as_text(report))
    if report.needs:
        click.get_current_context().exit(1)
