"""What answers raw rows and can be compared: trained weights, a module of PyTorch, an ONNX model.

A side keeps its inputs and outputs as they are: any number of them, of any dtype.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch

from pipeline.config import layout
from pipeline.config.experiment import Experiment
from pipeline.exporting import onnxmodel, tokenizer
from pipeline.exporting.exporter import INPUTS
from pipeline.exporting.signatures import BATCH, FlatModule
from pipeline.models.parts.graph import Graph, load_graph
from pipeline.proof.differences import largest_difference
from pipeline.proof.tracing.torch_values import TorchValues, Traced
from pipeline.records import read_recorded, ready
from serving.bundles.bundle import open_bundle
from serving.errors import (
    InputError,
    IntegrityError,
    MissingInputError,
    ModelError,
    UnknownNameError,
    UsageError,
    one_line,
)
from serving.files import sha256_of_file
from serving.measuring.feeds import fixed_batch
from serving.runtime import guard
from serving.runtime.providers import PROVIDERS
from serving.runtime.session import Session, open_session
from serving.runtime.settings import Level
from serving.runtime.shared import HINT
from serving.runtime.tensors import Array, TensorInfo, answer_in_batches, as_fed

ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear", "MatMulNBits")
"""Operators of which a quantized model has one at least."""
HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """What every side has."""

    name: str
    """As a person calls it."""
    inputs: tuple[TensorInfo, ...]
    """What it takes; the first axis of each is the rows."""
    outputs: tuple[TensorInfo, ...]
    """What it answers, in order; all are arrays."""
    sha256: str
    """Of its file, or of its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSide(_Side):
    """An experiment's trained weights, answered by PyTorch on the CPU."""

    graph: Graph

    def answer(self, feeds: Mapping[str, Array], batch_size: int) -> dict[str, Array]:
        """As every `Side`; raises InputError for rows that PyTorch refuses."""
        return answer_in_batches(self._call, feeds, batch_size, name=self.name)

    def _call(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = feeds[self.inputs[0].name]
        try:
            outputs = self.graph.answer(rows, max(1, len(rows)))
        except (RuntimeError, IndexError, ValueError) as error:
            raise InputError(f"PyTorch refused its input: {one_line(error)}") from error
        named = zip(self.graph.head.outputs, outputs, strict=True)
        return {name: output.numpy() for name, output in named}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSide(_Side):
    """A module of anybody's, answered by PyTorch on the CPU, with what torch's exporter traced."""

    flat: FlatModule
    traced: Traced

    def answer(self, feeds: Mapping[str, Array], batch_size: int) -> dict[str, Array]:
        """As every `Side`; raises ModelError for rows that the module refuses."""
        return answer_in_batches(self.flat.answer, feeds, batch_size, name=self.name)

    def off_the_trace(self, feeds: Mapping[str, Array], limit: float) -> str | None:
        """In words, where the trace computes something else than the module; None if nowhere."""
        traced = TorchValues(traced=self.traced, feeds=feeds).fetch(self.flat.outputs)
        for name, array in self.flat.answer(feeds).items():
            apart = largest_difference(array, traced[name])
            if apart > limit:
                return (
                    f"torch's exporter traced another computation than the module's: the two "
                    f"differ by {apart:.1e} at {name} before anything is made ONNX of"
                )
        return None

    def rounding(self, feeds: Mapping[str, Array]) -> dict[str, float]:
        """How far each output of floats is from what the module answers in float64.

        That much of a difference is PyTorch's own, and no exporter's. Nothing of a module that does
        not run in float64.
        """
        exact = {
            name: one.astype(np.float64) if one.dtype.kind == "f" else one
            for name, one in feeds.items()
        }
        wide = copy.deepcopy(self.flat).double()
        try:
            answers = wide.answer(exact)
        except ModelError:
            return {}
        return {
            name: largest_difference(one, answers[name])
            for name, one in self.flat.answer(feeds).items()
            if one.dtype.kind == "f"
        }

    @property
    def grain(self) -> float:
        """The relative rounding of the coarsest floats among the module's weights."""
        dtypes = {one.dtype for one in self.flat.parameters() if one.is_floating_point()}
        return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSide(_Side):
    """An ONNX model on one provider of ONNX Runtime."""

    session: Session
    content: bytes
    """The very bytes that run."""

    def answer(self, feeds: Mapping[str, Array], batch_size: int) -> dict[str, Array]:
        """As every `Side`; a model of one fixed batch size is fed that, filled up."""
        fixed = fixed_batch(self.inputs)
        guard.step(f"the answers of {self.name}")
        return answer_in_batches(self._call, feeds, batch_size, name=self.name, fixed=fixed)

    def model(self) -> onnx.ModelProto:
        """The model itself, for those that look inside."""
        return onnx.load_from_string(self.content)

    @property
    def coarse(self) -> bool:
        """Whether it rounds more coarsely than fp32 does: int8, whatever made it, and fp16."""
        graph = self.model().graph
        return any(node.op_type in ROUNDING for node in graph.node) or any(
            tensor.data_type in HALVES for tensor in graph.initializer
        )

    def at(self, level: Level) -> "ModelSide":
        """The same model with another amount of optimization."""
        session = self.session
        return model_side(self.name, self.content, session.provider, level, session.given)

    def _call(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        known = {info.name for info in self.outputs}
        found = self.session.run({name: as_fed(rows) for name, rows in feeds.items()})
        return {name: array for name, array in found.items() if name in known}


Side = WeightsSide | ModuleSide | ModelSide
"""One of two models that are compared.

`answer` takes raw rows by the name of the input, [rows, ...] each, and returns each output by name,
[rows, ...], answered in batches of the size that is asked for. No rows at all are one empty batch.
It raises InputError for what the side does not take and ModelError for an output that is not one
entry a row.
"""


def model_side(
    name: str,
    content: bytes,
    provider: str = "cpu",
    level: Level = "all",
    shared: Mapping[str, str] | None = None,
) -> ModelSide:
    """A side of an ONNX file's bytes; `shared` as `open_session` takes it.

    Raises ModelError for a model that cannot be run or has no rows to be asked, and ProviderError.
    """
    session = open_session(content, provider=provider, optimize=level, shared=shared)
    for info in session.inputs:
        if not info.shape:
            raise ModelError(f"{name}: input {info.name} has no batch axis: {HINT}")
    if not session.inputs:
        raise ModelError(f"{name} has no inputs, so there is nothing to compare it on")
    outputs = session.answered(name)
    return ModelSide(
        name=name,
        inputs=session.inputs,
        outputs=outputs,
        sha256=session.sha256,
        session=session,
        content=content,
    )


def open_weights(weights: Path, data: Path, experiment: Experiment) -> WeightsSide:
    """The trained weights of an experiment; `data` is its preprocessed data set.

    Raises MissingInputError, and IntegrityError for weights of another model.
    """
    manifest = ready.open_manifest(data)
    graph = load_graph(weights, experiment, manifest)
    array = manifest.arrays["test_inputs.npy"]
    is_text = manifest.kind == "text"
    info = TensorInfo(
        name=tokenizer.INPUT if is_text else INPUTS[manifest.kind],
        dtype="object" if is_text else array.dtype,
        shape=(BATCH, *array.shape[1:]),
    )
    # What it answers is known by asking for one row.
    row = np.array(ready.open_split(data, "test").inputs[:1])
    shapes = [tuple(output.shape[1:]) for output in graph.answer(row, 1)]
    return WeightsSide(
        name=experiment.name,
        inputs=(info,),
        outputs=tuple(
            TensorInfo(name=output, dtype="float32", shape=(BATCH, *shape))
            for output, shape in zip(graph.head.outputs, shapes, strict=True)
        ),
        sha256=sha256_of_file(weights),
        graph=graph,
    )


def open_variant(
    path: Path, weights_sha256: str, experiment: Experiment, provider: str = "cpu"
) -> ModelSide:
    """One of an experiment's ONNX files, which must have been exported from these weights.

    Raises MissingInputError, IntegrityError for a file of other weights, and ModelError.
    """
    stage = layout.maker(path, experiment.name)
    side = model_side(str(path), read_recorded(path, stage), provider)
    if side.session.metadata.get(f"{onnxmodel.METADATA}weights_sha256") != weights_sha256:
        raise IntegrityError(
            f"{path} was not exported from the weights {weights_sha256[:12]}…; "
            f"`dvc repro {stage}` makes it anew"
        )
    return side


def open_torchscript(graph: Graph, example: Array, opset: int) -> ModelSide:
    """A graph by torch's older exporter, which shares nothing with the one that ships.

    `example` is two raw rows. Raises FerryError when the graph cannot go that way.
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
                dynamic_axes={key: {0: BATCH} for key in (name, *graph.head.outputs)},
            )
            made = onnx.load(path)
    # The errors of TorchScript have no base of their own but RuntimeError.
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ModelError(f"TorchScript cannot export the model: {one_line(error, 300)}") from error
    if graph.kind == "text":
        tokenizer.prepend(made, graph.vocabulary)
    side = model_side("TorchScript", made.SerializeToString())
    side.answer({side.inputs[0].name: example}, 1)
    return side


def open_side(
    spec: str, find: Callable[[str], Experiment], shared: Mapping[str, str] | None = None
) -> Side:
    """Open what `spec` names: `EXPERIMENT`, `EXPERIMENT:VARIANT`, an ONNX file or a bundle.

    An experiment alone is PyTorch with its weights. The others may end in `@PROVIDER`, a key of
    `PROVIDERS` of sessions. A path comes first where both would do. `find` gives an experiment by
    its name, `shared` the inputs of a file that are the same for all rows. Raises what `find`
    raises, MissingInputError, UnknownNameError, UsageError, IntegrityError for a bundle or weights
    that are not what was recorded, ModelError for a model that cannot be run or proven, and
    ProviderError for a provider that this machine lacks.
    """
    name, at, provider = spec.rpartition("@")
    if not at or Path(spec).exists():
        name, provider = spec, "cpu"
    elif provider not in PROVIDERS:
        raise UnknownNameError("provider", provider, PROVIDERS)
    path = Path(name)
    if path.is_dir():
        bundle = open_bundle(path)
        given = {**bundle.manifest.given, **(shared or {})}
        return model_side(spec, bundle.model, provider, shared=given)
    if path.exists():
        onnxmodel.load_foreign(path)
        return model_side(spec, path.read_bytes(), provider, shared=shared)
    if "/" in name or path.suffix == ".onnx":
        raise MissingInputError(f"{name} is not there; it should be an ONNX file or a bundle")
    name, colon, variant = name.partition(":")
    experiment = find(name)
    if colon:
        return replace(_variant_of(experiment, variant, provider), name=spec)
    if provider != "cpu":
        raise UsageError(
            f"{spec}: PyTorch answers on the CPU; {name}:fp32@{provider} is the exported model"
        )
    data = layout.ready(experiment.dataset)
    return open_weights(layout.weights(experiment.name), data, experiment)


def _variant_of(experiment: Experiment, variant: str, provider: str) -> ModelSide:
    models = layout.models(experiment.name)
    if variant not in models:
        raise UnknownNameError(f"variant of {experiment.name}", variant, models)
    weights = sha256_of_file(layout.weights(experiment.name))
    return open_variant(models[variant], weights, experiment, provider)


def check_alike(reference: Side, other: Side) -> None:
    """Refuse two sides that do not take the same rows, or do not answer the same outputs.

    An axis of any length is like every other, and so are floats of any precision that are
    answered. Raises InputError that names what differs.
    """
    for what, left, right in (
        ("takes", reference.inputs, other.inputs),
        ("answers", reference.outputs, other.outputs),
    ):
        names = {info.name: info for info in right}
        same = len(left) == len(right) and all(
            info.name in names and _alike(info, names[info.name], answered=what == "answers")
            for info in left
        )
        if not same:
            raise InputError(
                f"{reference.name} {what} {_describe(left)}, {other.name} {what} "
                f"{_describe(right)}: they cannot be compared"
            )


def _alike(left: TensorInfo, right: TensorInfo, *, answered: bool) -> bool:
    """Whether two tensors of one name compare: with any number of rows, and as any floats."""
    floats = answered and "float" in left.dtype and "float" in right.dtype
    one, other = (
        replace(info, shape=info.shape and (BATCH, *info.shape[1:])) for info in (left, right)
    )
    return one.is_like(replace(other, dtype=one.dtype) if floats else other)


def _describe(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{info.name} {info.takes()}" for info in infos) or "nothing"
