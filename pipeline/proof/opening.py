"""Open the sides of a comparison, as one types them.

`mnist-cnn` is PyTorch with the experiment's weights, `mnist-cnn:int8` one of its ONNX files,
`model.onnx` any ONNX file and `bundles/mnist-cnn` a bundle; each ONNX one may end in `@PROVIDER`.
"""

from pathlib import Path

from pipeline import layout, params
from pipeline.errors import MissingInputError, UnknownNameError, UsageError
from pipeline.onnxfile_checks import load_foreign
from pipeline.proof.sides import Side, model_side
from pipeline.proof.variants import open_variant, open_weights
from serving.bundle import open_bundle
from serving.files import sha256_of_file
from serving.session import PROVIDERS, Level

__all__ = ["open_side"]


def open_side(spec: str, *, optimize: Level = "all") -> Side:
    """Open what `spec` names: `EXPERIMENT`, `EXPERIMENT:VARIANT`, an ONNX file or a bundle.

    The last three may end in `@PROVIDER`, a key of `serving.session.PROVIDERS`. A path comes first
    where both would do. Raises MissingInputError, UnknownNameError, UsageError, IntegrityError for
    a bundle or weights that are not what was recorded, ModelError for a model that cannot be run or
    proven, and ProviderError for a provider that this machine lacks.
    """
    name, at, provider = spec.rpartition("@")
    if not at or Path(spec).exists() or provider not in PROVIDERS:
        if at and not Path(spec).exists():
            raise UnknownNameError("provider", provider, PROVIDERS)
        name, provider = spec, "cpu"
    path = Path(name)
    if path.is_dir():
        return model_side(spec, open_bundle(path).model, provider, optimize)
    if path.exists():
        load_foreign(path)
        return model_side(spec, path.read_bytes(), provider, optimize)
    if "/" in name or path.suffix == ".onnx":
        raise MissingInputError(f"{name} is not there; it should be an ONNX file or a bundle")
    return _of_experiment(name, provider, spec, optimize)


def _of_experiment(name: str, provider: str, spec: str, optimize: Level) -> Side:
    experiment_name, colon, variant = name.partition(":")
    experiment = params.load().experiment(experiment_name)
    weights, data = layout.weights(experiment.name), layout.ready(experiment.dataset)
    if not colon:
        if provider != "cpu":
            raise UsageError(
                f"{spec}: PyTorch answers on the CPU; {name}:fp32@{provider} is the exported model"
            )
        return open_weights(weights, data, experiment)
    models = layout.models(experiment.name)
    if variant not in models:
        raise UnknownNameError(f"variant of {experiment.name}", variant, models)
    side = open_variant(models[variant], sha256_of_file(weights), experiment, provider)
    return model_side(spec, side.content, provider, optimize)
