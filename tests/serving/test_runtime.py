"""ONNX Runtime as it is installed: names of providers, their options, and missing libraries."""

from pathlib import Path

import pytest

from serving.errors import ProviderError, UnknownNameError
from serving.runtime import providers
from serving.runtime.providers import (
    PROVIDERS,
    built_in_providers,
    installed,
    provider_options,
    runtime_reason,
    why_not,
)
from serving.runtime.settings import SessionSettings, parse_settings

BASE = SessionSettings(threads=1)
HIDDEN = RuntimeError("the fallback to CPU EP has been explicitly disabled by the user.")


def test_the_cpu_is_built_in():
    assert "cpu" in built_in_providers()
    assert set(built_in_providers()) <= set(PROVIDERS)
    assert installed("cpu") == "CPUExecutionProvider"


def test_a_name_that_is_none_gets_the_nearest_and_what_is_there():
    there = ", ".join(built_in_providers())
    with pytest.raises(UnknownNameError, match=f"did you mean 'tensorrt'.* has {there}"):
        installed("tensort")


def test_a_provider_of_another_wheel_is_not_there():
    with pytest.raises(ProviderError, match="dml is not there: the installed onnxruntime"):
        installed("dml")


def test_a_gpu_is_told_everything():
    assert provider_options(BASE, "cuda") == {
        "use_tf32": "0",
        "prefer_nhwc": "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "enable_cuda_graph": "0",
    }
    words = ["tf32=on", "nhwc=on", "conv_search=heuristic", "cuda_graph=on", "binding=on"]
    assert provider_options(parse_settings(words, BASE), "cuda") == {
        "use_tf32": "1",
        "prefer_nhwc": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "1",
    }
    half = parse_settings(["fp16=on"], BASE)
    assert provider_options(half, "tensorrt")["trt_fp16_enable"] == "1"
    assert provider_options(BASE, "cpu") == {}


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the loader's own words about the provider's library."""
    (tmp_path / "capi").mkdir()
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.write_bytes(b"")
    monkeypatch.setattr(providers.onnxruntime, "__file__", str(tmp_path / "__init__.py"))

    def load(path: str) -> None:
        assert path == str(library)
        raise OSError("libcublasLt.so.13: cannot open shared object file: No such file")

    monkeypatch.setattr(providers.ctypes, "CDLL", load)
    assert why_not("cuda", HIDDEN) == "it needs libcublasLt.so.13, which is not there"


def test_without_a_missing_library_the_reason_is_the_runtimes_own() -> None:
    assert why_not("cpu", HIDDEN).startswith("it did not start (are its driver")
    left = why_not("cpu", HIDDEN, lambda: {"StringSplit", "Cast"})
    assert left == "it leaves Cast, StringSplit to the CPU"
    assert why_not("cpu", RuntimeError("no such device.\n")) == "no such device"


def test_an_error_is_one_line_without_places_in_sources() -> None:
    text = "[ONNXRuntimeError] : 6 : FAIL : /onnxruntime_src/a/b.cc:12 Run(int) the\n  node failed."
    assert runtime_reason(RuntimeError(text)) == "6 : FAIL : the node failed"
    assert runtime_reason(ValueError("")) == "ValueError"
