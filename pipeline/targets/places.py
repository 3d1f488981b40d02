"""Which runtime and which execution provider take a model: what stands against it, and its cure.

    ferry lint bundles/mnist-cnn --ort 1.17 --provider coreml,nnapi

A finding is an error where what was asked for does not run the model, a warning where it may go
wrong or slowly there, and a note where it is well. What is known of a runtime that is bad stands
in `BAD_RUNTIMES`, each with the upstream issue that tells of it.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import TensorProto

from pipeline.exporting.onnxmodel import subgraphs
from pipeline.targets.mobile import Usability, usability
from serving.errors import UsageError
from serving.runtime.onnxfile import (
    IR_RUNTIME,
    ML_DOMAIN,
    OPSET_RUNTIME,
    Header,
    minimum_runtime,
    read_header,
)
from serving.runtime.providers import onnxruntime
from serving.runtime.tensors import TensorInfo

Severity = Literal["error", "warning", "note"]
Version = tuple[int, ...]
VERSION = re.compile(r"1\.(\d{1,3})(?:\.(\d{1,3}))?")
OLDEST = 10
"""The first ONNX Runtime, 1.10, that `minimum_runtime` knows."""
WEB_RUNTIME = 30
"""The onnxruntime-web 1.30 that a web bundle holds."""
UPSTREAM = "https://github.com/microsoft/onnxruntime/issues/"
FIX = "python -m onnxruntime.tools.make_dynamic_shape_fixed"
FEW = 8
"""Operators that are named before the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that speaks for or against a place."""

    place: str
    """The runtime, as "onnxruntime 1.17", or the execution provider."""
    severity: Severity
    what: str
    cure: str
    """What to do about it; "" where there is nothing to do."""
    see: tuple[str, ...] = ()
    """Addresses where it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRuntime:
    """Versions of ONNX Runtime that are known to go wrong."""

    first: Version
    last: Version
    """The last one that is known to; (1, 999) where no release mends it yet."""
    what: str
    cure: str
    issues: tuple[int, ...]
    concerns: Callable[[Candidate], bool] = lambda _model: True
    on_arm: bool = True
    """Whether it goes wrong on 64-bit Arm alone."""

    def reaches(self, version: Version) -> bool:
        """Whether the version, or a patch release of "1.21" where it says no more, is one."""
        length = len(version)
        return self.first[:length] <= version <= self.last[:length]

    def span(self) -> str:
        """Its versions in words."""
        first, last = (".".join(map(str, one)) for one in (self.first, self.last))
        if self.last[1] == OPEN[1]:
            return f"{first} and later"
        return first if first == last else f"{first} to {last}"


OPEN: Version = (1, 999, 0)
BAD_RUNTIMES = (
    BadRuntime(
        first=(1, 15, 0),
        last=(1, 18, 1),
        what="answers wrong where a convolution in half precision has a bias, on 64-bit Arm Linux",
        cure="use 1.19 or later there, or ship fp32",
        issues=(18992,),
        concerns=lambda model: model.halves and any(n.op_type == "Conv" for n in model.nodes()),
    ),
    BadRuntime(
        first=(1, OLDEST, 0),
        last=(1, 18, 1),
        what="does not start beside numpy 2",
        cure="install 'numpy<2' with it, or 1.19 or later",
        issues=(21063,),
        on_arm=False,
    ),
    BadRuntime(
        first=(1, 21, 0),
        last=(1, 21, 0),
        what=(
            "ends with an illegal instruction when imported on Arm processors without half "
            "precision, such as those of a Raspberry Pi 3 and 4"
        ),
        cure="use 1.20.1, or 1.21.1 or later",
        issues=(23957, 24112, 24512),
    ),
    BadRuntime(
        first=(1, 22, 0),
        last=(1, 22, 0),
        what=(
            "is aborted on some Arm boards, in the setup of its processor information (seen on "
            "Jetson Orin and Raspberry Pi Zero 2 W)"
        ),
        cure="use another version, and run the bundle's selftest on the very board",
        issues=(25103, 25290, 25472),
    ),
    BadRuntime(
        first=(1, 24, 1),
        last=OPEN,
        what=(
            "overflows to NaN on 64-bit Arm Linux where sums in half precision come near 65504, "
            "which 1.23.2 does not"
        ),
        cure="prove it there with the bundle's selftest, or ship fp32 or int8",
        issues=(32600,),
        concerns=lambda model: model.halves,
    ),
)


def as_version(text: str) -> Version:
    """The version that "1.17" or "1.21.0" means; UsageError for one that nothing is known of."""
    newest = _minor(onnxruntime.__version__)
    found = VERSION.fullmatch(text)
    if found is None or not OLDEST <= int(found[1]) <= newest:
        raise UsageError(
            f"--ort {text}: nothing is known of that ONNX Runtime; known are 1.{OLDEST} to "
            f"1.{newest}, written as 1.17 or 1.21.0"
        )
    return (1, *(int(part) for part in found.groups() if part is not None))


def provider_names(text: str) -> tuple[str, ...]:
    """The providers of a list such as "coreml,nnapi"; UsageError for any other name."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in PROVIDER_RULES:
            raise UsageError(
                f"--provider {name}: nothing is known of that execution provider; known are "
                f"{', '.join(PROVIDER_RULES)}"
            )
    return names


# The runtime


def of_runtime(model: Candidate, version: Version) -> Iterator[Finding]:
    """What stands against a version of ONNX Runtime; `version` as `as_version` gives it."""
    name = f"onnxruntime {'.'.join(map(str, version))}"
    least = minimum_runtime(model.header)
    if version[1] < _minor(least):
        yield _too_old(model, name, version[1], least)
    else:
        yield Finding(place=name, severity="note", what=f"takes it: it needs {least}", cure="")
    for bad in BAD_RUNTIMES:
        if bad.reaches(version) and bad.concerns(model):
            yield _bad(model, name, bad, asked=len(version) == 3)


def _too_old(model: Candidate, place: str, minor: int, least: str) -> Finding:
    """What is newer than a runtime takes: operators, the format of the file, or both."""
    header = model.header
    newest = {
        what: max((one for one, since in table.items() if since <= minor), default=min(table) - 1)
        for what, table in (("opset", OPSET_RUNTIME), ("IR", IR_RUNTIME))
    }
    found = {"opset": header.opset, "IR": header.ir_version}
    above = [f"{what} {found[what]}" for what in found if found[what] > newest[what]]
    above += [f"{ML_DOMAIN} opset {header.opsets[ML_DOMAIN]}"] if not above else []
    cure = f"install 'onnxruntime>={least}' there"
    # Strings are split by an operator of opset 20, and ferry exports from opset 18 on.
    ours = "ferry.version" in header.metadata
    if above[0].startswith("opset") and not model.texts and not (ours and newest["opset"] < 18):
        cure += f", or export with opset {newest['opset']}"
    elif above[0].startswith("IR"):
        cure += f", or save the model with ir_version {newest['IR']} and prove that file"
    what = f"is too old for {' and '.join(above)}: it needs {least}"
    return Finding(place=place, severity="error", what=what, cure=cure)


def _minor(version: str) -> int:
    return int(version.split(".")[1])


def of_runtimes(model: Candidate) -> Iterator[Finding]:
    """The versions of ONNX Runtime that take a model, and those that do it badly."""
    header, least = model.header, minimum_runtime(model.header)
    what = f"{least} or later takes it: opset {header.opset}, IR {header.ir_version}"
    yield Finding(place="onnxruntime", severity="note", what=what, cure="")
    for bad in BAD_RUNTIMES:
        taken = bad.last[1] >= _minor(least)
        if taken and bad.concerns(model) and (bad.on_arm or model.target != "arm64"):
            yield _bad(model, "onnxruntime", bad, asked=False)


def _bad(model: Candidate, place: str, bad: BadRuntime, *, asked: bool) -> Finding:
    """A bad runtime: an error where that very version is to run on Arm."""
    certain = asked and bad.on_arm and model.target == "arm64" and bad.last != OPEN
    return Finding(
        place=place,
        severity="error" if certain else "warning",
        what=bad.what if asked else f"{bad.span()} {bad.what}",
        cure=bad.cure,
        see=tuple(f"{UPSTREAM}{number}" for number in bad.issues),
    )


# The execution providers


def of_provider(model: Candidate, provider: str) -> Iterator[Finding]:
    """What stands against a provider, or a note that nothing does."""
    return PROVIDER_RULES[provider](model)


def _of_cpu(_model: Candidate) -> Iterator[Finding]:
    yield Finding(place="cpu", severity="note", what="runs every operator", cure="")


def _of_cuda(model: Candidate) -> Iterator[Finding]:
    biases = _integer_biases(model)
    if biases:
        yield Finding(
            place="cuda",
            severity="error",
            what=f"has no DequantizeLinear of int32, which {biases} biases of this int8 model need",
            cure="ship fp16 or fp32: `quantize: {skip: {int8: it is for CUDA}}` in params.yaml",
        )
    strings = sorted({n.op_type for n in model.nodes()} & {"StringSplit", "StringNormalizer"})
    if model.texts or strings:
        yield Finding(
            place="cuda",
            severity="warning",
            what=f"leaves what works on strings to the CPU: {', '.join(strings) or 'its inputs'}",
            cure="measure it: `ferry bench` says which nodes ran where",
        )
    if not biases and not model.texts:
        yield Finding(place="cuda", severity="note", what="nothing is known that it lacks", cure="")


def _integer_biases(model: Candidate) -> int:
    """How many DequantizeLinear read a constant of int32."""
    wide = {one.name for one in model.model.graph.initializer if one.data_type == TensorProto.INT32}
    reading = (n.input[0] for n in model.nodes() if n.op_type == "DequantizeLinear")
    return sum(name in wide for name in reading)


def _of_web(model: Candidate) -> Iterator[Finding]:
    least = minimum_runtime(model.header)
    if _minor(least) > WEB_RUNTIME:
        yield Finding(
            place="web",
            severity="error",
            what=f"holds onnxruntime-web 1.{WEB_RUNTIME}, the model needs {least}",
            cure="export with an older opset",
        )
    if model.texts:
        yield Finding(
            place="web",
            severity="warning",
            what=f"takes strings ({', '.join(model.texts)}) in its wasm alone, not on WebGPU",
            cure="keep executionProviders: ['wasm'], as the bundle's page does",
        )
    yield Finding(place="web", severity="note", what="wasm runs what the CPU runs", cure="")


def _of_nnapi(model: Candidate) -> Iterator[Finding]:
    yield from _of_mobile(model, "nnapi", fixed_only=True)
    yield Finding(
        place="nnapi",
        severity="note",
        what="is deprecated since Android 15, and drivers differ: its answers were wrong on some",
        cure="run the golden rows on each kind of device",
        see=(f"{UPSTREAM}19507", f"{UPSTREAM}19590"),
    )


def _of_coreml(model: Candidate) -> Iterator[Finding]:
    yield from _of_mobile(model, "coreml", fixed_only=False)
    if model.halves:
        yield Finding(
            place="coreml",
            severity="warning",
            what="answered wrong in half precision as MLProgram with fixed shapes on macOS 15",
            cure="run the golden rows there, or ship fp32",
            see=(f"{UPSTREAM}32569",),
        )


def _of_mobile(model: Candidate, provider: str, *, fixed_only: bool) -> Iterator[Finding]:
    """Strings, shapes, and the verdict of the runtime's own checker."""
    if model.texts:
        yield Finding(
            place=provider,
            severity="error",
            what=f"takes numbers alone, and {', '.join(model.texts)} holds strings",
            cure="run it on the CPU: `--provider cpu`",
        )
        return
    free = [info for info in model.inputs if not all(isinstance(a, int) for a in info.shape)]
    if free:
        yield Finding(
            place=provider,
            severity="error" if fixed_only else "warning",
            what=_free_axes(free) + ("" if fixed_only else ", which it runs slowly or not at all"),
            cure=" && ".join(fixing(model)),
            see=() if fixed_only else (f"{UPSTREAM}21227",),
        )
    yield _verdict(provider, usability(model.content, provider), free=bool(free))


def _free_axes(infos: Sequence[TensorInfo]) -> str:
    """Which inputs have axes of any length, in words."""
    named = ", ".join(f"{info.name} {list(info.shape)}".replace("'", "") for info in infos)
    return f"wants fixed shapes, and {named} has an axis of any length"


def fixing(model: Candidate) -> list[str]:
    """The commands that give every input one row and axes of a fixed length.

    What they write lies in the working folder, as a file more in a bundle would make it none. An
    axis that is no batch has a length to choose: it stands as LENGTH.
    """
    names = {
        axis: at
        for info in model.inputs
        for at, axis in enumerate(info.shape)
        if isinstance(axis, str)
    }
    changes = [
        ("--dim_param", axis, "--dim_value", _length(at, None)) for axis, at in names.items()
    ]
    for info in model.inputs:
        if None in info.shape:
            axes = [_length(at, axis) for at, axis in enumerate(info.shape)]
            changes.append(("--input_name", info.name, "--input_shape", ",".join(axes)))
    fixed = f"{model.name}.fixed.onnx"
    sources = [model.path, *[fixed] * len(changes)]
    return [
        f"{FIX} {shlex.join([*change, source, fixed])}"
        for change, source in zip(changes, sources, strict=False)
    ]


def _length(at: int, axis: int | str | None) -> str:
    if isinstance(axis, int):
        return str(axis)
    return "1" if at == 0 else "LENGTH"


def _verdict(provider: str, asked: Sequence[Usability], *, free: bool) -> Finding:
    """What the checker says, by the format that takes most of the graph."""
    best = max(asked, key=lambda one: (one.fixed.nodes, -one.fixed.parts))
    said = "; ".join(_said(one, several=len(asked) > 1) for one in asked)
    severity: Severity = "note" if best.fixed.verdict == "YES" else "warning"
    if not best.fixed.nodes:
        severity = "error"
    return Finding(
        place=provider,
        severity=severity,
        what=f"{'with fixed shapes ' if free else ''}{said}",
        cure=""
        if severity == "note"
        else "run it on the CPU, which needs no copies between the parts: `--provider cpu`",
    )


def _said(one: Usability, *, several: bool) -> str:
    parts = f"{one.fixed.parts} part{'s' if one.fixed.parts != 1 else ''}"
    text = f"{one.fixed.nodes} of {one.nodes} nodes run there, in {parts}"
    more = len(one.unsupported) - FEW
    lacking = ", ".join(name.removeprefix("ai.onnx:") for name in one.unsupported[:FEW])
    if one.unsupported:
        text += f" (not {lacking}{f' and {more} more' if more > 0 else ''})"
    return f"as {one.form} {text}" if several else text


PROVIDER_RULES: Mapping[str, Callable[[Candidate], Iterator[Finding]]] = {
    "cpu": _of_cpu,
    "cuda": _of_cuda,
    "coreml": _of_coreml,
    "nnapi": _of_nnapi,
    "web": _of_web,
}
"""The execution providers of which something is known."""
