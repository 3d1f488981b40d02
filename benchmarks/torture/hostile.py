"""Graphs that a runtime may hang in, die of or fill the memory with; each takes x: float [N, 4].

Most are written in ONNX's own text, as the body of a graph that makes y: float.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence

import onnx
from onnx import TensorProto, helper, parser

FLOAT = TensorProto.FLOAT
FAR = 2**40
FOREVER = 2**62
INT32 = """
    zero = Cast<to=6>(x)  low = Constant<value=int32[1] {-2147483648}>()
    least = Add(zero, low)  less = Constant<value=int32[1] {-1}>()  minus = Add(zero, less)
"""
INT64 = """
    zero = Cast<to=7>(x)  low = Constant<value=int64[1] {-9223372036854775808}>()
    least = Add(zero, low)  less = Constant<value=int64[1] {-1}>()  minus = Add(zero, less)
"""
LOOP = """
    n = Constant<value_int=4611686018427387904>()  c = Constant<value=bool {1}>()
    y = Loop<body = b (int64 i, bool go, float[N,4] was) => (bool on, float[N,4] is) {
        on = Identity(go)  is = Identity(was)
    }>(n, c, x)
"""
NO_ROWS = """
    shape = Constant<value_ints=[3, 0, 4]>()  flat = Constant<value_ints=[-1]>()
    start = Constant<value_ints=[0]>()  none = Reshape(x, flat)  nothing = Slice(none, start, start)
    rows = Reshape<allowzero=1>(nothing, shape)
    of_w = Constant<value_ints=[1, {gates}, 4]>()
    w = ConstantOfShape<value=float[1] {{0.5}}>(of_w)
    all, last = {operator}<hidden_size=4>(rows, w, w)
    t = ReduceSum<keepdims=0>(last)  y = Add(x, t)
"""
IMAGE = "shape = Constant<value_ints=[-1, 1, 2, 2]>()  image = Reshape(x, shape)\n"
KERNEL = (
    "of_w = Constant<value_ints=[1, 1, 2, 2]>()  w = ConstantOfShape<value=float[1] {0.5}>(of_w)\n"
)


def ints(name: str, *values: int) -> str:
    """A constant of whole numbers."""
    return f"{name} = Constant<value_ints=[{', '.join(map(str, values))}]>()\n"


BODIES = {
    "int32 minimum by -1": INT32 + "q = Div(least, minus)  y = Cast<to=1>(q)",
    "int64 minimum by -1": INT64 + "q = Div(least, minus)  y = Cast<to=1>(q)",
    "int32 by 0": INT32 + "q = Div(least, zero)  y = Cast<to=1>(q)",
    "int32 minimum modulo -1": INT32 + "q = Mod(least, minus)  y = Cast<to=1>(q)",
    "int64 modulo 0": INT64 + "q = Mod(least, zero)  y = Cast<to=1>(q)",
    "endless loop": LOOP,
    "a loop that grows": LOOP.replace(
        "is = Identity(was)", "is = Concat<axis=0>(was, was)"
    ).replace("float[N,4]", "float[K,4]"),
    "a loop that keeps": """
        n = Constant<value_int=4611686018427387904>()  c = Constant<value=bool {1}>()
        all = Loop<body = b (int64 i, bool go) => (bool on, float[N,4] is) {
            on = Identity(go)  is = Identity(x)
        }>(n, c)
        y = Flatten(all)
    """,
    "loops in loops": """
        n = Constant<value_int=1048576>()  c = Constant<value=bool {1}>()
        y = Loop<body = b (int64 i, bool go, float[N,4] was) => (bool on, float[N,4] is) {
            on = Identity(go)
            is = Loop<body = d (int64 j, bool go2, float[N,4] was2) => (bool on2, float[N,4] is2) {
                on2 = Identity(go2)
                is2 = Loop<body = e (int64 k, bool go3, float[N,4] was3)
                        => (bool on3, float[N,4] is3) {
                    on3 = Identity(go3)  is3 = Sin(was3)
                }>(n, c, was2)
            }>(n, c, was)
        }>(n, c, x)
    """,
    "LSTM without rows": NO_ROWS.format(operator="LSTM", gates=16),
    "GRU without rows": NO_ROWS.format(operator="GRU", gates=12),
    "RNN without rows": NO_ROWS.format(operator="RNN", gates=4),
    "ConvTranspose of group 0": IMAGE
    + KERNEL
    + "o = ConvTranspose<group=0>(image, w)  y = Flatten(o)",
    "Conv of group 0": IMAGE + KERNEL + "o = Conv<group=0>(image, w)  y = Flatten(o)",
    "Conv of stride 0": IMAGE + KERNEL + "o = Conv<strides=[0, 0]>(image, w)  y = Flatten(o)",
    "Conv of pads of 2^40": IMAGE
    + KERNEL
    + f"o = Conv<pads=[{FAR}, {FAR}, {FAR}, {FAR}]>(image, w)  y = Flatten(o)",
    "MaxPool of a kernel of 2^31": IMAGE
    + "o = MaxPool<kernel_shape=[2147483648, 1]>(image)  y = Flatten(o)",
    "AveragePool of a kernel of 0": IMAGE
    + "o = AveragePool<kernel_shape=[0, 0]>(image)  y = Flatten(o)",
    "SpaceToDepth of 0": IMAGE + "o = SpaceToDepth<blocksize=0>(image)  y = Flatten(o)",
    "DepthToSpace of -1": IMAGE + "o = DepthToSpace<blocksize=-1>(image)  y = Flatten(o)",
    "MaxUnpool far away": IMAGE + "at = Constant<value=int64[1,1,1,1] {1099511627776}>()"
    "  z = Constant<value=float[1,1,1,1] {1}>()"
    "  o = MaxUnpool<kernel_shape=[2, 2], strides=[2, 2]>(z, at)"
    "  f = Flatten(o)  t = ReduceSum(f)  y = Add(x, t)",
    "RoiAlign of another image": IMAGE + "roi = Constant<value=float[1,4] {0, 0, 1e30, 1e30}>()"
    "  of = Constant<value=int64[1] {999999}>()"
    "  o = RoiAlign<output_height=2, output_width=2>(image, roi, of)"
    "  t = ReduceSum(o)  y = Add(x, t)",
    "GridSample of NaN": IMAGE
    + "z = Sub(x, x)  n = Div(z, z)"
    + ints("gs", -1, 1, 2, 2)
    + "grid = Reshape(n, gs)  o = GridSample(image, grid)  y = Flatten(o)",
    "Resize by a million": IMAGE
    + "n = Constant<value=float[0] {}>()  by = Constant<value=float[4] {1, 1, 1000000, 1000000}>()"
    '  o = Resize<mode="nearest">(image, n, by)  y = Flatten(o)',
    "Resize by NaN": IMAGE
    + "n = Constant<value=float[0] {}>()  one = Constant<value=float[4] {0, 0, 0, 0}>()"
    '  by = Div(one, one)  o = Resize<mode="linear">(image, n, by)  y = Flatten(o)',
    "Resize to -1": IMAGE
    + ints("to", 1, 1, -1, -1)
    + 'o = Resize<mode="cubic">(image, , , to)  y = Flatten(o)',
    "Expand to 2^50": ints("to", 1024, FAR, 4) + "o = Expand(x, to)  y = Flatten(o)",
    "zeros of 2^40": ints("to", FAR) + "z = ConstantOfShape(to)  t = ReduceSum(z)  y = Add(x, t)",
    "zeros of -1": ints("to", -1) + "z = ConstantOfShape(to)  t = ReduceSum(z)  y = Add(x, t)",
    "Tile 2^40 times": ints("by", FAR, 1) + "y = Tile(x, by)",
    "Tile -1 times": ints("by", -1, 1) + "y = Tile(x, by)",
    "Pad by 2^40": ints("by", FAR, 0, 0, 0) + "y = Pad(x, by)",
    "Pad by -2^40": ints("by", -FAR, 0, 0, 0) + "y = Pad(x, by)",
    "a Range without end": "a = Constant<value=float {0}>()  b = Constant<value=float {1e30}>()"
    "  d = Constant<value=float {1e-30}>()  r = Range(a, b, d)  t = ReduceSum(r)  y = Add(x, t)",
    "a Range by 0": "a = Constant<value=int64 {0}>()  b = Constant<value=int64 {9}>()"
    "  r = Range(a, b, a)  f = Cast<to=1>(r)  t = ReduceSum(f)  y = Add(x, t)",
    "a Range of NaN": "z = Constant<value=float {0}>()  n = Div(z, z)  r = Range(z, n, n)"
    "  t = ReduceSum(r)  y = Add(x, t)",
    "Gather out of range": ints("at", FAR) + "y = Gather<axis=1>(x, at)",
    "GatherElements out of range": "at = Constant<value=int64[1,1] {-9223372036854775808}>()"
    "  y = GatherElements<axis=1>(x, at)",
    "GatherND out of range": "at = Constant<value=int64[1,2] {1099511627776, 7}>()"
    "  g = GatherND(x, at)  y = Add(x, g)",
    "ScatterElements out of range": "at = Constant<value=int64[1,1] {1099511627776}>()"
    "  u = Constant<value=float[1,1] {1}>()  y = ScatterElements<axis=1>(x, at, u)",
    "ScatterND out of range": "at = Constant<value=int64[1,2] {1099511627776, 7}>()"
    "  u = Constant<value=float[1] {1}>()  y = ScatterND(x, at, u)",
    "DequantizeLinear on axis 9": "q = Cast<to=2>(x)  s = Constant<value=float[4] {1, 1, 1, 1}>()"
    "  z = Constant<value=uint8[4] {0, 0, 0, 0}>()  y = DequantizeLinear<axis=9>(q, s, z)",
    "QuantizeLinear by 0": "s = Constant<value=float {0}>()  z = Constant<value=uint8 {0}>()"
    "  q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)",
    "OneHot of 2^40": ints("d", FAR) + "v = Constant<value=float[2] {0, 1}>()  i = Cast<to=7>(x)"
    "  o = OneHot(i, d, v)  y = Flatten(o)",
    "OneHot of -1": ints("d", -1) + "v = Constant<value=float[2] {0, 1}>()  i = Cast<to=7>(x)"
    "  o = OneHot(i, d, v)  y = Flatten(o)",
    "TopK of 2^40": ints("k", FAR) + "y, i = TopK(x, k)",
    "TopK of -1": ints("k", -1) + "y, i = TopK(x, k)",
    "Split in 2^31": "y, z = Split<axis=1, num_outputs=2147483647>(x)",
    "Split of -1": ints("s", 5, -1) + "y, z = Split<axis=1>(x, s)",
    "Reshape to 2^66": ints("to", 2**33, 2**33) + "y = Reshape(x, to)",
    "Reshape to -2": ints("to", -2, 4) + "y = Reshape(x, to)",
    "ReduceSum over axis 2^40": ints("a", FAR) + "s = ReduceSum(x, a)  y = Add(x, s)",
    "Unsqueeze at 2^40": ints("a", FAR) + "u = Unsqueeze(x, a)  y = Flatten(u)",
    "ArgMax over axis 7": "i = ArgMax<axis=7>(x)  y = Cast<to=1>(i)",
    "CumSum over axis 7": ints("a", 7) + "y = CumSum(x, a)",
    "a product of 2^40 values": ints("to", 2**20, 4, 2**20)
    + ints("of", 4, 2**20)
    + "a = Expand(x, of)  t = Transpose(a)  m = MatMul(t, a)  y = ReduceSum(m)",
    "Einsum of nonsense": 'y = Einsum<equation="...ij,...jk...->éik...,">(x, x)',
    "LayerNormalization over axis 7": "s = Constant<value=float[4] {1, 1, 1, 1}>()"
    "  y = LayerNormalization<axis=7>(x, s)",
    "LRN of size 0": IMAGE + "o = LRN<size=0>(image)  y = Flatten(o)",
    "a Fourier transform of 2^40": IMAGE + "n = Constant<value=int64 {1099511627776}>()"
    "  f = Constant<value_ints=[-1, 4, 1]>()  r = Reshape(x, f)  o = DFT<axis=1>(r, n)"
    "  y = Flatten(o)",
    "a window of 2^40": "n = Constant<value=int64 {1099511627776}>()  w = HannWindow(n)"
    "  t = ReduceSum(w)  y = Add(x, t)",
    "frames that do not move": "f = Constant<value_ints=[-1, 4, 1]>()  r = Reshape(x, f)"
    "  s = Constant<value=int64 {0}>()  w = Constant<value=float[4] {1, 1, 1, 1}>()"
    "  o = STFT(r, s, w)  y = Flatten(o)",
    "random numbers, 2^40": f"r = RandomNormal<shape=[{FAR}]>()  t = ReduceSum(r)  y = Add(x, t)",
    "SequenceAt out of range": "s = SequenceConstruct(x, x)"
    "  i = Constant<value=int64 {1099511627776}>()  y = SequenceAt(s, i)",
    "a tree that goes in circles": "y = ai.onnx.ml.TreeEnsembleRegressor<n_targets=1,"
    " nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],"
    ' nodes_modes=["BRANCH_LEQ", "BRANCH_LEQ", "LEAF"], nodes_values=[1e9, 1e9, 0.0],'
    " nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 2, 0], target_treeids=[0],"
    " target_nodeids=[2], target_ids=[0], target_weights=[1.0]>(x)",
    "a tree of a feature that is not there": "y = ai.onnx.ml.TreeEnsembleRegressor<n_targets=1,"
    " nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[1099511627776, 0, 0],"
    ' nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[1.0, 0.0, 0.0],'
    " nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0],"
    " target_nodeids=[1, 2], target_ids=[0, 99999999], target_weights=[1.0, 2.0]>(x)",
    "an operator of nobody": 'y = nobody.knows.Execute<path="/bin/sh">(x)',
    "weights of NaN": "z = Constant<value=float {0}>()  n = Div(z, z)  y = Add(x, n)",
    "doubled 48 times": "d0 = Identity(x)\n"
    + "".join(f"d{at + 1} = Concat<axis=0>(d{at}, d{at})\n" for at in range(48))
    + "y = Identity(d48)",
    "100,000 nodes": "d0 = Identity(x)\n"
    + "".join(f"d{at + 1} = Sin(d{at})\n" for at in range(100_000))
    + "y = Identity(d100000)",
    "a node of itself": "y = Add(x, z)  z = Sin(y)",
    "no node at all": "",
}


def hostile() -> Iterator[tuple[str, bytes]]:
    """All of them, the smallest first."""
    for name, body in BODIES.items():
        yield name, graph(body)
    for name, change in CHANGES.items():
        model = onnx.load_from_string(graph("y = Relu(x)"))
        change(model)
        yield name, model.SerializeToString()
    good = graph("yyyyyy = Relu(x)  y = Identity(yyyyyy)")
    yield "a name that is not UTF-8", good.replace(b"yyyyyy", b"y\xff\xfe\xed\xa0\x80")


def graph(body: str) -> bytes:
    """A model of a graph in ONNX's text."""
    text = f"""<ir_version: 8, opset_import: ["" : 18, "ai.onnx.ml" : 3, "nobody.knows" : 1]>
        hostile (float[N,4] x) => (float[N,M] y) {{ {body} }}"""
    content: bytes = parser.parse_model(text).SerializeToString()
    return content


def nested(model: onnx.ModelProto) -> None:
    """An If in an If, and so on."""
    y = helper.make_tensor_value_info("y", FLOAT, None)
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inner", [], [y])
    leaf = inner
    for _ in range(30):
        both = {"then_branch": inner, "else_branch": leaf}
        inner = helper.make_graph(
            [helper.make_node("If", ["yes"], ["y"], **both)], "outer", [], [y]
        )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    constant = helper.make_node("Constant", [], ["yes"], value=yes)
    del model.graph.node[:]
    model.graph.node.extend([constant, *inner.node])


def of_itself(model: onnx.ModelProto) -> None:
    """A function that calls itself."""
    call = helper.make_node("F", ["x"], ["y"], domain="own")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [call], opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].CopyFrom(call)


def of_texts(model: onnx.ModelProto) -> None:
    """A text that is doubled again and again."""
    model.opset_import[0].version = 20
    names = ["t0", *(f"t{at}" for at in range(1, 40))]
    nodes = [helper.make_node("Cast", ["x"], ["t0"], to=TensorProto.STRING)]
    nodes += [
        helper.make_node("StringConcat", [name, name], [then])
        for name, then in itertools.pairwise([*names, "y"])
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING


def weight(model: onnx.ModelProto, dims: Sequence[int], content: bytes = b"") -> None:
    """A sum with a weight of such axes, of such bytes."""
    tensor = model.graph.initializer.add(name="w", data_type=FLOAT, raw_data=content)
    tensor.dims.extend(dims)
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))


def fixed_batch(model: onnx.ModelProto) -> None:
    """A batch of 2^40 rows, and no other."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = FAR


def labelled(labels: str) -> Callable[[onnx.ModelProto], None]:
    """Four classes with such labels."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].output[0] = model.graph.output[0].name = "logits"
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
        helper.set_model_props(model, {"ferry.labels": labels})

    return change


def named(name: str) -> Callable[[onnx.ModelProto], None]:
    """An input, and an output, of such a name."""

    def change(model: onnx.ModelProto) -> None:
        node = model.graph.node[0]
        node.input[0] = model.graph.input[0].name = f"{name} in"
        node.output[0] = model.graph.output[0].name = f"{name} out"

    return change


CHANGES: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a batch of 2^40": fixed_batch,
    "ifs in ifs": nested,
    "a function of itself": of_itself,
    "a text that is doubled": of_texts,
    "a weight of 2^40 values": functools.partial(weight, dims=[FAR]),
    "a weight of -1 values": functools.partial(weight, dims=[-1, 4]),
    "a weight of 2^64 values": functools.partial(weight, dims=[2**32, 2**32]),
    "a weight that is cut short": functools.partial(weight, dims=[1, 4], content=b"\0"),
    "a name of 10 MB": named("n" * 10_000_000),
    "names that a terminal would obey": named("\x1b]0;title\a\x1b[2J"),
    "labels 100,000 deep": labelled("[" * 100_000),
    "labels of half a character": labelled('["\\ud800", "b", "c", "\\udfff"]'),
    "labels that a terminal would obey": labelled('["\\u001b]0;title\\u0007", "b", "c", "d"]'),
    "a million labels": labelled(json.dumps(["n"] * 1_000_000)),
    "opset 2^62": lambda model: setattr(model.opset_import[0], "version", FOREVER),
    "IR 2^62": lambda model: setattr(model, "ir_version", FOREVER),
    "no outputs": lambda model: model.graph.ClearField("output"),
    "an output that nothing makes": lambda model: setattr(model.graph.output[0], "name", "other"),
    "no types": lambda model: model.graph.input[0].ClearField("type"),
}
