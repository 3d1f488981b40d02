"""Each operator of the C emitter against ONNX Runtime's unoptimised graph, and its refusals."""

import json
import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from c_cases import FLOATS, UINT8, WHOLE, Array, Case, conv, one, residual, steps
from c_toolchain import SANITIZED, STRICT, Machine, answers, missing
from onnx import compose
from small_models import product_net, recurrent_net, rows_for, table_net
from small_onnx import FLOAT, model, node

from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import parse
from pipeline.targets.c99 import emit
from pipeline.targets.c99.ctext import table
from serving.errors import ModelError
from serving.runtime.session import open_session

CASES: Mapping[str, Case] = {**FLOATS, "residual": residual, **WHOLE}
ROWS = 5


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


@pytest.fixture(scope="module")
def wanted(models: Mapping[str, onnx.ModelProto]) -> Mapping[str, Array]:
    return {name: expected(case) for name, case in models.items()}


@pytest.fixture(scope="module", params=["host", "cortex-m4"])
def answered(
    request: pytest.FixtureRequest,
    models: Mapping[str, onnx.ModelProto],
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, Array]:
    """What one program of all cases answers: under the sanitizers here, and emulated, with -Os."""
    machine: Machine = request.param
    if lacking := missing(machine):
        pytest.skip(f"no {lacking} here")
    program = emit(together(models), "cases")
    rows = {
        f"c{at}_x": rows_for(case, ROWS, seed=7).inputs["x"]
        for at, case in enumerate(models.values())
    }
    made = answers(
        program, rows, tmp_path_factory.mktemp(machine), machine=machine, flags=SANITIZED
    )
    return {name: made[f"c{at}_y"] for at, name in enumerate(models)}


def test_an_operator_answers_as_onnx_runtime(
    answered: Mapping[str, Array], wanted: Mapping[str, Array]
) -> None:
    assert not {name: said for name in CASES if (said := apart(name, wanted[name], answered[name]))}


def apart(name: str, wanted: Array, found: Array) -> str:
    """How the answers of a case differ; "" for not at all."""
    if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
        return f"{wanted.dtype} {wanted.shape} and {found.dtype} {found.shape}"
    largest = max(1.0, float(np.abs(wanted.astype(np.float64)).max()))
    off = np.abs(wanted.astype(np.float64) - found) / largest
    # Of whole numbers, a sum in the middle of two steps may fall to either side in a graph of
    # floats; a tie of values themselves may not.
    some, most = (0.005, 0.05) if name in WHOLE and name != "ties" else (0.0, 2e-6)
    if (off > 2e-6).mean() <= some and off.max() <= most:
        return ""
    return f"{(off > 2e-6).mean():.1%} differ, by up to {off.max():.1e} of the largest"


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
    "unmade": (lambda: steps("Add x nothing y", (3,)), r"Add .*nothing makes 'nothing'"),
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
    weights = {"q": np.ones((4, 2), np.int8), "t": np.array([1, scale], np.float32)}
    product = steps("DequantizeLinear q t w; MatMul x w y", (4,), weights)
    with pytest.raises(ModelError, match=r"MatMul .* finite and above 0, one is"):
        emit(product, "product")
    made = steps("QuantizeLinear x s q; DequantizeLinear q s y", (4,), {"s": np.float32(scale)})
    with pytest.raises(ModelError, match="scale must be above 0"):
        emit(made, "steps")


EVIL = "*/ int evil; /* \" \\ \\\n??/ ??' ü"
"""What a name must not end, begin or break."""


def test_names_of_a_graph_cannot_write_c() -> None:
    named = [node("Relu", "x", "y", name=EVIL)]
    program = emit(one(named, (4,)), EVIL)
    assert "int evil; /*" not in program.source
    assert (program.source + program.header).isascii()
    assert program.name.isidentifier()


def test_every_name_of_an_input_compiles(tmp_path: Path) -> None:
    if lacking := missing("host"):
        pytest.skip(f"no {lacking} here")
    names = ["float", "step1", "arena", "NAN", "1st", "a b", "a_b", "LABELS", "class", "ä", "_x"]
    names += ["A b", "uint8_t", "int32_t", "max", "asm", "operator", "rounded", "uint8_run", EVIL]
    case = model(
        [onnx.helper.make_node("Tanh", [name], [f"{name}.y"]) for name in names],
        {name: (FLOAT, ["n", 1]) for name in names},
        {f"{name}.y": (FLOAT, None) for name in names},
    )
    program = emit(case, "uint8")  # whose macros must not be UINT8_MAX and the like
    rows = {one.name: np.full((1, 1), at / 7) for at, one in enumerate(program.inputs)}
    found = answers(program, rows, tmp_path, flags=("-O0",))
    for made, read in zip(program.outputs, program.inputs, strict=True):
        np.testing.assert_allclose(found[made.name], np.tanh(rows[read.name]), rtol=1e-6)
    if shutil.which("g++"):
        reading = ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "model.h"]
        subprocess.run(reading, cwd=tmp_path, check=True)


BITS = """#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>

{table}
int main(void)
{{
    return fwrite(values, sizeof values, 1, stdout) != 1;
}}
"""


def test_a_weight_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """Denormals, the largest, both zeros, infinities, and any others; a NaN is a NaN."""
    if lacking := missing("host"):
        pytest.skip(f"no {lacking} here")
    special = [0, 0x80000000, 1, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000]
    drawn = np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32)
    values = np.concatenate([np.array(special, np.uint32), drawn]).view(np.float32)
    (tmp_path / "bits.c").write_text(BITS.format(table=table("values", values, "Any.")))
    for command in (["gcc", *STRICT, "-O0", "bits.c", "-o", "bits"], ["./bits"]):
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = np.frombuffer(done.stdout, np.float32)
    nan = np.isnan(values)
    assert np.isnan(found[nan]).all()
    np.testing.assert_array_equal(found[~nan].view(np.uint32), values[~nan].view(np.uint32))


BOTH = """#include <stdio.h>

#include "first/model.h"
#include "second/model.h"

int main(void)
{
    static const char *const labels[] = FIRST_LABELS;
    const float x[4] = {-1.0f, 2.0f, -3.0f, 4.0f};
    float y[4], z[4];
    first_run(x, y);
    second_run(x, z);
    for (int i = 0; i < 4; i++) {
        printf("%s%c%g %g%c", labels[i], 0, (double)y[i], (double)z[i], 0);
    }
    return 0;
}
"""


def test_two_models_are_linked_into_one_program(tmp_path: Path) -> None:
    if lacking := missing("host"):
        pytest.skip(f"no {lacking} here")
    labels = [EVIL, "", "%s", "\x7f1"]
    first = steps("Relu x y", (4,))
    first.metadata_props.add(key="ferry.labels", value=json.dumps(labels))
    second = steps("Softmax x s; Mul s k y", (4,), {"k": np.float32(0)})
    programs = {"first": emit(first, "first"), "second": emit(second, "second")}
    assert programs["first"].arena_bytes == 0
    assert "arena" not in programs["first"].source
    for name, program in programs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.h").write_text(program.header)
        (tmp_path / name / "model.c").write_text(program.source)
    (tmp_path / "main.c").write_text(BOTH)
    files = ["first/model.c", "second/model.c", "main.c"]
    for command in (["gcc", *STRICT, "-O0", *files, "-o", "both", "-lm"], ["./both"]):
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    said = done.stdout.decode().split("\0")
    assert said[:-1:2] == labels
    assert said[1::2] == ["0 0", "2 0", "0 0", "4 0"]
