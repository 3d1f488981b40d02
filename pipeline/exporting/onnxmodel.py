"""ONNX models as files: metadata, names, weights, saving, and checks of those made elsewhere.

What a file of ours holds depends on the weights and the settings alone: no local path, no counter
of the process that wrote it.
"""

import ast
import contextlib
import io
import itertools
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from serving.errors import InputError, MissingInputError, ModelError, not_utf8, one_line
from serving.files import refuse_special, require, write_bytes
from serving.runtime.tensors import Array

METADATA = "ferry."
"""The prefix of ferry's keys in `metadata_props`."""
DOMAINS = ("", "ai.onnx.ml")
"""Of ONNX's own operators: every ONNX Runtime has them."""
NEWEST_IR = 13
"""ONNX Runtime 1.31 refuses a newer one."""
CONSTANT_WEIGHTS_IR = 4
"""The first in which a weight need not be an input as well."""


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


def set_metadata(
    model: onnx.ModelProto, facts: Mapping[str, object], original: onnx.ModelProto | None = None
) -> None:
    """Replace the model's `metadata_props` by `ferry.KEY` entries; other than text is JSON.

    The metadata of `original`, which the model was made of, is taken over.
    """
    entries = metadata(original) if original else {}
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        entries[f"{METADATA}{key}"] = text
    onnx.helper.set_model_props(model, entries)


def name_by_module(graph: onnx.GraphProto, own: str = "") -> None:
    """Name each node after the PyTorch module it came from: `network.0.conv/Conv`.

    The exporter's own names carry a counter, and its metadata the module's name. A node with
    weights is named after their owner, for it may have swallowed the module behind it. `own` is
    what stands before the names of all modules, and is left out. What no module within computes is
    `main/Conv`.
    """
    owners = {tensor.name: tensor.name.rpartition(".")[0] for tensor in graph.initializer}
    taken: Counter[str] = Counter()
    for node in _nodes(graph):
        weights = [name for name in node.input if name.endswith(".weight") and name in owners]
        module = owners[weights[0]] if weights else _scope(node)
        module = "" if f"{module}." == own else module.removeprefix(own)
        name = f"{module or 'main'}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}.{taken[name]}"


def _scope(node: onnx.NodeProto) -> str:
    facts = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(facts.get("pkg.torch.onnx.name_scopes", "['']"))
    modules = [scope for scope in scopes[:-1] if scope]
    return str(modules[-1]) if modules else ""


def rename_weights(graph: onnx.GraphProto, own: str) -> None:
    """Leave out what stands before the names of all weights, in every graph that reads them."""
    nodes = list(_nodes(graph))
    taken = {value.name for value in (*graph.input, *graph.output)}
    taken |= {name for node in nodes for name in node.output}
    shorter = {
        tensor.name: tensor.name.removeprefix(own)
        for tensor in graph.initializer
        if tensor.name.removeprefix(own) not in taken
    }
    for value in (*graph.initializer, *graph.value_info):
        value.name = shorter.get(value.name, value.name)
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = shorter.get(name, name)


def strip(model: onnx.ModelProto) -> None:
    """Remove stack traces, notes and the exporter's metadata: they hold local paths."""
    nodes = list(_nodes(model.graph))
    for graph in (model.graph, *(below for node in nodes for below in subgraphs(node))):
        inner = (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
        for part in (graph, *inner):
            del part.metadata_props[:]
            part.doc_string = ""
    model.doc_string = ""
    model.graph.name = "ferry"


class Names:
    """The names that a model has, for new ones that are none of them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """All of nodes and values, those of subgraphs included."""
        nodes = list(_nodes(model.graph))
        self._taken = {name for node in nodes for name in (node.name, *node.input, *node.output)}
        for graph in (model.graph, *(below for node in nodes for below in subgraphs(node))):
            for part in (graph.input, graph.output, graph.initializer):
                self._taken |= {value.name for value in part}

    def new(self, wanted: str) -> str:
        """The wanted name, with a number behind it where it is taken; it is taken from now on."""
        others = (f"{wanted}_{number}" for number in itertools.count(2))
        name = next(one for one in itertools.chain([wanted], others) if one not in self._taken)
        self._taken.add(name)
        return name


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each node without a name one of its own: quantizers tell nodes apart by their names."""
    names = Names(model)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or names.new(f"{node.op_type}.{number}")


def with_constant_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are no inputs as well, as IR version 3 has them.

    A later file lists so what a caller may replace, and ferry feeds none of it. A tool that folds
    a weight would leave an input without a value.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    copied.ir_version = max(model.ir_version, CONSTANT_WEIGHTS_IR)
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    fed = [value for value in copied.graph.input if value.name not in weights]
    del copied.graph.input[:]
    copied.graph.input.extend(fed)
    return copied


def padded_pool(graph: onnx.GraphProto) -> str | None:
    """The name of the first `MaxPool` behind a `Pad`, or what it makes; None where there is none.

    `exporting.module.keep_padding` tells what ONNX Runtime makes of the two.
    """
    padded = {node.output[0] for node in graph.node if node.op_type == "Pad"}
    pools = (node for node in graph.node if node.op_type == "MaxPool" and node.input[0] in padded)
    return next((node.name or node.output[0] for node in pools), None)


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Remove imports of operator domains that no node uses: a quantizer imports all it knows.

    That of ONNX's own operators stays, for a model without nodes needs one too.
    """
    used = {"", "ai.onnx", *(node.domain for node in _nodes(model.graph, *model.functions))}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """The initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def replace_constant(model: onnx.ModelProto, name: str, value: Array) -> None:
    """Give an initializer another value, or add it."""
    made = numpy_helper.from_array(np.ascontiguousarray(value), name)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(made)
            return
    model.graph.initializer.append(made)


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove the initializers that no node reads and that are no output."""
    nodes = list(_nodes(model.graph))
    used = {name for node in nodes for name in node.input}
    for graph in (model.graph, *(below for node in nodes for below in subgraphs(node))):
        used |= {value.name for value in graph.output}
    for tensor in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(tensor)


def check(model: onnx.ModelProto, opset: int) -> None:
    """Assert what ferry promises of a model that it exported.

    In full by `onnx.checker`, and: the opset that was asked for, an IR version that ONNX Runtime
    takes, ONNX's own domains alone, no external data, and a symbolic first axis everywhere.
    Raises ModelError.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"onnx.checker refuses the model: {one_line(error)}") from error
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


KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Whose operators every ONNX Runtime has; "ai.onnx" is the long name of ""."""
ENDLESS = 2**31
"""A trip count from here on bounds nothing; torch writes 2^63 - 1 for a loop without one."""
CARRIERS = ("Identity", "Cast")
"""What hands a loop's condition on unchanged."""


def load_foreign(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that anybody may have made, and refuse what ferry could not prove.

    `onnx.checker` passes operators of unknown domains and loops without an end, and a file whose
    weights lie elsewhere is not the one that its sha256 says.

    Raises MissingInputError without the file, InputError for a folder, and ModelError for bytes
    that are no ONNX model, for an IR version that ONNX Runtime does not take, for weights outside
    of the file, for text that is not UTF-8, for an operator of a domain that is not known and that
    the file does not define itself, and for a loop that nothing can end. Whether a condition that
    is computed ever turns false cannot be told from a file: such loops pass.
    """
    model = _parsed(path)
    if model.ir_version > NEWEST_IR:
        raise ModelError(
            f"{path} has IR version {model.ir_version}, ONNX Runtime takes up to "
            f"{NEWEST_IR}; export it anew with an older onnx"
        )
    _refuse_external_data(path, model)
    defined = {(one.domain, one.name) for one in model.functions}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _nodes(model.graph, *model.functions):
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in defined:
            raise ModelError(
                f"{path} needs the operator {node.domain}::{node.op_type}, at node "
                f"{_called(node)}; ferry runs those of ONNX, {KNOWN_DOMAINS[2]} and "
                f"{KNOWN_DOMAINS[3]}"
            )
        if node.op_type == "Split" and "" in node.output:
            raise ModelError(
                f"{path} leaves an output of the Split {_called(node)} without a name, which ends "
                f"ONNX Runtime with a segmentation fault; give it a name"
            )
        if node.op_type == "Loop" and _never_ends(path, node, constants):
            raise ModelError(
                f"{path}: nothing ends the loop at node {_called(node)}: it has no trip count, and "
                f"its condition never changes"
            )
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    refuse_special(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingInputError(f"{path} is not there; it should be an ONNX file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, not an ONNX file") from error
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX file, or it is cut short") from error
    # Many a text is a valid message of fields that nobody knows.
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise ModelError(f"{path} is not an ONNX file: it has no graph with an output")
    for text in _no_texts(model):
        raise ModelError(f"{path} {not_utf8(text)}")
    return model


def _no_texts(message: Message) -> Iterator[bytes]:
    """The names, notes and metadata that are not UTF-8: protobuf gives them as bytes."""
    for field, value in message.ListFields():
        parts = value if field.is_repeated else [value]
        if field.message_type is not None:
            for part in parts:
                yield from _no_texts(part)
        elif field.type == field.TYPE_STRING:
            yield from (part for part in parts if isinstance(part, bytes))


def _refuse_external_data(path: Path, model: onnx.ModelProto) -> None:
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            places = {entry.key: entry.value for entry in tensor.external_data}
            raise ModelError(
                f"{path} keeps {tensor.name or 'a constant'} in another file, "
                f"{places.get('location', 'which it does not name')!r}; save it in one: "
                f"`onnx.save(onnx.load(path), path)`"
            )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a model holds, with those of its subgraphs and attributes."""
    nodes = list(_nodes(model.graph, *model.functions))
    for graph in (model.graph, *(below for node in nodes for below in subgraphs(node))):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in (one for node in nodes for one in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _nodes(*parts: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Every node of some graphs and functions, with those of their subgraphs."""
    for part in parts:
        for node in part.node:
            yield node
            yield from _nodes(*subgraphs(node))


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds, such as the branches of an `If`."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _called(node: onnx.NodeProto) -> str:
    return repr(node.name or f"that makes {', '.join(node.output)}")


def _never_ends(path: Path, loop: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether a Loop has no bound and hands its condition on as it was, or a constant true one.

    Raises ModelError for one without the parts that every Loop has.
    """
    body = next((one.g for one in loop.attribute if one.name == "body"), None)
    if body is None or not body.output or len(loop.input) < 2:
        raise ModelError(
            f"{path}: the loop at node {_called(loop)} lacks its two inputs, its body or the "
            f"condition that the body hands on"
        )
    trips, start = loop.input[0], loop.input[1]
    if trips and _number(constants.get(trips), 0) < ENDLESS:
        return False
    if not start:
        return True
    makers = {name: node for node in body.node for name in node.output}
    known = constants | {tensor.name: tensor for tensor in body.initializer}
    known |= {
        name: one.t
        for node in body.node
        for one in node.attribute
        for name in node.output
        if node.op_type == "Constant" and one.HasField("t")
    }
    condition = body.output[0].name
    while condition in makers and makers[condition].op_type in CARRIERS:
        # Without what it reads for a second time: a file may hold a circle.
        condition = next(iter(makers.pop(condition).input), "")
    if condition in known:
        return bool(_number(known[condition], 0))
    handed_on = condition in {value.name for value in body.input}
    return handed_on and bool(_number(constants.get(start), 1))


def _number(tensor: onnx.TensorProto | None, unknown: int) -> int:
    """The one truth or int64 that a tensor holds; `unknown` where it cannot be told."""
    if tensor is None:
        return unknown
    if 0 < len(tensor.raw_data) <= 8:
        return int.from_bytes(tensor.raw_data, "little", signed=True)
    return next(iter((*tensor.int64_data, *tensor.int32_data)), unknown)
