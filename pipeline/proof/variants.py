"""The sides of an experiment: its trained weights in PyTorch, and the ONNX files made of them."""

from pathlib import Path

import numpy as np

from pipeline import onnxmodel, ready
from pipeline.config import Experiment
from pipeline.errors import IntegrityError
from pipeline.export import INPUTS
from pipeline.graph import load_graph
from pipeline.proof.sides import ModelSide, WeightsSide, model_side
from pipeline.tokenizer import INPUT
from serving.files import require, sha256_of_file
from serving.tensors import TensorInfo

__all__ = ["open_variant", "open_weights"]

BATCH = "batch"


def open_weights(weights: Path, data: Path, experiment: Experiment) -> WeightsSide:
    """The trained weights of an experiment; `data` is its preprocessed data set.

    Raises MissingInputError, and IntegrityError for weights of another model.
    """
    manifest = ready.open_manifest(data)
    graph = load_graph(weights, experiment, manifest)
    axes = manifest.arrays["test_inputs.npy"].shape[1:]
    is_text = manifest.kind == "text"
    dtype = "object" if is_text else manifest.arrays["test_inputs.npy"].dtype
    name = INPUT if is_text else INPUTS[manifest.kind]
    info = TensorInfo(name=name, dtype=dtype, shape=(BATCH, *axes))
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
    side = model_side(str(path), require(path, again).read_bytes(), provider, "all")
    if side.session.metadata.get(f"{onnxmodel.METADATA}weights_sha256") != weights_sha256:
        raise IntegrityError(
            f"{path} was not exported from the weights {weights_sha256[:12]}…; "
            f"`{again}` makes it anew"
        )
    return side
