"""The command `ferry machine`: what the stages depend on that measure speeds."""

import click

from serving.console import json_option, show, summary


@click.command()
@json_option
def machine(as_json: bool) -> None:
    """Say what this machine is, for the stages that measure speed.

    Writes reports/machine.json. `dvc repro` runs it each time, and quantizes, times and bundles
    anew on another processor, with other cores or cards, or with other versions of ONNX Runtime and
    PyTorch. FERRY_PROCESSOR names the processor where the system hides its name.

    Example: ferry machine
    """
    from dataclasses import asdict

    from pipeline.commands.options import enter_project
    from pipeline.config import layout
    from pipeline.stages.machine import machine

    enter_project()
    found = machine(layout.MACHINE)
    kind = asdict(found.kind) | {"flags": " ".join(found.kind.flags)}
    text = summary(kind | {"onnxruntime": found.onnxruntime, "torch": found.torch})
    show(found, as_json=as_json, text=text)
