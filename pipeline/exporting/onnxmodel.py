"""Small changes to ONNX models that the stages share: metadata, names, saving, and our assertions.

What a file holds depends on the weights and the settings alone: no local path, no counter of the
process that wrote it.
"""

import ast
import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from serving.errors import ModelError
from serving.files import require, write_bytes

METADATA = "ferry."
"""The prefix of ferry's keys in `metadata_props`."""
DOMAINS = ("", "ai.onnx.ml")
"""Of ONNX's own operators: every ONNX Runtime has them."""
NEWEST_IR = 13
"""ONNX Runtime 1.31 refuses a newer one."""


def load(path: Path, command: str) -> onnx.ModelProto:
    """Read an ONNX file; `command` is what makes it.

    Raises MissingInputError without the file and ModelError when it is not ONNX.
    """
    try:
        return onnx.load_from_string(require(path, command).read_bytes())
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX file; `{command}` makes it anew") from error


def save(model: onnx.ModelProto, path: Path) -> bytes:
    """Write the model, whole or not at all, and return its bytes, which are deterministic."""
    content: bytes = model.SerializeToString(deterministic=True)
    write_bytes(path, content)
    return content


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The model's own `metadata_props`."""
    return {entry.key: entry.value for entry in model.metadata_props}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress of exporters and quantizers off stdout, which carries data only.

    Their warnings are muted as well: they advise on code that is not the user's.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)


def set_metadata(model: onnx.ModelProto, facts: Mapping[str, object]) -> None:
    """Replace the model's `metadata_props` by `ferry.KEY` entries; other than text is JSON."""
    del model.metadata_props[:]
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=f"{METADATA}{key}", value=text)


def name_by_module(graph: onnx.GraphProto) -> None:
    """Name each node after the PyTorch module it came from: `network.0.conv/Conv`.

    The exporter's own names carry a counter, and its metadata the module's name. A node with
    weights is named after their owner, for it may have swallowed the module behind it.
    """
    owners = {tensor.name: tensor.name.rpartition(".")[0] for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        weights = [name for name in node.input if name.endswith(".weight") and name in owners]
        module = owners[weights[0]] if weights else _scope(node)
        node.name = _unique(f"{module}/{node.op_type}", taken)


def _scope(node: onnx.NodeProto) -> str:
    facts = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(facts.get("pkg.torch.onnx.name_scopes", "['']"))
    modules = [scope for scope in scopes[:-1] if scope]
    return str(modules[-1]) if modules else "main"


def strip(model: onnx.ModelProto) -> None:
    """Remove stack traces, notes and the exporter's metadata: they hold local paths."""
    graph = model.graph
    parts = (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    model.doc_string = ""
    graph.name = "ferry"


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Remove imports of operator domains that no node uses: a quantizer imports all it knows."""
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def check(model: onnx.ModelProto, opset: int) -> None:
    """Assert what ferry promises of a model that it exported.

    In full by `onnx.checker`, and: the opset that was asked for, an IR version that ONNX Runtime
    takes, ONNX's own domains alone, no external data, and a symbolic first axis everywhere.
    Raises ModelError.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"onnx.checker refuses the model: {' '.join(str(error).split())}"
        ) from error
    for problem in _problems(model, opset):
        raise ModelError(f"the exported model {problem}")


def _problems(model: onnx.ModelProto, opset: int) -> Iterable[str]:
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != opset:
        yield f"has opset {found.get('')}, {opset} was asked for"
    if others := sorted(set(found) - set(DOMAINS)):
        yield f"needs the operator domain {others[0]!r}"
    if model.ir_version > NEWEST_IR:
        yield f"has IR version {model.ir_version}, ONNX Runtime takes up to {NEWEST_IR}"
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield f"keeps {tensor.name} outside of its file"
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        if not axes or not axes[0].dim_param:
            yield f"fixes the batch axis of {value.name}"


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}.{count}"
    taken.add(unique)
    return unique
