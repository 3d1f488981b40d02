"""The same graph by torch's older exporter, through TorchScript: a second way to compare.

What ferry ships is made by the exporter that traces with dynamo; where both agree, neither has
changed the model.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from pipeline.exporting import onnxmodel, tokenizer
from pipeline.network.graph import Graph
from pipeline.stages.export import INPUTS
from serving.errors import ModelError


def to_onnx(graph: Graph, example: np.ndarray[Any, Any], opset: int) -> onnx.ModelProto:
    """Export a graph through TorchScript; `example` is two raw rows, as `export.to_onnx` takes.

    Raises ModelError when the architecture cannot be exported that way.
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
                dynamic_axes={key: {0: "batch"} for key in (name, *graph.head.outputs)},
            )
            made = onnx.load(path)
    # The errors of TorchScript have no base of their own but RuntimeError.
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"TorchScript cannot export the model: {reason[:300]}") from error
    if graph.kind == "text":
        tokenizer.prepend(made, graph.vocabulary)
    return made
