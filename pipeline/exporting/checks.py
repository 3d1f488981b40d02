"""Check an ONNX file that ferry did not make before any of it is run: `load_foreign`.

`onnx.checker` passes operators of unknown domains and loops without an end, and a file whose
weights lie elsewhere is not the one that its sha256 says; each is refused here in one clear line.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from pipeline.exporting import onnxmodel
from serving.errors import InputError, MissingInputError, ModelError

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Whose operators every ONNX Runtime has; "ai.onnx" is the long name of ""."""
ENDLESS = 2**31
"""A trip count from here on bounds nothing; torch writes 2^63 - 1 for a loop without one."""
CARRIERS = ("Identity", "Cast")
"""What hands a loop's condition on unchanged."""


def load_foreign(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that anybody may have made, and refuse what ferry could not prove.

    Raises MissingInputError without the file, InputError for a folder, and ModelError for bytes
    that are no ONNX model, for an IR version that ONNX Runtime does not take, for weights outside
    of the file, for an operator of a domain that is not one of `DOMAINS` and that the file does not
    define itself, and for a loop that nothing can end. Whether a condition that is computed ever
    turns false cannot be told from a file: such loops pass.
    """
    model = _parsed(path)
    if model.ir_version > onnxmodel.NEWEST_IR:
        raise ModelError(
            f"{path} has IR version {model.ir_version}, ONNX Runtime takes up to "
            f"{onnxmodel.NEWEST_IR}; export it anew with an older onnx"
        )
    _refuse_external_data(path, model)
    defined = {(one.domain, one.name) for one in model.functions}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _nodes(model):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in defined:
            raise ModelError(
                f"{path} needs the operator {node.domain}::{node.op_type}, at node "
                f"{_called(node)}; ferry runs those of ONNX, {DOMAINS[2]} and {DOMAINS[3]}"
            )
        if node.op_type == "Loop" and _never_ends(node, constants):
            raise ModelError(
                f"{path}: nothing ends the loop at node {_called(node)}: it has no trip count, and "
                f"its condition never changes"
            )
    return model


def _parsed(path: Path) -> onnx.ModelProto:
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
    return model


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
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, with those of subgraphs and of the model's own functions."""
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    waiting = [model.graph, *_below(node for one in model.functions for node in one.node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _below(graph.node)


def _below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _called(node: onnx.NodeProto) -> str:
    return repr(node.name or f"that makes {', '.join(node.output)}")


def _never_ends(loop: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether a Loop has no bound and hands its condition on as it was, or a constant true one."""
    if loop.input[0]:
        bound = constants.get(loop.input[0])
        if bound is None or onnx.numpy_helper.to_array(bound).item() < ENDLESS:
            return False
    body = next(one.g for one in loop.attribute if one.name == "body")
    makers = {name: node for node in body.node for name in node.output}
    known = constants | {tensor.name: tensor for tensor in body.initializer}
    known |= {
        node.output[0]: one.t
        for node in body.node
        for one in node.attribute
        if node.op_type == "Constant" and one.HasField("t")
    }
    condition = body.output[0].name
    while condition in makers and makers[condition].op_type in CARRIERS:
        condition = makers[condition].input[0]
    if condition in known:
        return bool(onnx.numpy_helper.to_array(known[condition]).all())
    return condition not in makers
