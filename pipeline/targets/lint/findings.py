"""What `ferry lint` finds, and the model that it looks at.

A finding is an error where what was asked for does not run the model, a warning where it may go
wrong or slowly there, and a note where it is well.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import TensorProto

from pipeline.exporting.onnxmodel import subgraphs
from serving.runtime.onnxfile import Header, read_header
from serving.runtime.tensors import TensorInfo

Severity = Literal["error", "warning", "note"]
UPSTREAM = "https://github.com/microsoft/onnxruntime/issues/"
FEW = 8
"""Operators that are named before the rest is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LintFinding:
    """One thing that speaks for or against a place."""

    place: str
    """The runtime, as "onnxruntime 1.17", or the execution provider."""
    severity: Severity
    what: str
    cure: str
    """What to do about it; "" where there is nothing to do."""
    see: tuple[str, ...] = ()
    """Addresses of the reports that describe it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LintModel:
    """A model that is to go somewhere."""

    name: str
    path: str
    """Of the ONNX file, for the commands of a cure."""
    content: bytes
    model: onnx.ModelProto
    inputs: tuple[TensorInfo, ...]
    target: str
    """What its bundle was made for, for instance "arm64"; "" for a file."""

    @property
    def header(self) -> Header:
        """What the file says of itself."""
        return read_header(self.content)

    @property
    def halves(self) -> bool:
        """Whether it holds weights in half precision."""
        return any(one.data_type == TensorProto.FLOAT16 for one in self.model.graph.initializer)

    @property
    def texts(self) -> tuple[str, ...]:
        """The inputs that take strings."""
        return tuple(info.name for info in self.inputs if info.is_text)

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """Every node, those of subgraphs too."""
        waiting = [self.model.graph]
        while waiting:
            for node in waiting.pop().node:
                waiting.extend(subgraphs(node))
                yield node
