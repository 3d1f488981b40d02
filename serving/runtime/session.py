"""The only place that makes ONNX Runtime sessions: strict about the provider, and with its proof.

ONNX Runtime runs on the CPU without a word when the provider that was asked for is missing. Here a
session has the one provider that was asked for, or there is an error. A provider counts as usable
when it runs `probe.onnx`.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import InputError, MissingInputError, ModelError, ProviderError, not_utf8
from serving.files import sha256_of_bytes
from serving.runtime import guard
from serving.runtime.classes import ClassOutputs, Task, can_be_label, class_outputs
from serving.runtime.cores import allowed_cores
from serving.runtime.onnxfile import class_labels
from serving.runtime.providers import (
    BROKEN_MODEL,
    ORT_ERRORS,
    PROVIDERS,
    built_in_providers,
    installed,
    onnxruntime,
    provider_options,
    runtime_reason,
    why_not,
)
from serving.runtime.settings import GPU_PROVIDERS, LEVELS, Level, SessionSettings, check_settings
from serving.runtime.shared import SharedInput, shared_inputs
from serving.runtime.tensors import Array, TensorInfo

INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
DTYPES = {
    **{f"tensor({name})": name for name in ("float16", *INTEGERS, "bool")},
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "object",
}
"""ONNX Runtime's types, and numpy's names of them."""
MAPS = {f"seq(map({key},tensor(float)))": key for key in ("string", "int64")}
"""The types of what ZipMap makes: for each row a map from its classes to their scores."""
NO_TYPE = "No corresponding Numpy type"
"""What ONNX Runtime says of an output that it cannot hand out."""
SILENT, ERRORS = 4, 3
RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
"""Operators whose kernels in ONNX Runtime 1.31 end the whole process on a batch without rows."""
OTHER_FILES = {
    ".safetensors": "the weights of a network; `ferry export` makes the model of an experiment",
    **dict.fromkeys(
        (".pt", ".pth", ".pt2", ".ckpt"),
        "a file of PyTorch; torch.onnx.export, or `ferry export` of an experiment, makes a model",
    ),
    ".tflite": "a model of TensorFlow Lite; tf2onnx converts it",
    **dict.fromkeys(
        (".engine", ".plan", ".trt"),
        "an engine of TensorRT for one kind of GPU; give the model that it was built from",
    ),
}
"""What files are that people take for models, by their suffix."""
GRAPH_KEY, NO_GRAPH = "gpu_graph_id", "-1"
"""The option of a call that names its captured graph; without it all shapes would share one."""
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
        return share_of(self.nodes, self.asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A model that is ready to run on one provider."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    """The model's `metadata_props`."""
    sha256: str
    """The sum of the very bytes that the session was made from."""
    provider: str
    """A key of `PROVIDERS`."""
    settings: SessionSettings
    proof: ProviderProof
    recurrent: bool
    """Whether it has a recurrent layer, which cannot be run on a batch without rows."""
    raw: Any
    """The `onnxruntime.InferenceSession`."""
    shared: tuple[SharedInput, ...]
    """The inputs that are the same for all rows; `inputs` are the others."""
    maps: frozenset[str]
    """The outputs that ONNX Runtime gives as a list of maps, and `run` as a table."""
    classes: tuple[str, ...] | None
    """What the graph calls its classes, where an operator that makes an output says it."""
    call: Callable[[list[str], dict[str, Array], Any], list[Array]]
    """What `raw.run` calls after checks of its own, which ONNX Runtime makes again."""
    run_options: Any
    """Those of all calls, an `onnxruntime.RunOptions`."""
    output_names: list[str]

    def answered(self, name: str) -> tuple[TensorInfo, ...]:
        """The outputs that are answers: arrays, and no state that a shared input would be fed next.

        `name` is the model's.

        Raises ModelError where none is, for one whose first axis is declared to be no rows, and for
        one of a type that numpy has not: ONNX Runtime gives the bare bits of some, of others
        nothing.
        """
        firsts = {info.shape[0] for info in self.inputs if info.shape}
        others = {axis for info in self.inputs for axis in info.shape[1:]} - firsts - {None}
        outputs = [
            info for info in self.outputs if not any(one.continues(info) for one in self.shared)
        ]
        for info in outputs:
            if info.lacks_numpy:
                raise ModelError(
                    f"{name}: output {info.name} is a {info.dtype}, which numpy has no type for; "
                    f"let the graph cast it to float32"
                )
            first = info.shape[0] if info.shape and info.is_array else None
            # Converters declare a label as of one row where it is of any number.
            number = isinstance(first, int) and first > 1 and first not in firsts
            if number or (isinstance(first, str) and first in others):
                raise ModelError(
                    f"{name}: output {info.name} is {info.dtype} {list(info.shape)}; its first "
                    f"axis must be the rows"
                )
        arrays = tuple(info for info in outputs if info.is_array)
        if not arrays:
            raise ModelError(f"{name}: none of its outputs is an array")
        return arrays

    @property
    def given(self) -> dict[str, str]:
        """The shared inputs as `open_session` takes them."""
        return {one.info.name: one.value for one in self.shared}

    def stop(self) -> None:
        """End the calls that run, from another thread, between two nodes; InputError for all."""
        self.run_options.terminate = True

    def whole(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Some rows by the name of the input, with the inputs that are the same for all."""
        rows = len(next(iter(feeds.values()))) if self.shared else 0
        return {**feeds, **{one.info.name: one.array(rows) for one in self.shared}}

    def tells(self, labels: Sequence[str] | None, task: Task | None = None) -> ClassOutputs:
        """Which outputs tell the class of a row, where `labels` are what classes are called."""
        return class_outputs(self.outputs, task, labels=labels, values=self.classes)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on named inputs and return its outputs by name.

        The list of maps of a ZipMap, from each class to its score, is a table: float32
        [rows, classes], in ascending order of the classes.

        Raises InputError when ONNX Runtime refuses an input's dtype or shape, and for a batch
        without rows that it would not survive; ModelError for an answer that is no text.
        """
        if self.recurrent and any(array.size == 0 for array in feeds.values()):
            raise InputError(
                "the model refused its input: a recurrent layer needs at least one row of one step"
            )
        try:
            values = self.call(self.output_names, self.whole(feeds), self.run_options)
        except UnicodeDecodeError as error:
            raise ModelError(f"the model's answer {not_utf8(error.object)}") from error
        except (*ORT_ERRORS, MemoryError, TypeError, ValueError) as error:
            names, reason = [info.name for info in self.inputs], runtime_reason(error)
            if NO_TYPE in reason:  # of an output: numpy made the inputs
                self.answered("the model")
            if set(feeds) != set(names):
                reason = f"it takes {', '.join(names)}, got {', '.join(feeds) or 'nothing'}"
            raise InputError(f"the model refused its input: {reason}") from error
        found = dict(zip(self.output_names, values, strict=True))
        for name in self.maps:
            found[name] = _table(values[self.output_names.index(name)], len(self.classes or ()))
        return found


def open_session(
    model: Path | bytes,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: Level = "all",
    settings: SessionSettings | None = None,
    profile: Path | None = None,
    shared: Mapping[str, str] | None = None,
) -> Session:
    """Make a session of an ONNX file, or of its bytes, on exactly one provider.

    `provider` is a key of `PROVIDERS`, `threads` the threads within one operator (default: the
    cores this process may use), `optimize` how much ONNX Runtime may rewrite the graph; `settings`
    says all of that at once, in place of the two. With `profile` ONNX Runtime writes the times of
    all nodes to a file whose path begins so. `shared` are inputs that are the same for all rows,
    with their values: see `serving.runtime.shared`.

    Raises MissingInputError for a file that is not there, ModelError for one that ONNX Runtime
    cannot load, UnknownNameError for a provider it has never heard of, ProviderError for one
    that this machine cannot run and UsageError for settings that do not go together.
    """
    content = _read(model)
    label = str(model) if isinstance(model, Path) else "the model"
    installed(provider)
    settings = settings or SessionSettings(threads=threads or allowed_cores(), optimize=optimize)
    check_settings(settings, provider)
    options = _options(settings, provider, profile)
    try:
        guard.step(f"the opening of {label}")
        with _logging(SILENT), guard.native():
            raw = _create(content, options, settings, provider, label)
        guard.step(label)
        return _session(raw, content, settings, provider, label, shared or {})
    except UnicodeDecodeError as error:
        raise ModelError(f"{label} {not_utf8(error.object)}") from error


def _session(
    raw: Any,
    content: bytes,
    settings: SessionSettings,
    provider: str,
    label: str,
    shared: Mapping[str, str],
) -> Session:
    """What there is to know of an `onnxruntime.InferenceSession`; ProviderError for a wrong one."""
    asked = PROVIDERS[provider]
    proof = proof_of(raw, asked)
    if asked not in raw.get_providers() or proof.share < 1:
        went = dict(proof.nodes)
        raise ProviderError(f"{asked} was asked for, but the nodes of {label} went to {went}")
    parts = raw.get_provider_graph_assignment_info()
    operators = {node.op_type for part in parts for node in part.get_nodes()}
    declared = tuple(_info(value) for value in raw.get_outputs())
    maps = frozenset(info.name for info in declared if info.dtype in MAPS)
    classes = classes_of(content, declared)
    outputs = tuple(_as_table(info, classes) if info.name in maps else info for info in declared)
    inputs = tuple(_info(value) for value in raw.get_inputs())
    for one in (*inputs, *declared):
        if not one.name.isprintable():  # it would be a column, and in messages
            raise ModelError(f"{label}: the name {one.name!r} holds what cannot be printed")
    fixed = shared_inputs(inputs, shared, label)
    return Session(
        inputs=tuple(info for info in inputs if info.name not in shared),
        outputs=outputs,
        metadata=dict(raw.get_modelmeta().custom_metadata_map),
        sha256=sha256_of_bytes(content),
        provider=provider,
        settings=settings,
        proof=proof,
        recurrent=not operators.isdisjoint(RECURRENT),
        raw=raw,
        shared=fixed,
        maps=maps,
        classes=classes,
        call=guard.watched(raw._sess.run),  # noqa: SLF001 - checks less, made again inside
        run_options=_run_options(settings),
        output_names=[output.name for output in outputs],
    )


def proof_of(raw: Any, asked: str) -> ProviderProof:
    """Where the nodes of an `onnxruntime.InferenceSession` went, by the record that it kept.

    It keeps one if "session.record_ep_graph_assignment_info" was set.
    """
    nodes: dict[str, int] = {}
    for part in raw.get_provider_graph_assignment_info():
        nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(part.get_nodes())
    return ProviderProof(asked=asked, nodes=nodes)


def share_of(parts: Mapping[str, float], name: str) -> float:
    """The part, 0 to 1, that `name` has of the whole; 1 where there is nothing to share."""
    total = sum(parts.values())
    return parts.get(name, 0) / total if total else 1.0


def usable_providers() -> dict[str, str | None]:
    """Every provider that the installed wheel names, with None or the reason it cannot run."""
    return {name: _reason(name) for name in built_in_providers()}


def probe() -> bytes:
    """The model that a provider must run: two nodes on float32 [1, 4], old enough for every one."""
    from importlib import resources

    return resources.files("serving.runtime").joinpath("probe.onnx").read_bytes()


def _read(model: Path | bytes) -> bytes:
    # From bytes: what was hashed is what runs.
    if isinstance(model, bytes):
        return model
    other = OTHER_FILES.get(model.suffix.lower())
    if other and model.is_file():
        raise ModelError(f"{model} is no ONNX file but {other}")
    if model.exists() and not (model.is_file() or model.is_dir()):
        raise InputError(f"{model} is a pipe or a device, not an ONNX file")
    try:
        return model.read_bytes()
    except FileNotFoundError as error:
        raise MissingInputError(f"{model} is not there") from error
    except IsADirectoryError as error:
        raise InputError(f"{model} is a folder, not an ONNX file") from error


def _options(settings: SessionSettings, provider: str, profile: Path | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    if not settings.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.log_severity_level = SILENT  # what goes wrong arrives as an exception
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Weights in other files would not be hashed; ONNX Runtime looks for them in a folder that
    # cannot exist, where it would take the working directory.
    options.add_session_config_entry(EXTERNAL_FOLDER, os.devnull)
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    level = LEVELS[settings.optimize]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return options


def _run_options(settings: SessionSettings) -> Any:
    """Of calls on memory that is not bound, which a graph must not be captured of."""
    options = onnxruntime.RunOptions()
    if settings.cuda_graph:
        options.add_run_config_entry(GRAPH_KEY, NO_GRAPH)
    return options


def _create(
    content: bytes, options: Any, settings: SessionSettings, provider: str, label: str
) -> Any:
    asked = PROVIDERS[provider]
    if provider in GPU_PROVIDERS and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(None):  # it prints what it did not find
            onnxruntime.preload_dlls()
    try:
        # enable_fallback=0: else onnxruntime retries on the CPU and says so on stdout.
        chosen = [(asked, provider_options(settings, provider))]
        return onnxruntime.InferenceSession(content, options, providers=chosen, enable_fallback=0)
    except ORT_ERRORS as error:
        if provider == "cpu" or isinstance(error, BROKEN_MODEL):
            raise ModelError(f"{label} cannot be loaded: {runtime_reason(error)}") from error
        left = functools.partial(_left_to_the_cpu, content, settings, provider)
        raise ProviderError(
            f"{asked} does not run {label} on this machine: {why_not(provider, error, left)}; "
            f"`ferry doctor` says which providers do"
        ) from error


def _left_to_the_cpu(content: bytes, settings: SessionSettings, provider: str) -> set[str]:
    """The operators that a provider cannot run; none where it does not start."""
    asked, options = PROVIDERS[provider], _options(settings, "cpu", None)
    chosen = [(asked, provider_options(settings, provider)), PROVIDERS["cpu"]]
    try:
        raw = onnxruntime.InferenceSession(content, options, providers=chosen, enable_fallback=0)
    except ORT_ERRORS:
        return set()
    if asked not in raw.get_providers():
        return set()
    parts = raw.get_provider_graph_assignment_info()
    return {node.op_type for part in parts if part.ep_name != asked for node in part.get_nodes()}


def _info(value: Any) -> TensorInfo:
    dtype = DTYPES.get(value.type, value.type)
    return TensorInfo(name=value.name, dtype=dtype, shape=tuple(value.shape))


def classes_of(content: bytes, outputs: Sequence[TensorInfo]) -> tuple[str, ...] | None:
    """What a graph calls its classes: by its ZipMap, else by the classifier that makes its label.

    In the order of the scores. None where no output can be a label or a map, and where the
    operators behind them do not say.
    """
    for one in outputs:
        if one.dtype in MAPS and (found := class_labels(content, one.name)):
            with contextlib.suppress(ValueError):  # texts, which are not those of this map
                return tuple(sorted(found, key=int if MAPS[one.dtype] == "int64" else None))
    labels = (class_labels(content, one.name) for one in outputs if can_be_label(one))
    return next((found for found in labels if found), None)


def _as_table(info: TensorInfo, classes: Sequence[str] | None) -> TensorInfo:
    """A list of maps as `Session.run` gives it."""
    return replace(info, dtype="float32", shape=(None, len(classes) if classes else None))


def _table(maps: Any, columns: int) -> Array:
    """The values of maps of the same keys, which come in ascending order: float32 [rows, keys]."""
    if not maps:
        return np.zeros((0, columns), np.float32)
    return np.array([list(row.values()) for row in maps], np.float32)


def _reason(provider: str) -> str | None:
    try:
        session = open_session(probe(), provider=provider, threads=1)
        session.run({session.inputs[0].name: np.zeros((1, 4), np.float32)})
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
