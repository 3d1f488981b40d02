"""`ferry`: one command per stage, and those of serving.

Every command is a few lines over a public function and imports its work inside its body, and its
module is imported when it is named, so that `ferry --help` stays as fast as click.
"""

import os

import click

from serving.cli import COMMANDS as SERVING
from serving.cli import begin
from serving.console import SETTINGS, Commands, log_to_stderr

# Read by OpenMP when torch loads it. Threads that spin for long between two loops steal the cores
# of a shared machine, and those that sleep at once double the time of a small network.
OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}

STAGES = "pipeline.commands.stages"
PROJECT = "pipeline.commands.project"
REGISTRY = "pipeline.commands.registry"
EDGE = "pipeline.commands.edge"
TOOLS = "pipeline.commands"
SECTIONS = {
    "Pipeline, the stages in order": {
        "pull": (STAGES, "Fetch the official files of DATASET and check them."),
        "preprocess": (STAGES, "Split DATASET into training, validation and test arrays."),
        "check": (STAGES, "Check the settings of EXPERIMENT before a stage runs with them."),
        "machine": (STAGES, "Say what this machine is, for the stages that measure speed."),
        "teach": (STAGES, "Ask the teacher of EXPERIMENT for the logits to learn from."),
        "train": (STAGES, "Train EXPERIMENT's model and record the run in MLflow."),
        "evaluate": (STAGES, "Look into EXPERIMENT's network: pictures, calibration, attacks."),
        "export": (STAGES, "Export a model to one ONNX graph: raw rows in, answer out."),
        "quantize": (STAGES, "Make a model smaller or faster, within a budget for accuracy."),
        "parity": (STAGES, "Prove that models answer alike."),
        "benchmark": (STAGES, "Time EXPERIMENT's variants beside PyTorch, as a stage."),
        "bundle": (STAGES, "Make the folder to deploy."),
        "report": (STAGES, "Write reports/index.html, one page of everything that has run."),
    },
    "Models": {
        "bench": SERVING["bench"],
        "lint": (TOOLS, "Judge whether MODEL runs, and answers alike, where it is to go."),
        "tune": (TOOLS, "Search for better settings of EXPERIMENT."),
    },
    "Registry": {
        "register": (REGISTRY, "Make a bundle the next version of a model, and its challenger."),
        "promote": (REGISTRY, "Make the challenger of NAME the champion, if it holds."),
        "rollback": (REGISTRY, "Make the champion before the present one it again."),
        "why": (REGISTRY, "Say why a version of a model is the champion, or is not."),
    },
    "Edge": {
        "sign": (EDGE, "Sign a bundle, so that a device can tell who made it."),
        "deploy": (EDGE, "Serve BUNDLE on devices, if it passes its tests there."),
        "devices": (EDGE, "Say what devices serve, since when, and what is wrong."),
    },
    "Serving": {
        "predict": (TOOLS, SERVING["predict"][1]),
        "verify": SERVING["verify"],
        "demo": SERVING["demo"],
        "doctor": (PROJECT, SERVING["doctor"][1]),
    },
    "Project": {
        "init": (PROJECT, "Make a project in DIR: an experiment that runs at once."),
        "new": (PROJECT, "Write the section of experiment NAME into params.yaml."),
        "list": (PROJECT, "List experiments with what has run, data sets, models and recipes."),
        "config": (PROJECT, "Print every setting of EXPERIMENT, and where it stands."),
        "data": (PROJECT, "Show what DATASET holds, and what may be wrong with it."),
        "track": (PROJECT, "Tell how much MLflow has of each run, and send it the rest."),
        "results": (TOOLS, "Print what was measured here, of every variant."),
        "lineage": (PROJECT, "Trace a model or its predictions back to data and commit."),
        "ui": (PROJECT, "Serve MLflow's pages of the project's runs, until Ctrl-C."),
    },
}
"""Each command with the package of its module and the first line of its help."""


@click.group(
    cls=Commands,
    sections=SECTIONS,
    context_settings=SETTINGS,
    epilog="Example: ferry train digits-mlp",
)
@click.version_option(package_name="onnx-ferry")
@click.option("-C", "--directory", metavar="DIR", help="Work in DIR, the folder of params.yaml.")
def ferry(directory: str | None) -> None:
    """Carry a model from training to where it runs, proven the same at every step.

    `dvc repro` runs the stages that are out of date.

    An option may also come from the environment: FERRY_TRAIN_DEVICE=cpu is `ferry train --device
    cpu`.
    """
    for variable, value in OPENMP.items():
        os.environ.setdefault(variable, value)
    log_to_stderr()
    if directory:
        os.chdir(directory)


def main() -> None:
    """Run `ferry` as a program."""
    begin()
    ferry(prog_name="ferry")


if __name__ == "__main__":
    main()
