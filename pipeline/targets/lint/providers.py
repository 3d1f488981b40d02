"""Which execution providers take a model: strings, shapes, operators, and what is known of each.

ONNX Runtime's own checker says what NNAPI and CoreML would run: it counts the nodes by their
operators and shapes, as they are and as they would be with fixed shapes. It knows nothing of what a
driver does with them: a good count is no proof.
"""

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from onnxruntime.tools.mobile_helpers import usability_checker
from onnxruntime.tools.onnx_model_utils import optimize_model

from pipeline.exporting.onnxmodel import quiet
from pipeline.targets.lint.findings import FEW, UPSTREAM, LintFinding, LintModel, Severity
from pipeline.targets.lint.runtimes import minor_of
from pipeline.targets.web import RUNTIME_VERSION
from serving.errors import ModelError, UsageError, one_line
from serving.files import write_bytes
from serving.runtime.onnxfile import minimum_runtime
from serving.runtime.tensors import TensorInfo

FIX = "python -m onnxruntime.tools.make_dynamic_shape_fixed"
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


def of_provider(model: LintModel, provider: str) -> Iterator[LintFinding]:
    """What stands against a provider, or a note that nothing does."""
    return PROVIDER_RULES[provider](model)


def _of_cpu(_model: LintModel) -> Iterator[LintFinding]:
    yield LintFinding(place="cpu", severity="note", what="runs every operator", cure="")


def _of_cuda(model: LintModel) -> Iterator[LintFinding]:
    biases = _integer_biases(model)
    if biases:
        yield LintFinding(
            place="cuda",
            severity="error",
            what=f"has no DequantizeLinear of int32, which {biases} biases of this int8 model need",
            cure="ship fp16 or fp32: `quantize: {skip: {int8: it is for CUDA}}` in params.yaml",
        )
    strings = sorted({n.op_type for n in model.nodes()} & {"StringSplit", "StringNormalizer"})
    if model.texts or strings:
        yield LintFinding(
            place="cuda",
            severity="warning",
            what=f"leaves what works on strings to the CPU: {', '.join(strings) or 'its inputs'}",
            cure="measure it: `ferry bench` says which nodes ran where",
        )
    if not biases and not model.texts:
        yield LintFinding(
            place="cuda", severity="note", what="nothing is known that it lacks", cure=""
        )


def _integer_biases(model: LintModel) -> int:
    """How many DequantizeLinear read a constant of int32."""
    wide = {one.name for one in model.model.graph.initializer if one.data_type == TensorProto.INT32}
    reading = (n.input[0] for n in model.nodes() if n.op_type == "DequantizeLinear")
    return sum(name in wide for name in reading)


def _of_web(model: LintModel) -> Iterator[LintFinding]:
    least = minimum_runtime(model.header)
    if minor_of(least) > minor_of(RUNTIME_VERSION):
        yield LintFinding(
            place="web",
            severity="error",
            what=f"holds onnxruntime-web {RUNTIME_VERSION}, the model needs {least}",
            cure="export with an older opset",
        )
    if model.texts:
        yield LintFinding(
            place="web",
            severity="warning",
            what=f"takes strings ({', '.join(model.texts)}) in its wasm alone, not on WebGPU",
            cure="keep executionProviders: ['wasm'], as the bundle's page does",
        )
    yield LintFinding(place="web", severity="note", what="wasm runs what the CPU runs", cure="")


def _of_nnapi(model: LintModel) -> Iterator[LintFinding]:
    yield from _of_mobile(model, "nnapi", fixed_only=True)
    yield LintFinding(
        place="nnapi",
        severity="note",
        what="is deprecated since Android 15, and drivers differ: its answers were wrong on some",
        cure="run the golden rows on each kind of device",
        see=(f"{UPSTREAM}19507", f"{UPSTREAM}19590"),
    )


def _of_coreml(model: LintModel) -> Iterator[LintFinding]:
    yield from _of_mobile(model, "coreml", fixed_only=False)
    if model.halves:
        yield LintFinding(
            place="coreml",
            severity="warning",
            what="answered wrong in half precision as MLProgram with fixed shapes on macOS 15",
            cure="run the golden rows there, or ship fp32",
            see=(f"{UPSTREAM}32569",),
        )


def _of_mobile(model: LintModel, provider: str, *, fixed_only: bool) -> Iterator[LintFinding]:
    """Strings, shapes, and the verdict of the runtime's own checker."""
    if model.texts:
        yield LintFinding(
            place=provider,
            severity="error",
            what=f"takes numbers alone, and {', '.join(model.texts)} holds strings",
            cure="run it on the CPU: `--provider cpu`",
        )
        return
    free = [info for info in model.inputs if not all(isinstance(a, int) for a in info.shape)]
    if free:
        yield LintFinding(
            place=provider,
            severity="error" if fixed_only else "warning",
            what=_free_axes(free) + ("" if fixed_only else ", which it runs slowly or not at all"),
            cure=" && ".join(fixing(model)),
            see=() if fixed_only else (f"{UPSTREAM}21227",),
        )
    asked = usability(model.content, provider, if_fixed=bool(free))
    yield _verdict(provider, asked, free=bool(free))


def _free_axes(infos: Sequence[TensorInfo]) -> str:
    """Which inputs have axes of any length, in words."""
    named = ", ".join(f"{info.name} {list(info.shape)}".replace("'", "") for info in infos)
    return f"wants fixed shapes, and {named} has an axis of any length"


def fixing(model: LintModel) -> list[str]:
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


def usability(content: bytes, provider: str, *, if_fixed: bool) -> tuple[Usability, ...]:
    """Ask the checker about a model's bytes, for each format of "nnapi" or "coreml".

    `if_fixed` asks what would run there if every shape were fixed. Raises ModelError for a model
    whose shapes contradict each other.
    """
    with quiet(), tempfile.TemporaryDirectory() as folder:
        model, optimized = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        write_bytes(model, content)
        optimize_model(model, optimized, use_external_initializers=True)
        try:
            shaped = onnx.shape_inference.infer_shapes(onnx.load(optimized), strict_mode=True)
        except onnx.shape_inference.InferenceError as error:
            raise ModelError(f"the shapes in the model do not fit: {one_line(error)}") from error
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


def _verdict(provider: str, asked: Sequence[Usability], *, free: bool) -> LintFinding:
    """What the checker says, by the format that takes most of the graph."""
    best = max(asked, key=lambda one: (one.there, -one.parts))
    said = "; ".join(_said(one, several=len(asked) > 1) for one in asked)
    severity: Severity = "note" if best.verdict == "YES" else "warning"
    if best.nodes and not best.there:
        severity = "error"
    return LintFinding(
        place=provider,
        severity=severity,
        what=f"{'with fixed shapes ' if free else ''}{said}",
        cure=""
        if severity == "note"
        else "run it on the CPU, which needs no copies between the parts: `--provider cpu`",
    )


def _said(one: Usability, *, several: bool) -> str:
    parts = f"{one.parts} part{'s' if one.parts != 1 else ''}"
    text = f"{one.there} of {one.nodes} nodes run there, in {parts}"
    if one.lacking:
        more = len(one.lacking) - FEW
        names = ", ".join(name.removeprefix("ai.onnx:") for name in one.lacking[:FEW])
        text += f" (not {names}{f' and {more} more' if more > 0 else ''})"
    return f"as {one.form} {text}" if several else text


PROVIDER_RULES: Mapping[str, Callable[[LintModel], Iterator[LintFinding]]] = {
    "cpu": _of_cpu,
    "cuda": _of_cuda,
    "coreml": _of_coreml,
    "nnapi": _of_nnapi,
    "web": _of_web,
}
"""The execution providers of which something is known."""
