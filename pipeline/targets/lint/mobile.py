"""ONNX Runtime's own checker of what NNAPI and CoreML would run, called as a library.

It counts the nodes by their operators and shapes, as they are and as they would be with fixed
shapes. It knows nothing of what a driver does with them: a good count is no proof.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onnxruntime.tools.mobile_helpers import usability_checker
from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

from pipeline.exporting.onnxmodel import quiet
from serving.files import write_bytes

Check = Callable[..., Any]
FORMS: dict[str, tuple[tuple[str, Check], ...]] = {
    "nnapi": (("NNAPI", usability_checker.check_nnapi_partitions),),
    "coreml": tuple(
        (
            form,
            partial(
                usability_checker.check_coreml_partitions,
                config_filename=f"coreml_supported_{form.lower()}_ops.md",
            ),
        )
        for form in ("MLProgram", "NeuralNetwork")
    ),
}
"""The formats that a provider makes of a graph, the better one first, and what checks each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usability:
    """What the checker says of one format of a provider."""

    form: str
    nodes: int
    """Of the graph, after the optimizations that do not depend on a machine."""
    there: int
    """Those that would run on the provider."""
    parts: int
    """Into how many pieces the graph would be cut; each costs copies to the CPU and back."""
    verdict: str
    """ "YES", "MAYBE" or "NO": whether it should be tried, as the checker judges."""
    lacking: tuple[str, ...]
    """The operators that do not run there, whatever their shapes."""


def usability(content: bytes, provider: str, *, if_fixed: bool) -> tuple[Usability, ...]:
    """Ask the checker about a model's bytes, for each format of "nnapi" or "coreml".

    `if_fixed` asks what would run there if every shape were fixed.
    """
    with quiet(), tempfile.TemporaryDirectory() as folder:
        model, optimized = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        write_bytes(model, content)
        optimize_model(model, optimized, use_external_initializers=True)
        shaped = ModelProtoWithShapeInfo(optimized).model_with_shape_info
    # It refuses to look at the shapes of a graph of which none is known.
    shapes = not if_fixed and len(shaped.graph.value_info) > 0
    return tuple(_asked(form, check, shaped, shapes=shapes) for form, check in FORMS[provider])


def _asked(form: str, check: Check, model: Any, *, shapes: bool) -> Usability:
    info = check(model, require_fixed_input_sizes=shapes)
    return Usability(
        form=form,
        nodes=info.num_nodes,
        there=info.num_supported_nodes,
        parts=info.num_partitions,
        verdict=info.suitability().name if info.num_nodes else "YES",
        lacking=tuple(sorted(info.unsupported_ops)),
    )
