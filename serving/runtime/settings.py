"""How a session runs: threads, calls side by side, bound memory, and what a GPU may do.

Every figure carries these settings, and every one of them is a knob that `ferry bench --tune` may
turn. None changes which model runs; those that change its arithmetic say so.
"""

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serving.errors import UnknownNameError, UsageError

Level = Literal["none", "basic", "extended", "all"]
LEVELS: dict[Level, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""How much ONNX Runtime may rewrite a graph, by its own names."""
ConvSearch = Literal["default", "heuristic", "exhaustive"]
GPU_PROVIDERS = ("cuda", "tensorrt")
SWITCH = {"on": True, "off": False}
ONLY_ON = {
    "cuda_graph": GPU_PROVIDERS,
    "tf32": ("cuda",),
    "nhwc": ("cuda",),
    "conv_search": ("cuda",),
    "fp16": ("tensorrt",),
}
"""The providers that know a setting; one that is not listed here works everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How a model is run on a provider."""

    threads: int
    """Threads within one operator: ONNX Runtime's `intra_op_num_threads`."""
    parallel: int = 1
    """Calls at a time, each from a thread of its own on the one session."""
    spinning: bool = True
    """Whether idle threads of an operator wait by spinning: quicker, and they take a core."""
    binding: bool = False
    """Whether inputs and outputs are bound once, so that a call allocates nothing."""
    optimize: Level = "all"
    """How much ONNX Runtime may rewrite the graph."""
    cuda_graph: bool = False
    """Whether a call replays the kernels of the first one of its shape; needs `binding`."""
    tf32: bool = False
    """Whether fp32 products keep ten bits of their factors: no longer the trained model."""
    nhwc: bool = False
    """Whether CUDA convolutions run with the channels last."""
    conv_search: ConvSearch = "exhaustive"
    """How cuDNN looks for the algorithm of a convolution."""
    fp16: bool = False
    """Whether TensorRT may compute in half precision."""

    @property
    def cores(self) -> int:
        """The cores that can be busy at a time."""
        return self.threads * self.parallel

    def describe(self) -> str:
        """What differs from ONNX Runtime's own ways, on one line; "" for nothing."""
        differing = [
            f"{field.name}={_text(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if field.name != "threads" and getattr(self, field.name) != field.default
        ]
        return " ".join(differing)


def parse_settings(words: Sequence[str], base: SessionSettings) -> SessionSettings:
    """Change `base` by words such as "parallel=2", "spinning=off" or "conv_search=heuristic".

    Raises UnknownNameError for no setting, and UsageError for a value that it cannot take.
    """
    hints = typing.get_type_hints(SessionSettings)
    given: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if name not in hints:
            raise UnknownNameError("setting", name, hints)
        if not separator:
            raise UsageError(f"a setting is NAME=VALUE, got {word!r}")
        given[name] = _value(name, hints[name], value)
    return dataclasses.replace(base, **given)


def check_settings(settings: SessionSettings, provider: str) -> None:
    """Refuse what cannot go together: UsageError with the setting, the value and the reason."""
    for name in ("threads", "parallel"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} must be 1 or more, got {getattr(settings, name)}")
    for field in dataclasses.fields(settings):
        value, known = getattr(settings, field.name), ONLY_ON.get(field.name)
        if known and provider not in known and value != field.default:
            raise UsageError(
                f"{field.name}={_text(value)} is for {' and '.join(known)}, not for {provider}"
            )
    if settings.cuda_graph and not settings.binding:
        raise UsageError("cuda_graph=on replays calls on bound memory: it needs binding=on")


def _value(name: str, hint: type, text: str) -> object:
    choices = SWITCH if hint is bool else {choice: choice for choice in typing.get_args(hint)}
    if choices:
        if text not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, got {text!r}")
        return choices[text]
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{name} must be a whole number, got {text!r}") from error


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
