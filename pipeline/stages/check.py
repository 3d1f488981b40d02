"""`ferry check mnist-cnn`: read an experiment's settings before a stage runs with them.

DVC removes what a stage made before it runs the stage. A misspelt setting stops this one, which
comes first and makes nothing that is missed, so that weights, reports and metrics stay.
"""

from pathlib import Path

from pipeline.config import params
from pipeline.config.experiment import Experiment
from serving.files import write_text


def check(mark: Path, *, name: str) -> Experiment:
    """Read an experiment of params.yaml, and write `mark`.

    Its bytes are always the same: training depends on it and on no setting that does not concern
    it. Raises ConfigError for a setting that is wrong and UnknownNameError for the name.
    """
    experiment = params.load().experiment(name)
    write_text(mark, "The settings can be read.\n")
    return experiment
