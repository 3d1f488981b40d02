"""`ferry check mnist-cnn`: read an experiment's settings before a stage runs with them.

DVC removes what a stage made before it runs the stage. A misspelt setting stops this one, which
comes first and makes nothing that is missed, so that weights, reports and metrics stay.
"""

from pathlib import Path

from pipeline import models
from pipeline.config import fitting, params
from pipeline.config.experiment import Experiment
from pipeline.config.layout import DVC_YAML
from pipeline.config.reading import check_gates
from pipeline.config.yamlfile import dump_value
from pipeline.errors import ConfigError
from pipeline.quantization import recipes
from serving.files import write_text


def check(mark: Path, *, name: str) -> Experiment:
    """Read an experiment of params.yaml, and write `mark`.

    It says what a model of the project's own is made of, and nothing else: training depends on it
    and on no setting that does not concern it. Raises UnknownNameError for the name, and
    ConfigError for a setting that is wrong, for those that do not fit together and, beside a
    dvc.yaml, for sections without which DVC stops.
    """
    experiment = params.load().experiment(name)
    fitting.check(experiment)
    check_gates(experiment)
    recipes.check(experiment.quantize.recipes, f"experiments.{name}.quantize.recipes")
    if DVC_YAML.exists() and (lacking := params.lacking(name)):
        listed = ", ".join(f"`{key}: {dump_value(value)}`" for key, value in lacking.items())
        raise ConfigError(
            f"experiments.{name} leaves out sections without which DVC stops; write {listed}"
        )
    sources = models.own_sources(experiment.model.name)
    write_text(mark, "".join(["The settings can be read.\n", *sources]))
    return experiment
