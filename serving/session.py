"""The only place that makes ONNX Runtime sessions: strict about the provider, and with its proof.

ONNX Runtime runs on the CPU without a word when the provider that was asked for is missing. Here a
session has the one provider that was asked for, or there is an error.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serving.cores import allowed_cores
from serving.errors import (
    InputError,
    MissingInputError,
    ModelError,
    ProviderError,
    UnknownNameError,
)
from serving.files import sha256_of_bytes
from serving.tensors import TensorInfo

# ONNX Runtime 1.29 and later report their use by default; a user who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

__all__ = [
    "LEVELS",
    "PROVIDERS",
    "Level",
    "ProviderProof",
    "Session",
    "TensorInfo",
    "allowed_cores",
    "open_session",
    "usable_providers",
]

Array = npt.NDArray[Any]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
Level = Literal["none", "basic", "extended", "all"]
LEVELS: dict[Level, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""How much ONNX Runtime may rewrite a graph, by its own names."""
# TF32 keeps ten bits of what it multiplies: fp32 that rounds so is no longer the trained model.
PROVIDER_OPTIONS = {PROVIDERS["cuda"]: {"use_tf32": "0"}}
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}
ORT_ERRORS = (
    RuntimeError,
    ort_state.EPFail,
    ort_state.EngineError,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoModel,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)
SILENT, ERRORS = 4, 3
RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
"""Operators whose kernels in ONNX Runtime 1.31 end the whole process on a batch without rows."""
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderProof:
    """Which provider was asked for and which one ONNX Runtime gave the nodes to."""

    asked: str
    nodes: Mapping[str, int]
    """Nodes per provider, by ONNX Runtime's own record of the assignment."""

    @property
    def share(self) -> float:
        """The part of the nodes, 0 to 1, that runs where it was asked to."""
        total = sum(self.nodes.values())
        return self.nodes.get(self.asked, 0) / total if total else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A model that is ready to run on one provider."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    """The model's `metadata_props`."""
    sha256: str
    """Of the very bytes that the session was made from."""
    threads: int
    proof: ProviderProof
    recurrent: bool
    """Whether it has a recurrent layer, which cannot be run on a batch without rows."""
    raw: Any
    """The `onnxruntime.InferenceSession`."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on named inputs and return its outputs by name.

        Raises InputError when ONNX Runtime refuses an input's dtype or shape, and for a batch
        without rows that it would not survive.
        """
        if self.recurrent and any(array.size == 0 for array in feeds.values()):
            raise InputError(
                "the model refused its input: a recurrent layer needs at least one row of one step"
            )
        names = [output.name for output in self.outputs]
        try:
            values = self.raw.run(names, dict(feeds))
        except (*ORT_ERRORS, ValueError) as error:
            raise InputError(f"the model refused its input: {_one_line(error)}") from error
        return dict(zip(names, values, strict=True))


def open_session(
    model: Path | bytes,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: Level = "all",
) -> Session:
    """Make a session of an ONNX file, or of its bytes, on exactly one provider.

    `provider` is a key of `PROVIDERS`, `threads` the threads within one operator (default: the
    cores this process may use), `optimize` how much ONNX Runtime may rewrite the
    graph.

    Raises MissingInputError for a file that is not there, ModelError for one that ONNX Runtime
    cannot load, UnknownNameError for a provider it has never heard of and ProviderError for one
    that this machine cannot run.
    """
    content = _read(model)
    label = str(model) if isinstance(model, Path) else "the model"
    asked = _installed(provider)
    options = _options(threads or allowed_cores(), provider, optimize=optimize)
    with _logging(SILENT):
        raw = _create(content, options, asked, label)
    return Session(
        inputs=tuple(_info(value) for value in raw.get_inputs()),
        outputs=tuple(_info(value) for value in raw.get_outputs()),
        metadata=dict(raw.get_modelmeta().custom_metadata_map),
        sha256=sha256_of_bytes(content),
        threads=options.intra_op_num_threads,
        proof=_prove(raw, asked, label),
        recurrent=any(operator in RECURRENT for operator in _operators(raw)),
        raw=raw,
    )


def usable_providers(probe: bytes) -> dict[str, str | None]:
    """Every provider that the installed wheel names, with None or the reason it cannot run.

    `probe` is the model that each one is asked to run.
    """
    return {name: _reason(name, probe) for name in PROVIDERS if _is_built_in(name)}


def _read(model: Path | bytes) -> bytes:
    # From bytes: what was hashed is what runs.
    if isinstance(model, bytes):
        return model
    try:
        return model.read_bytes()
    except FileNotFoundError as error:
        raise MissingInputError(f"{model} is not there") from error
    except IsADirectoryError as error:
        raise InputError(f"{model} is a folder, not an ONNX file") from error


def _is_built_in(provider: str) -> bool:
    return PROVIDERS[provider] in onnxruntime.get_available_providers()


def _installed(provider: str) -> str:
    if provider not in PROVIDERS:
        raise UnknownNameError("provider", provider, PROVIDERS)
    if not _is_built_in(provider):
        raise ProviderError(
            f"{provider} is not part of the installed onnxruntime {onnxruntime.__version__}; "
            f"`ferry doctor` says what is"
        )
    return PROVIDERS[provider]


def _options(threads: int, provider: str, *, optimize: Level) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = SILENT  # what goes wrong arrives as an exception
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Weights in other files would not be hashed; ONNX Runtime looks for them in a folder that
    # cannot exist, where it would take the working directory.
    options.add_session_config_entry(EXTERNAL_FOLDER, os.devnull)
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    level = LEVELS[optimize]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return options


def _create(content: bytes, options: Any, asked: str, label: str) -> Any:
    if asked in (PROVIDERS["cuda"], PROVIDERS["tensorrt"]) and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(None):  # it tells what it did not find on stdout
            onnxruntime.preload_dlls()
    try:
        # enable_fallback=0: else onnxruntime retries on the CPU and says so on stdout.
        chosen = [(asked, PROVIDER_OPTIONS.get(asked, {}))]
        return onnxruntime.InferenceSession(content, options, providers=chosen, enable_fallback=0)
    except ORT_ERRORS as error:
        if asked == PROVIDERS["cpu"]:
            raise ModelError(f"{label} cannot be loaded: {_one_line(error)}") from error
        raise ProviderError(
            f"{asked} does not run {label} on this machine: {_why(error)}; "
            f"`ferry doctor` says which providers do"
        ) from error


def _prove(raw: Any, asked: str, label: str) -> ProviderProof:
    nodes: dict[str, int] = {}
    for part in raw.get_provider_graph_assignment_info():
        nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(part.get_nodes())
    proof = ProviderProof(asked=asked, nodes=nodes)
    if asked not in raw.get_providers() or proof.share < 1:
        raise ProviderError(f"{asked} was asked for, but the nodes of {label} went to {nodes}")
    return proof


def _operators(raw: Any) -> Iterator[str]:
    for part in raw.get_provider_graph_assignment_info():
        yield from (node.op_type for node in part.get_nodes())


def _info(value: Any) -> TensorInfo:
    dtype = DTYPES.get(value.type, value.type)
    return TensorInfo(name=value.name, dtype=dtype, shape=tuple(value.shape))


def _reason(provider: str, probe: bytes) -> str | None:
    try:
        session = open_session(probe, provider=provider, threads=1)
        info = session.inputs[0]
        shape = [size if isinstance(size, int) else 1 for size in info.shape]
        session.run({info.name: np.zeros(shape, info.dtype)})
    except (ProviderError, ModelError, InputError) as error:
        return str(error)
    return None


@contextlib.contextmanager
def _logging(severity: int) -> Iterator[None]:
    """Set how much ONNX Runtime's libraries write to stderr for the length of a block."""
    onnxruntime.set_default_logger_severity(severity)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(ERRORS)


def _why(error: Exception) -> str:
    text = _one_line(error)
    if "fallback to CPU EP has been explicitly disabled" in text:
        return "it did not start, or cannot run every node (are its driver and libraries there?)"
    return text


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    text = re.sub(r"/onnxruntime_src/\S+ .*?\) ", "", text)  # a place in its own sources
    return text.rstrip(".") or type(error).__name__
