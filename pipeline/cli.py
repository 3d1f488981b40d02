"""`ferry`: one command per stage, and those of serving.

Every command is a few lines over a public function and imports its work inside its body, so that
`ferry --help` stays as fast as click.
"""

import os

import click

from pipeline.commands.lint import lint
from pipeline.commands.predict import predict
from pipeline.commands.project.config import config
from pipeline.commands.results import results
from pipeline.commands.stages.benchmark import benchmark
from pipeline.commands.stages.bundle import bundle
from pipeline.commands.stages.evaluate import evaluate
from pipeline.commands.stages.export import export
from pipeline.commands.stages.parity import parity
from pipeline.commands.stages.preprocess import preprocess
from pipeline.commands.stages.pull import pull
from pipeline.commands.stages.quantize import quantize
from pipeline.commands.stages.report import report
from pipeline.commands.stages.train import train
from pipeline.commands.tune import tune
from serving.commands.bench import bench
from serving.commands.doctor import doctor
from serving.commands.verify import verify
from serving.console import SETTINGS, Commands, log_to_stderr

# Read by OpenMP when torch loads it. Threads that spin for long between two loops steal the cores
# of a shared machine, and those that sleep at once double the time of a small network.
OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


@click.group(
    cls=Commands,
    context_settings=SETTINGS,
    epilog="Example: ferry train digits-mlp",
)
@click.version_option(package_name="onnx-ferry")
@click.option("-C", "--directory", metavar="DIR", help="Work in DIR, the folder of params.yaml.")
def ferry(directory: str | None) -> None:
    """Carry a model from training to where it runs, proven the same at every step.

    The stages, in order: pull, preprocess, train, evaluate, export, quantize, parity, benchmark,
    bundle and report. `dvc repro` runs those that are out of date.

    An option may also come from the environment: FERRY_TRAIN_DEVICE=cpu is `ferry train --device
    cpu`.
    """
    for variable, value in OPENMP.items():
        os.environ.setdefault(variable, value)
    log_to_stderr()
    if directory:
        os.chdir(directory)


STAGES = (pull, preprocess, train, evaluate, export, quantize, parity, benchmark, bundle, report)
TOOLS = (config, tune, results, lint, predict, bench, verify, doctor)
for command in (*STAGES, *TOOLS):
    ferry.add_command(command)


def main() -> None:
    """Run `ferry` as a program."""
    ferry(prog_name="ferry")


if __name__ == "__main__":
    main()
