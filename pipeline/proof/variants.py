"""Open the sides of a comparison: an experiment's weights, its ONNX files, any file or bundle."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from pipeline.config import layout
from pipeline.config.experiment import Experiment
from pipeline.exporting import onnxmodel, tokenizer
from pipeline.exporting.exporter import INPUTS
from pipeline.exporting.onnxmodel import load_foreign
from pipeline.exporting.signatures import BATCH
from pipeline.network.graph import Graph, load_graph
from pipeline.proof.sides import ModelSide, Side, WeightsSide, model_side
from pipeline.records import ready
from serving.bundles.bundle import open_bundle
from serving.errors import (
    IntegrityError,
    MissingInputError,
    ModelError,
    UnknownNameError,
    UsageError,
)
from serving.files import require, sha256_of_file
from serving.runtime.providers import PROVIDERS
from serving.runtime.tensors import TensorInfo

Array = npt.NDArray[Any]


def open_weights(weights: Path, data: Path, experiment: Experiment) -> WeightsSide:
    """The trained weights of an experiment; `data` is its preprocessed data set.

    Raises MissingInputError, and IntegrityError for weights of another model.
    """
    manifest = ready.open_manifest(data)
    graph = load_graph(weights, experiment, manifest)
    array = manifest.arrays["test_inputs.npy"]
    is_text = manifest.kind == "text"
    info = TensorInfo(
        name=tokenizer.INPUT if is_text else INPUTS[manifest.kind],
        dtype="object" if is_text else array.dtype,
        shape=(BATCH, *array.shape[1:]),
    )
    # What it answers is known by asking for one row.
    row = np.array(ready.open_split(data, "test").inputs[:1])
    shapes = [tuple(output.shape[1:]) for output in graph.answer(row, 1)]
    return WeightsSide(
        name=experiment.name,
        inputs=(info,),
        outputs=tuple(
            TensorInfo(name=output, dtype="float32", shape=(BATCH, *shape))
            for output, shape in zip(graph.head.outputs, shapes, strict=True)
        ),
        sha256=sha256_of_file(weights),
        graph=graph,
    )


def open_variant(
    path: Path, weights_sha256: str, experiment: Experiment, provider: str = "cpu"
) -> ModelSide:
    """One of an experiment's ONNX files, which must have been exported from these weights.

    Raises MissingInputError, IntegrityError for a file of other weights, and ModelError.
    """
    again = f"dvc repro quantize@{experiment.name}"
    side = model_side(str(path), require(path, again).read_bytes(), provider)
    if side.session.metadata.get(f"{onnxmodel.METADATA}weights_sha256") != weights_sha256:
        raise IntegrityError(
            f"{path} was not exported from the weights {weights_sha256[:12]}…; "
            f"`{again}` makes it anew"
        )
    return side


def open_torchscript(graph: Graph, example: Array, opset: int) -> ModelSide:
    """A graph by torch's older exporter, which shares nothing with the one that ships.

    `example` is two raw rows. Raises FerryError when the graph cannot go that way.
    """
    name = INPUTS[graph.kind]
    try:
        with tempfile.TemporaryDirectory() as folder, onnxmodel.quiet(), torch.no_grad():
            path = Path(folder) / "model.onnx"
            torch.onnx.export(
                graph.eval(),
                (graph.tensor(example),),
                path,
                dynamo=False,
                opset_version=opset,
                input_names=[name],
                output_names=list(graph.head.outputs),
                dynamic_axes={key: {0: BATCH} for key in (name, *graph.head.outputs)},
            )
            made = onnx.load(path)
    # The errors of TorchScript have no base of their own but RuntimeError.
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"TorchScript cannot export the model: {reason[:300]}") from error
    if graph.kind == "text":
        tokenizer.prepend(made, graph.vocabulary)
    side = model_side("TorchScript", made.SerializeToString())
    side.answer({side.inputs[0].name: example}, 1)
    return side


def open_side(spec: str, find: Callable[[str], Experiment]) -> Side:
    """Open what `spec` names: `EXPERIMENT`, `EXPERIMENT:VARIANT`, an ONNX file or a bundle.

    An experiment alone is PyTorch with its weights. The others may end in `@PROVIDER`, a key of
    `PROVIDERS` of sessions. A path comes first where both would do. `find` gives an experiment by
    its name. Raises what `find` raises, MissingInputError, UnknownNameError, UsageError,
    IntegrityError for a bundle or weights that are not what was recorded, ModelError for a model
    that cannot be run or proven, and ProviderError for a provider that this machine lacks.
    """
    name, at, provider = spec.rpartition("@")
    if not at or Path(spec).exists():
        name, provider = spec, "cpu"
    elif provider not in PROVIDERS:
        raise UnknownNameError("provider", provider, PROVIDERS)
    path = Path(name)
    if path.is_dir():
        return model_side(spec, open_bundle(path).model, provider)
    if path.exists():
        load_foreign(path)
        return model_side(spec, path.read_bytes(), provider)
    if "/" in name or path.suffix == ".onnx":
        raise MissingInputError(f"{name} is not there; it should be an ONNX file or a bundle")
    name, colon, variant = name.partition(":")
    experiment = find(name)
    if colon:
        return replace(_variant_of(experiment, variant, provider), name=spec)
    if provider != "cpu":
        raise UsageError(
            f"{spec}: PyTorch answers on the CPU; {name}:fp32@{provider} is the exported model"
        )
    data = layout.ready(experiment.dataset)
    return open_weights(layout.weights(experiment.name), data, experiment)


def _variant_of(experiment: Experiment, variant: str, provider: str) -> ModelSide:
    models = layout.models(experiment.name)
    if variant not in models:
        raise UnknownNameError(f"variant of {experiment.name}", variant, models)
    weights = sha256_of_file(layout.weights(experiment.name))
    return open_variant(models[variant], weights, experiment, provider)
