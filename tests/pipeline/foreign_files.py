"""Small ONNX files as other makers write them, and rows for each.

Their names, opsets, IR versions, axes, types and operators are those of the makers; the numbers are
seeded. What a maker does that no other does is in one file of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from small_onnx import FLOAT, Infos, copied, model, node

INT64, STRING, BOOL = TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL
UINT8, INT32, HALF, DOUBLE = (
    *(TensorProto.UINT8, TensorProto.INT32, TensorProto.FLOAT16, TensorProto.DOUBLE),
)
ROWS, FEATURES, CLASSES = 24, 8, 4
ML = "ai.onnx.ml"
Build = Callable[[], "onnx.ModelProto | bytes"]


@dataclass(frozen=True)
class ForeignFile:
    """A file of one maker."""

    name: str
    maker: str
    build: Build
    rows: Mapping[str, np.ndarray]

    def content(self) -> bytes:
        made = self.build()
        return made if isinstance(made, bytes) else made.SerializeToString()


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TABLE = drawn(ROWS, FEATURES)
IMAGES = np.random.default_rng(3).integers(0, 256, (ROWS, 6, 6, 3)).astype(np.uint8)
IDS = np.random.default_rng(4).integers(0, 9, (ROWS, 5))
WORDS = np.array([["good", "bad", "odd"][at % 3] for at in range(ROWS)], object).reshape(-1, 1)
FILES: list[ForeignFile] = []


def made_by(maker: str, **rows: np.ndarray) -> Callable[[Build], Build]:
    """Add what a function makes to the files, under its name; `rows` are by the input's name."""

    def add(build: Build) -> Build:
        FILES.append(ForeignFile(build.__name__, maker, build, rows or {"x": TABLE}))
        return build

    return add


def dense(
    last: str, made: str, name: str, columns: int = CLASSES, rows: int = FEATURES
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """A product and a sum, as most exporters write a linear layer, and their weights."""
    nodes = [
        node("MatMul", f"{last} {name}/w", f"{name}/p"),
        node("Add", f"{name}/p {name}/b", made),
    ]
    return nodes, {f"{name}/w": drawn(rows, columns, seed=1), f"{name}/b": drawn(columns, seed=2)}


def fed_weights(made: onnx.ModelProto) -> onnx.ModelProto:
    """With each weight an input as well, as IR version 3 asks for."""
    for one in made.graph.initializer:
        info = helper.make_tensor_value_info(one.name, one.data_type, list(one.dims))
        made.graph.input.append(info)
    return made


def simple(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Any] | None = None,
    *,
    inputs: Infos | None = None,
    outputs: Infos | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """A model from `x`, a row of the table, to `y`, four numbers, if nothing else is said."""
    inputs = inputs or {"x": (FLOAT, ["n", FEATURES])}
    return model(nodes, inputs, outputs or {"y": (FLOAT, ["n", CLASSES])}, weights, **options)


# skl2onnx and onnxmltools: ai.onnx.ml, labels, maps, axes without names


def classifier(**classes: Any) -> onnx.NodeProto:
    return node(
        "LinearClassifier",
        "X",
        "label scores",
        domain=ML,
        name="LinearClassifier",
        coefficients=drawn(CLASSES * FEATURES).tolist(),
        intercepts=[0.0] * CLASSES,
        multi_class=1,
        post_transform="SOFTMAX",
        **classes,
    )


NAMES, NUMBERS = (
    {"classlabels_strings": ["ant", "bee", "cat", "dog"]},
    {"classlabels_ints": [3, 1, 7, 5]},
)
ANY: list[Any] = [None, FEATURES]


@made_by("skl2onnx", X=TABLE)
def classifier_of_numbers() -> onnx.ModelProto:
    outputs: Infos = {"label": (INT64, [None]), "scores": (FLOAT, [None, CLASSES])}
    return simple(
        [classifier(**NUMBERS)], inputs={"X": (FLOAT, ANY)}, outputs=outputs, domains={ML: 1}
    )


@made_by("skl2onnx", X=TABLE)
def classifier_with_a_map() -> onnx.ModelProto:
    outputs: Infos = {"label": (STRING, [None])}
    zipped = node("ZipMap", "scores", "output_probability", domain=ML, **NAMES)
    made = simple(
        [classifier(**NAMES), zipped], inputs={"X": (FLOAT, ANY)}, outputs=outputs, domains={ML: 1}
    )
    key = helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, None))
    maps = helper.make_value_info("output_probability", helper.make_sequence_type_proto(key))
    made.graph.output.append(maps)
    return made


@made_by("skl2onnx", X=TABLE)
def scaled_regression() -> onnx.ModelProto:
    nodes = [
        node("Scaler", "X", "scaled", domain=ML, offset=[0.5] * FEATURES, scale=[2.0] * FEATURES),
        node(
            "LinearRegressor",
            "scaled",
            "variable",
            domain=ML,
            coefficients=drawn(FEATURES).tolist(),
            intercepts=[1.0],
        ),
    ]
    outputs: Infos = {"variable": (FLOAT, [None, 1])}
    return simple(nodes, inputs={"X": (FLOAT, ANY)}, outputs=outputs, domains={ML: 1})


@made_by("skl2onnx", words=WORDS)
def words_to_numbers() -> onnx.ModelProto:
    look_up = node(
        "LabelEncoder",
        "words",
        "numbers",
        domain=ML,
        keys_strings=["good", "bad"],
        values_floats=[1.0, -1.0],
        default_float=0.0,
    )
    column: list[Any] = [None, 1]
    return simple(
        [look_up],
        inputs={"words": (STRING, column)},
        outputs={"numbers": (FLOAT, column)},
        domains={ML: 2},
    )


@made_by("onnxmltools", input=TABLE)
def boosted_trees() -> onnx.ModelProto:
    trees = node(
        "TreeEnsembleRegressor",
        "input",
        "variable",
        domain=ML,
        n_targets=1,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[2, 0, 0],
        nodes_values=[0.1, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[-0.5, 0.75],
    )
    outputs: Infos = {"variable": (FLOAT, [None, 1])}
    return simple([trees], inputs={"input": (FLOAT, ANY)}, outputs=outputs, domains={ML: 1})


@made_by("onnxmltools", input=np.where(TABLE > 1, np.nan, TABLE))
def missing_values() -> onnx.ModelProto:
    fill = {"imputed_value_floats": [0.25] * FEATURES, "replaced_value_float": np.nan}
    nodes = [
        node("Imputer", "input", "whole", domain=ML, **fill),
        node("Normalizer", "whole", "variable", domain=ML, norm="L2"),
    ]
    return simple(
        nodes,
        inputs={"input": (FLOAT, ANY)},
        outputs={"variable": (FLOAT, ANY)},
        domains={ML: 1},
    )


@made_by("onnxmltools", input=TABLE)
def strings_beside_scores() -> onnx.ModelProto:
    nodes = [
        node("Identity", "input", "X"),
        classifier(**NAMES),
        node("Normalizer", "scores", "probabilities", domain=ML, norm="L1"),
    ]
    outputs: Infos = {"label": (STRING, [None]), "probabilities": (FLOAT, [None, CLASSES])}
    return simple(nodes, inputs={"input": (FLOAT, ANY)}, outputs=outputs, domains={ML: 1})


# tf2onnx: colons and slashes, NHWC between transposes, unk__ axes


@made_by("tf2onnx", **{"serving_default_input_1:0": IMAGES})
def images_last() -> onnx.ModelProto:
    name = "StatefulPartitionedCall/model/conv2d/"
    nodes = [
        node("Cast", "serving_default_input_1:0", f"{name}Cast:0", to=FLOAT),
        node("Transpose", f"{name}Cast:0", f"{name}Conv2D__6:0", perm=[0, 3, 1, 2]),
        node("Conv", f"{name}Conv2D__6:0 {name}w {name}b", f"{name}Conv2D:0", pads=[1, 1, 1, 1]),
        node("Transpose", f"{name}Conv2D:0", f"{name}BiasAdd:0", perm=[0, 2, 3, 1]),
        node("Relu", f"{name}BiasAdd:0", f"{name}Relu:0"),
        node("ReduceMean", f"{name}Relu:0 axes", "StatefulPartitionedCall:0", keepdims=0),
    ]
    weights = {
        f"{name}w": drawn(CLASSES, 3, 3, 3) / 300,
        f"{name}b": drawn(CLASSES),
        "axes": np.array([1, 2]),
    }
    return simple(
        nodes,
        weights,
        inputs={"serving_default_input_1:0": (UINT8, ["unk__12", 6, 6, 3])},
        outputs={"StatefulPartitionedCall:0": (FLOAT, ["unk__13", CLASSES])},
    )


@made_by("tf2onnx", **{"x:0": TABLE, "training:0": np.zeros((ROWS, 1), bool)})
def two_inputs_of_keras() -> onnx.ModelProto:
    nodes, weights = dense("x:0", "dense/BiasAdd:0", "dense")
    nodes += [
        node("Cast", "training:0", "flag:0", to=FLOAT),
        node("Mul", "dense/BiasAdd:0 flag:0", "drop:0"),
        node("Sub", "dense/BiasAdd:0 drop:0", "Identity:0"),
    ]
    return simple(
        nodes,
        weights,
        inputs={"x:0": (FLOAT, ["unk__1", FEATURES]), "training:0": (BOOL, ["unk__1", 1])},
        outputs={"Identity:0": (FLOAT, ["unk__2", CLASSES])},
        domains={"": 13},
    )


@made_by("tf2onnx", ids=IDS.astype(np.int32))
def embeddings() -> onnx.ModelProto:
    nodes, weights = dense("pooled", "logits:0", "head", rows=64)
    table = {"table": drawn(9, 64, seed=5), "axis": np.array([1])}
    nodes = [
        node("Gather", "table ids", "rows"),
        node("ReduceMean", "rows axis", "pooled", keepdims=0),
        *nodes,
    ]
    return simple(
        nodes,
        weights | table,
        inputs={"ids": (INT32, ["unk__3", 5])},
        outputs={"logits:0": (FLOAT, ["unk__4", CLASSES])},
    )


@made_by("tf2onnx")
def no_names_of_nodes() -> onnx.ModelProto:
    nodes, weights = dense("x", "y", "dense")
    made = simple(nodes, weights, domains={"": 15})
    for one in made.graph.node:
        one.name = ""
    return made


# Paddle: axes of -1, no names of nodes, weights as constants, old opsets


def paddle(opset: int) -> onnx.ModelProto:
    constant = numpy_helper.from_array(drawn(FEATURES, 64, seed=1), "linear_0.w_0")
    nodes = [
        helper.make_node("Constant", [], ["linear_0.w_0"], value=constant),
        helper.make_node("MatMul", ["x0", "linear_0.w_0"], ["linear_0.tmp_0"]),
        helper.make_node("Add", ["linear_0.tmp_0", "linear_0.b_0"], ["linear_0.tmp_1"]),
        helper.make_node("Relu", ["linear_0.tmp_1"], ["relu_0.tmp_0"]),
        helper.make_node("MatMul", ["relu_0.tmp_0", "linear_1.w_0"], ["linear_1.tmp_0"]),
        helper.make_node("Softmax", ["linear_1.tmp_0"], ["softmax_0.tmp_0"], axis=-1),
    ]
    weights = {"linear_0.b_0": drawn(64, seed=2), "linear_1.w_0": drawn(64, CLASSES, seed=3)}
    return simple(
        nodes,
        weights,
        inputs={"x0": (FLOAT, [-1, FEATURES])},
        outputs={"softmax_0.tmp_0": (FLOAT, [-1, CLASSES])},
        domains={"": opset},
        ir_version=7,
    )


@made_by("Paddle", x0=TABLE)
def axes_of_minus_one() -> onnx.ModelProto:
    return paddle(11)


@made_by("Paddle", x0=TABLE)
def opset_nine() -> onnx.ModelProto:
    return paddle(9)


@made_by("Paddle", x0=TABLE)
def names_that_count() -> onnx.ModelProto:
    """Some nodes are called what ferry would call others."""
    made = paddle(13)
    for at, one in enumerate(made.graph.node[1:], start=1):
        one.name = f"MatMul.{at - 1}" if at % 2 else ""
    return made


@made_by("Paddle", image=IMAGES.transpose(0, 3, 1, 2).astype(np.float32))
def images_first() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["image", "conv2d_0.w_0"], ["conv2d_0.tmp_0"]),
        helper.make_node(
            "BatchNormalization",
            ["conv2d_0.tmp_0", "scale", "bias", "mean", "variance"],
            ["batch_norm_0.tmp_2"],
        ),
        helper.make_node("HardSigmoid", ["batch_norm_0.tmp_2"], ["act"], alpha=0.2, beta=0.5),
        helper.make_node("GlobalAveragePool", ["act"], ["pool2d_0.tmp_0"]),
        helper.make_node("Flatten", ["pool2d_0.tmp_0"], ["flat"]),
    ]
    weights = {
        "conv2d_0.w_0": drawn(CLASSES, 3, 3, 3) / 300,
        **{name: drawn(CLASSES) for name in ("scale", "bias", "mean")},
        "variance": np.ones(CLASSES, np.float32),
    }
    return simple(
        nodes,
        weights,
        inputs={"image": (FLOAT, [-1, 3, 6, 6])},
        outputs={"flat": (FLOAT, [-1, CLASSES])},
        domains={"": 12},
    )


# PyTorch's older exporters and Caffe2: IR version 3, numbers for names, fixed batches


@made_by("PyTorch 1.0", **{"0": TABLE})
def numbers_for_names() -> onnx.ModelProto:
    nodes = [node("Gemm", "0 1 2", "3", transB=1, name=""), node("Relu", "3", "4", name="")]
    weights = {"1": drawn(CLASSES, FEATURES), "2": drawn(CLASSES)}
    made = simple(
        nodes,
        weights,
        inputs={"0": (FLOAT, ["n", FEATURES])},
        outputs={"4": (FLOAT, ["n", CLASSES])},
        domains={"": 7},
        ir_version=3,
    )
    return fed_weights(made)


@made_by("PyTorch 1.0", **{"input.1": TABLE})
def one_row_at_a_time() -> onnx.ModelProto:
    nodes, weights = dense("input.1", "output", "fc")
    return simple(
        nodes,
        weights,
        inputs={"input.1": (FLOAT, [1, FEATURES])},
        outputs={"output": (FLOAT, [1, CLASSES])},
        domains={"": 9},
        ir_version=4,
    )


@made_by("PyTorch 1.0")
def shape_arithmetic() -> onnx.ModelProto:
    """`x.view(x.size(0), 2, -1).mean(2)` as it was traced."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s first", "rows", axis=0),
        node("Unsqueeze", "rows", "row", axes=[0]),
        node("Concat", "row two rest", "to", axis=0),
        node("Reshape", "x to", "wide"),
        node("ReduceMean", "wide", "halves", axes=[2], keepdims=0),
        node("Gemm", "halves w", "y"),
    ]
    weights = {
        "first": np.array(0),
        "two": np.array([2]),
        "rest": np.array([-1]),
        "w": drawn(2, CLASSES),
    }
    return simple(nodes, weights, domains={"": 11}, ir_version=6)


@made_by("Caffe2", **{"gpu_0/data_0": IMAGES.transpose(0, 3, 1, 2).astype(np.float32)})
def light_network() -> onnx.ModelProto:
    """As the models of ONNX's own tests: folded weights are inputs, the batch is one."""
    nodes = [
        node("Conv", "gpu_0/data_0 gpu_0/conv1_w_0", "gpu_0/conv1_1", name=""),
        node(
            "BatchNormalization",
            "gpu_0/conv1_1 bn_s_0 bn_b_0 bn_m_0 bn_v_0",
            "gpu_0/bn_1",
            name="",
        ),
        node("Relu", "gpu_0/bn_1", "gpu_0/bn_2", name=""),
        node("Dropout", "gpu_0/bn_2", "gpu_0/drop_1 gpu_0/mask", name=""),
        node("GlobalAveragePool", "gpu_0/drop_1", "gpu_0/pool5_1", name=""),
        node("Reshape", "gpu_0/pool5_1 shape", "gpu_0/flat_1", name=""),
        node("Softmax", "gpu_0/flat_1", "gpu_0/softmax_1", name="", axis=1),
    ]
    weights = {
        "gpu_0/conv1_w_0": drawn(8, 3, 3, 3) / 300,
        "bn_s_0": drawn(8),
        "bn_b_0": drawn(8, seed=1),
        "bn_m_0": drawn(8, seed=2),
        "bn_v_0": np.ones(8, np.float32),
        "shape": np.array([1, 8]),
    }
    made = simple(
        nodes,
        weights,
        inputs={"gpu_0/data_0": (FLOAT, [1, 3, 6, 6])},
        outputs={"gpu_0/softmax_1": (FLOAT, [1, 8])},
        domains={"": 8},
        ir_version=3,
    )
    return fed_weights(made)


@made_by("Caffe2", data=TABLE)
def weights_that_may_be_replaced() -> onnx.ModelProto:
    nodes, weights = dense("data", "y", "fc")
    made = simple(nodes, weights, inputs={"data": (FLOAT, ["n", FEATURES])}, ir_version=8)
    return fed_weights(made)


# torch.onnx and onnxscript: functions, branches, loops, several inputs


def graph(nodes: Sequence[onnx.NodeProto], inputs: Infos, outputs: Infos) -> onnx.GraphProto:
    return model(nodes, inputs, outputs).graph


@made_by("torch.onnx")
def a_branch() -> onnx.ModelProto:
    parts = {
        name: graph([node(operator, "x w", "z", name="")], {}, {"z": (FLOAT, None)})
        for name, operator in (("then_branch", "MatMul"), ("else_branch", "MatMul"))
    }
    parts["else_branch"].node[0].input[1] = "v"
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "yes"),
        node("If", "yes", "y", **parts),
    ]
    weights = {
        "zero": np.float32(1e9),
        "w": drawn(FEATURES, CLASSES),
        "v": drawn(FEATURES, CLASSES),
    }
    return simple(nodes, weights)


@made_by("torch.onnx")
def a_loop() -> onnx.ModelProto:
    body = graph(
        [
            node("Identity", "going", "go"),
            node("MatMul", "state w", "product"),
            node("Tanh", "product", "next"),
        ],
        {"turn": (INT64, []), "going": (BOOL, []), "state": (FLOAT, None)},
        {"go": (BOOL, []), "next": (FLOAT, None)},
    )
    nodes = [node("Loop", "three yes x", "h", body=body), node("MatMul", "h v", "y")]
    weights = {
        "three": np.array(3),
        "yes": np.array(True),
        "w": drawn(FEATURES, FEATURES),
        "v": drawn(FEATURES, CLASSES),
    }
    return simple(nodes, weights)


@made_by("torch.onnx", x=drawn(ROWS, 5, FEATURES))
def a_scan() -> onnx.ModelProto:
    body = graph(
        [node("Add", "sum step", "more"), node("Identity", "more", "kept")],
        {"sum": (FLOAT, None), "step": (FLOAT, None)},
        {"more": (FLOAT, None), "kept": (FLOAT, None)},
    )
    nodes = [
        node("Transpose", "x", "steps", perm=[1, 0, 2]),
        node("ReduceSum", "x axis", "start", keepdims=0),
        node("Scan", "start steps", "last all", num_scan_inputs=1, body=body),
        node("MatMul", "last w", "y"),
    ]
    weights = {"axis": np.array([1]), "w": drawn(FEATURES, CLASSES)}
    return simple(nodes, weights, inputs={"x": (FLOAT, ["n", 5, FEATURES])})


@made_by("onnxscript")
def functions_of_its_own() -> onnx.ModelProto:
    made = simple(
        [node("Layer", "x w", "h", domain="pkg.mine"), node("Softmax", "h", "y", axis=1)],
        {"w": drawn(FEATURES, CLASSES)},
        domains={"pkg.mine": 1},
    )
    body = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Gelu", ["c"], ["d"])]
    gelu = [helper.make_node("Tanh", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("pkg.mine", 1)]
    body[1].domain = "pkg.mine"
    made.functions.append(
        helper.make_function("pkg.mine", "Layer", ["a", "b"], ["d"], body, opsets)
    )
    made.functions.append(helper.make_function("pkg.mine", "Gelu", ["a"], ["b"], gelu, opsets))
    return made


@made_by("onnxscript", ids=IDS, mask=(IDS > 3).astype(np.int64), types=IDS * 0)
def three_inputs() -> onnx.ModelProto:
    nodes, weights = dense("pooled", "logits", "head", rows=64)
    nodes = [
        node("Gather", "table ids", "words"),
        node("Gather", "table types", "kinds"),
        node("Add", "words kinds", "both"),
        node("Cast", "mask", "real", to=FLOAT),
        node("Unsqueeze", "real last", "wide"),
        node("Mul", "both wide", "seen"),
        node("ReduceSum", "seen one", "pooled", keepdims=0),
        *nodes,
    ]
    weights |= {"table": drawn(9, 64, seed=5), "last": np.array([-1]), "one": np.array([1])}
    shape = (INT64, ["batch", 5])
    return simple(
        nodes,
        weights,
        inputs={"ids": shape, "mask": shape, "types": shape},
        outputs={"logits": (FLOAT, ["batch", CLASSES])},
    )


# By hand: the types and forms that few tools expect


def with_output(made: onnx.ModelProto, name: str, kind: onnx.TypeProto) -> onnx.ModelProto:
    made.graph.output.append(helper.make_value_info(name, kind))
    return made


@made_by("by hand")
def a_sequence_beside_an_array() -> onnx.ModelProto:
    nodes, weights = dense("x", "y", "fc")
    made = simple([*nodes, node("SequenceConstruct", "y y", "twice")], weights)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    return with_output(made, "twice", kind)


@made_by("by hand")
def an_optional_output() -> onnx.ModelProto:
    nodes, weights = dense("x", "y", "fc")
    made = simple([*nodes, node("Optional", "y", "perhaps")], weights)
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["n", CLASSES]))
    return with_output(made, "perhaps", kind)


@made_by("by hand")
def a_sparse_weight() -> onnx.ModelProto:
    made = simple([node("MatMul", "x w", "y")])
    values = numpy_helper.from_array(drawn(3), "w")
    places = numpy_helper.from_array(np.array([1, 9, 30]), "w_places")
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, places, [FEATURES, CLASSES])
    )
    return made


@made_by("by hand")
def names_in_another_encoding() -> bytes:
    nodes, weights = dense("x", "y", "fc-layer")
    return simple(nodes, weights).SerializeToString().replace(b"fc-layer", b"fc-l\xe4yer")


@made_by("by hand", x=drawn(ROWS, 5, FEATURES))
def unread_outputs_without_names() -> onnx.ModelProto:
    states = helper.make_node("GRU", ["turned", "w", "r"], ["", "last"], hidden_size=CLASSES)
    nodes = [
        node("Transpose", "x", "turned", perm=[1, 0, 2]),
        states,
        node("Squeeze", "last first", "y"),
    ]
    weights = {
        "w": drawn(1, 3 * CLASSES, FEATURES),
        "r": drawn(1, 3 * CLASSES, CLASSES),
        "first": np.array([0]),
    }
    made = simple(nodes, weights, inputs={"x": (FLOAT, ["n", 5, FEATURES])})
    made.graph.name = ""
    return made


@made_by("by hand", x=TABLE.astype(np.float16))
def half_in_and_out() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "y")]
    return simple(
        nodes,
        {"w": drawn(FEATURES, CLASSES).astype(np.float16)},
        inputs={"x": (HALF, ["n", FEATURES])},
        outputs={"y": (HALF, ["n", CLASSES])},
    )


def ending_in(kind: int, opset: int = 19) -> onnx.ModelProto:
    nodes, weights = dense("x", "h", "fc")
    return simple(
        [*nodes, node("Cast", "h", "y", to=kind)],
        weights,
        outputs={"y": (kind, ["n", CLASSES])},
        domains={"": opset},
        ir_version=10,
    )


@made_by("by hand")
def brain_floats_out() -> onnx.ModelProto:
    return ending_in(TensorProto.BFLOAT16)


@made_by("by hand")
def eight_bit_floats_out() -> onnx.ModelProto:
    return ending_in(TensorProto.FLOAT8E4M3FN)


@made_by("by hand")
def four_bit_integers_out() -> onnx.ModelProto:
    return ending_in(TensorProto.INT4, 21)


@made_by("by hand", x=TABLE.astype(np.float64))
def doubles() -> onnx.ModelProto:
    return simple(
        [node("Gemm", "x w", "y")],
        {"w": drawn(FEATURES, CLASSES).astype(np.float64)},
        inputs={"x": (DOUBLE, ["n", FEATURES])},
        outputs={"y": (DOUBLE, ["n", CLASSES])},
    )


@made_by("by hand")
def shapes_without_a_rank() -> onnx.ModelProto:
    nodes, weights = dense("x", "y", "fc")
    made = copied(simple(nodes, weights))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.ClearField("shape")
    return made


@made_by("by hand")
def one_number_for_all_rows() -> onnx.ModelProto:
    return simple([node("ReduceMean", "x", "y", keepdims=0)], outputs={"y": (FLOAT, [])})


@made_by("by hand", x=drawn(ROWS, 5, FEATURES))
def time_before_rows() -> onnx.ModelProto:
    return simple(
        [node("Transpose", "x", "y", perm=[1, 0, 2])],
        inputs={"x": (FLOAT, ["n", 5, FEATURES])},
        outputs={"y": (FLOAT, [5, "n", FEATURES])},
    )


@made_by("by hand", text=WORDS[:, 0])
def words_in_and_out() -> onnx.ModelProto:
    return simple(
        [node("Identity", "text", "again")],
        inputs={"text": (STRING, ["n"])},
        outputs={"again": (STRING, ["n"])},
    )


@made_by("by hand", nothing=TABLE)
def no_inputs() -> onnx.ModelProto:
    made = simple([node("Identity", "w", "y")], {"w": drawn(2, CLASSES)})
    del made.graph.input[:]
    return made
