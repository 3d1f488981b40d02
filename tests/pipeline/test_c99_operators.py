"""Each operator of the C emitter against ONNX Runtime's unoptimised graph, and its refusals."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from c_cases import FLOATS, UINT8, WHOLE, Array, Case, conv, one, residual, steps
from c_toolchain import SANITIZED, Machine, answers, missing
from onnx import compose
from small_models import product_net, recurrent_net, rows_for, table_net
from small_onnx import FLOAT, model, node

from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import parse
from pipeline.targets.c99 import emit
from serving.errors import ModelError
from serving.runtime.session import open_session

CASES: Mapping[str, Case] = {**FLOATS, "residual": residual, **WHOLE}
ROWS = 5
GROUP = 30
"""Cases of one program: to compile is what takes the time."""
Answers = Mapping[str, tuple[Array, Array]]


def together(cases: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """Graphs side by side in one model: `c0_x` to `c0_y`, `c1_x` to `c1_y`, ..."""
    whole = onnx.ModelProto()
    for at, case in enumerate(cases.values()):
        added = compose.add_prefix(case, f"c{at}_")
        if at == 0:
            whole.CopyFrom(added)
            continue
        assert added.opset_import[0].version == whole.opset_import[0].version
        for kind in ("node", "input", "output", "initializer"):
            getattr(whole.graph, kind).extend(getattr(added.graph, kind))
    return whole


def expected(case: onnx.ModelProto) -> Array:
    """What ONNX Runtime answers to each row alone, with the graph as it is written."""
    session = open_session(case.SerializeToString(), threads=1, optimize="none")
    rows = rows_for(case, ROWS, seed=7).inputs["x"]
    return np.concatenate([session.run({"x": row[None]})["y"] for row in rows]).reshape(ROWS, -1)


@pytest.fixture(scope="module")
def models() -> Mapping[str, onnx.ModelProto]:
    return {name: case() for name, case in CASES.items()}


@pytest.fixture(scope="module", params=["host", "cortex-m4"])
def answered(
    request: pytest.FixtureRequest,
    models: Mapping[str, onnx.ModelProto],
    tmp_path_factory: pytest.TempPathFactory,
) -> Answers:
    """What ONNX Runtime and a program answer to each case: under the sanitizers, and emulated."""
    machine: Machine = request.param
    if lacking := missing(machine):
        pytest.skip(f"no {lacking} here")
    found: dict[str, tuple[Array, Array]] = {}
    for start in range(0, len(models), GROUP):
        cases = dict(itertools.islice(models.items(), start, start + GROUP))
        program = emit(together(cases), f"cases-{start}")
        rows = {
            f"c{at}_x": rows_for(case, ROWS, seed=7).inputs["x"]
            for at, case in enumerate(cases.values())
        }
        folder = tmp_path_factory.mktemp(f"{machine}-{start}")
        made = answers(program, rows, folder, machine=machine, flags=SANITIZED)
        for at, (name, case) in enumerate(cases.items()):
            found[name] = expected(case), made[f"c{at}_y"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_an_operator_answers_as_onnx_runtime(answered: Answers, name: str) -> None:
    wanted, found = answered[name]
    assert wanted.shape == found.shape
    assert wanted.dtype == found.dtype
    largest = max(1.0, float(np.abs(wanted.astype(np.float64)).max()))
    off = np.abs(wanted.astype(np.float64) - found)
    if name in WHOLE:
        # A sum in the middle of two steps may fall to either side in a graph of floats.
        assert (off > 2e-6 * largest).mean() <= 0.005
        assert off.max() <= 0.05 * largest
    else:
        assert off.max() <= 2e-6 * largest


def test_ties_go_to_the_even_step(answered: Answers) -> None:
    wanted, found = answered["ties"]
    np.testing.assert_array_equal(wanted, found)


def halved(recipe: str) -> onnx.ModelProto:
    original = product_net()
    return Quantizer(original, rows_for(original, 8)).apply(parse(recipe))


def fixed_batch() -> onnx.ModelProto:
    return model([node("Relu", "x", "y")], {"x": (FLOAT, [8, 3])}, {"y": (FLOAT, None)})


def free_axis() -> onnx.ModelProto:
    return model([node("Relu", "x", "y")], {"x": (FLOAT, ["n", "length"])}, {"y": (FLOAT, None)})


def overflowing() -> onnx.ModelProto:
    """Sums of a million products of bytes."""
    nodes = [
        node("DequantizeLinear", "x s", "d"),
        node("DequantizeLinear", "q s", "w"),
        node("MatMul", "d w", "y"),
    ]
    many = {"q": np.full((2**17, 1), 127, np.int8), "s": np.float32(0.1)}
    return one(nodes, (2**17,), many, UINT8)


REFUSED: Mapping[str, tuple[Case, str]] = {
    "recurrent": (lambda: recurrent_net("LSTM"), r"LSTM \(node 'recurrent'\).*--target cpu"),
    "dynamic": (lambda: halved("dynamic-reduced"), r"DynamicQuantizeLinear.*static-u8s8-reduced"),
    "half": (lambda: halved("half"), r"Cast .*float16.*fp32"),
    "blocks": (lambda: halved("weights-int8"), r"MatMulNBits.*com\.microsoft.*static-u8s8"),
    "words": (table_net, r"its input 'words' is int64.*--target cpu"),
    "batch": (fixed_batch, r"'x' takes 8 rows at once"),
    "axis": (free_axis, r"axis 'length' of its input 'x'"),
    "overflow": (overflowing, r"MatMul \(node 'MatMul/y'\): a sum.*int32"),
    "shapes": (
        lambda: steps("GlobalMaxPool x m; Add x m y", (2, 3, 3)),
        r"Add .*\[1, 2, 1, 1\] and \[1, 2, 3, 3\]",
    ),
    "axes": (
        lambda: steps("ReduceMean x a y", (2, 3, 3), {"a": np.array([1])}),
        r"ReduceMean .* these are \[1\]",
    ),
    "matrix": (lambda: steps("MatMul x x y", (3, 3)), r"MatMul .* weights must be constant"),
    "large": (lambda: conv((2, 3, 3), (2, 2, 5, 5)), r"Conv .*\[5, 5\] is larger"),
    "nothing": (
        lambda: steps("Slice x s e y", (4,), {"s": np.array([0, 3]), "e": np.array([1, 3])}),
        r"Slice .* leaves no values",
    ),
    "constant": (lambda: steps("Identity x a; Identity k y", (4,), {"k": np.float32(1)}), "const"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_c_cannot_do_is_refused_by_the_node_and_with_a_cure(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        emit(make(), name)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    made = steps("QuantizeLinear x s q; DequantizeLinear q s y", (4,), {"s": np.float32(scale)})
    with pytest.raises(ModelError, match="scale must be above 0"):
        emit(made, "steps")


def test_names_of_a_graph_cannot_write_c() -> None:
    named = [node("Relu", "x", "y", name='*/ int evil; /* " \\\n??/ ü')]
    program = emit(one(named, (4,)), "*/ évil-1")
    assert "int evil; /*" not in program.source
    assert (program.source + program.header).isascii()
    assert program.name.isidentifier()


def test_every_name_of_an_input_compiles(tmp_path: Path) -> None:
    if lacking := missing("host"):
        pytest.skip(f"no {lacking} here")
    names = [
        "float",
        "s1",
        "arena",
        "NAN",
        "1st",
        "a b",
        "a_b",
        "LABELS",
        "class",
        "ä",
        "_x",
        "A b",
    ]
    case = model(
        [onnx.helper.make_node("Tanh", [name], [f"{name}.y"]) for name in names],
        {name: (FLOAT, ["n", 1]) for name in names},
        {f"{name}.y": (FLOAT, None) for name in names},
    )
    program = emit(case, "float")
    rows = {one.name: np.full((1, 1), at / 7) for at, one in enumerate(program.inputs)}
    found = answers(program, rows, tmp_path, flags=("-O0",))
    for made, read in zip(program.outputs, program.inputs, strict=True):
        np.testing.assert_allclose(found[made.name], np.tanh(rows[read.name]), rtol=1e-6)
