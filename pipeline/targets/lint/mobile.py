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
class Share:
    """The nodes that would run on a provider."""

    nodes: int
    parts: int
    """Into how many pieces the graph would be cut; each costs copies to the CPU and back."""
    verdict: str
    """ "YES", "MAYBE" or "NO": whether it should be tried, as the checker judges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usability:
    """What the checker says of one format of a provider."""

    form: str
    nodes: int
    """Of the graph, after the optimizations that do not depend on a machine."""
    as_is: Share
    fixed: Share
    """If every shape were fixed."""
    unsupported: tuple[str, ...]
    """The operators that do not run there, whatever their shapes."""


def usability(content: bytes, provider: str) -> tuple[Usability, ...]:
    """Ask the checker about a model's bytes, for each format of "nnapi" or "coreml"."""
    with quiet(), tempfile.TemporaryDirectory() as folder:
        model, optimized = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        write_bytes(model, content)
        optimize_model(model, optimized, use_external_initializers=True)
        shaped = ModelProtoWithShapeInfo(optimized).model_with_shape_info
        return tuple(_asked(form, check, shaped) for form, check in FORMS[provider])


def _asked(form: str, check: Check, model: Any) -> Usability:
    as_is = check(model, require_fixed_input_sizes=True)
    fixed = check(model, require_fixed_input_sizes=False)
    return Usability(
        form=form,
        nodes=fixed.num_nodes,
        as_is=_share(as_is),
        fixed=_share(fixed),
        unsupported=tuple(sorted(fixed.unsupported_ops)),
    )


def _share(info: Any) -> Share:
    return Share(
        nodes=info.num_supported_nodes,
        parts=info.num_partitions,
        verdict=info.suitability().name,
    )
