"""ONNX Runtime as it is installed: its providers, their options, and why one does not start.

The first import of onnxruntime happens here, so that its settings are made once.
"""

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from serving.errors import ProviderError, UnknownNameError, one_line
from serving.runtime.settings import SessionSettings

# ONNX Runtime 1.29 and later report their use by default; a user who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

__all__ = ["onnxruntime"]  # imported here first, then from here

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
BROKEN_MODEL = (ort_state.InvalidProtobuf, ort_state.InvalidGraph, ort_state.NoModel)
"""What no provider can run, so that it is not to blame."""
LIBRARIES: Mapping[str, str] = {
    "cuda": "libonnxruntime_providers_cuda.so",
    "tensorrt": "libonnxruntime_providers_tensorrt.so",
}
MISSING_LIBRARY = re.compile(r"(\S+): cannot open shared object file")


def built_in_providers() -> list[str]:
    """The providers that the installed wheel was built with, whether or not they start here."""
    available = onnxruntime.get_available_providers()
    return [name for name, full in PROVIDERS.items() if full in available]


def installed(provider: str) -> str:
    """ONNX Runtime's own name of a provider.

    Raises UnknownNameError for one that it has not heard of, ProviderError for one not built in.
    """
    there = ", ".join(built_in_providers())
    wheel = f"the installed onnxruntime {onnxruntime.__version__} has {there}"
    if provider not in PROVIDERS:
        raise UnknownNameError("provider", provider, PROVIDERS, hint=wheel)
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise ProviderError(f"{provider} is not there: {wheel}; `ferry doctor` says which work")
    return PROVIDERS[provider]


def provider_options(settings: SessionSettings, provider: str) -> dict[str, str]:
    """The options of a GPU's provider; each is stated, none is left to ONNX Runtime."""
    if provider == "cuda":
        return {
            # TF32 keeps ten bits of what it multiplies: no longer the trained model.
            "use_tf32": str(int(settings.tf32)),
            "prefer_nhwc": str(int(settings.nhwc)),
            "cudnn_conv_algo_search": settings.conv_search.upper(),
            "enable_cuda_graph": str(int(settings.cuda_graph)),
        }
    if provider == "tensorrt":
        return {
            "trt_fp16_enable": str(int(settings.fp16)),
            "trt_cuda_graph_enable": str(int(settings.cuda_graph)),
        }
    return {}


def why_not(provider: str, error: Exception, left: Callable[[], set[str]] = set) -> str:
    """Why a provider did not start, naming the library that is missing if it is one.

    `left` finds the operators that it would leave to the CPU.
    """
    library = _missing_library(provider)
    if library:
        return f"it needs {library}, which is not there"
    text = runtime_reason(error)
    if "fallback to CPU EP has been explicitly disabled" not in text:
        return text
    if operators := left():
        return f"it leaves {', '.join(sorted(operators))} to the CPU"
    return "it did not start (are its driver and libraries there?)"


def runtime_reason(error: Exception) -> str:
    """An error of ONNX Runtime on one line, without places in its own sources."""
    text = one_line(error).removeprefix("[ONNXRuntimeError] : ")
    text = re.sub(r"/onnxruntime_src/\S+ .*?\) ", "", text)
    return text.rstrip(".") or type(error).__name__


def _missing_library(provider: str) -> str | None:
    """The first shared library that a provider's own library does not find."""
    path = Path(onnxruntime.__file__).parent / "capi" / LIBRARIES.get(provider, "")
    if not path.is_file():
        return None
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        found = MISSING_LIBRARY.search(str(error))
        return found[1] if found else None
    return None
