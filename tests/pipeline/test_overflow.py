"""Sums that overflow without VNNI: ruled out by a proof of the file, or computed as they come."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import image_net, product_net, recurrent_net, rows_for
from small_onnx import model, node

from pipeline.proof.overflow import (
    _exact,
    integer_products,
    lost_in_pairs,
    needs_of,
    without_vnni,
)
from pipeline.proof.tracing.values import OnnxValues
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import BASIC, parse, with_full_range
from serving.runtime.tensors import Array

EMULATOR = shutil.which("qemu-x86_64-static")
ANSWER = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rows = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], session.run(["logits"], dict(rows))[0])
"""


def quantized(recipe: str) -> onnx.ModelProto:
    original = image_net()
    return Quantizer(original, rows_for(original, 8)).apply(parse(recipe))


def integers(weights: Array) -> onnx.ModelProto:
    """A product of bytes with weights."""
    return model(
        [node("MatMulInteger", "x w", "y")],
        {"x": (TensorProto.UINT8, ["n", len(weights)])},
        {"y": (TensorProto.INT32, ["n", weights.shape[1]])},
        {"w": weights},
    )


@pytest.mark.parametrize("build", [image_net, product_net, lambda: recurrent_net("LSTM")])
def test_recipes_of_seven_bits_answer_alike_everywhere(
    build: Callable[[], onnx.ModelProto],
) -> None:
    original = build()
    quantizer = Quantizer(original, rows_for(original, 4))
    for name in BASIC:
        if "reduced" in name:
            reduced = quantizer.apply(parse(name))
            assert needs_of(reduced) == ()
            full = quantizer.apply(with_full_range(parse(name)))
            products = list(integer_products(full.graph))
            assert len(products) == len(list(integer_products(reduced.graph)))
            assert needs_of(full) == (("vnni",) if products else ())


def test_other_recipes_do_so_too() -> None:
    for name in ("static-u8u8", "weights-int8"):
        assert needs_of(quantized(name)) == ()


def test_weights_of_64_are_safe_and_of_65_are_not() -> None:
    weights = np.full((2, 1), 64, np.int8)
    assert needs_of(integers(weights)) == ()
    assert needs_of(integers(-weights - 1)) == ("vnni",)
    assert needs_of(integers(weights.astype(np.uint8) + 100)) == ()


def test_products_within_branches_and_functions_count() -> None:
    unsafe = integers(np.full((2, 1), 127, np.int8))
    outer = model([], {"c": (TensorProto.BOOL, [])}, {"y": (TensorProto.INT32, None)})
    branch = copy.deepcopy(unsafe.graph)
    del branch.input[:]
    outer.graph.node.append(node("If", "c", "y", then_branch=branch, else_branch=branch))
    assert needs_of(outer) == ("vnni",)
    constant = helper.make_node("Constant", [], ["w"], value=unsafe.graph.initializer[0])
    called = model([], {"x": (TensorProto.UINT8, ["n", 2])}, {"y": (TensorProto.INT32, None)})
    opset = [helper.make_opsetid("", 18)]
    called.functions.append(
        helper.make_function("own", "F", ["x"], ["y"], [constant, *unsafe.graph.node], opset)
    )
    assert needs_of(called) == ("vnni",)


def test_weights_that_are_computed_are_safe_where_they_are_uint8() -> None:
    for dtype, needs in ((np.uint8, ()), (np.int8, ("vnni",))):
        zero = np.zeros((), dtype)
        nodes = []
        for name in "ab":
            nodes += [node("QuantizeLinear", f"{name} s z", f"{name}q")]
            nodes += [node("DequantizeLinear", f"{name}q s z", f"{name}d")]
        nodes += [node("Transpose", "bd", "bt"), node("MatMul", "ad bt", "y")]
        table = (TensorProto.FLOAT, ["n", 4])
        made = model(
            nodes, {"a": table, "b": table}, {"y": table}, {"s": np.float32(0.1), "z": zero}
        )
        assert needs_of(made) == needs


def test_pairs_saturate_and_their_sums_do_not() -> None:
    generator = np.random.default_rng(0)
    taken = generator.integers(200, 256, (7, 9)).astype(np.uint8)
    weights = generator.choice([-128, 127], (9, 5)).astype(np.int8)
    wide, right = np.pad(taken, ((0, 0), (0, 1))).astype(int), np.pad(weights, ((0, 1), (0, 0)))
    wanted, count = np.zeros((7, 5), int), 0
    for at in range(0, 10, 2):
        pair = wide[:, at : at + 2] @ right[at : at + 2].astype(int)
        wanted += pair.clip(-32768, 32767)
        count += int((pair != pair.clip(-32768, 32767)).sum())
    lost, found = lost_in_pairs(taken, weights)
    assert count > 0
    assert found == count
    np.testing.assert_array_equal(taken.astype(int) @ weights.astype(int) + lost, wanted)


def test_a_product_of_integers_loses_what_does_not_fit() -> None:
    made = integers(np.array([[127], [127], [1], [1]], np.int8))
    rows = np.array([[255, 255, 9, 9], [1, 1, 9, 9]], np.uint8)
    found = without_vnni(made, {"x": rows})
    assert found.overflows == 1
    assert found.answers["y"].ravel().tolist() == [32767 + 18, 254 + 18]


def test_what_is_safe_loses_nothing() -> None:
    made = quantized("static-u8s8-reduced")
    feeds = rows_for(made, 8).inputs
    found = without_vnni(made, feeds)
    assert found.overflows == 0
    wanted = OnnxValues(made, feeds).fetch(["logits"])["logits"]
    np.testing.assert_array_equal(found.answers["logits"], wanted)


@pytest.mark.skipif(not EMULATOR, reason="qemu-x86_64-static emulates a processor without VNNI")
@pytest.mark.parametrize("name", ["static-u8s8", "static-s8s8", "static-u8s8-reduced"])
def test_an_emulated_processor_without_vnni_answers_as_computed(name: str, tmp_path: Path) -> None:
    made = quantized(name)
    # As bright as can be, so that pairs overflow.
    feeds = {key: np.maximum(rows, 128) for key, rows in rows_for(made, 32).inputs.items()}
    file, rows, answers = (str(tmp_path / one) for one in ("m.onnx", "rows.npz", "answers.npy"))
    onnx.save(made, file)
    np.savez(rows, **feeds)
    command = [str(EMULATOR), "-cpu", "Haswell", sys.executable, "-c", ANSWER, file, rows, answers]
    subprocess.run(command, check=True, capture_output=True)
    found = without_vnni(made, feeds)
    emulated = np.load(answers)
    exact = OnnxValues(made, feeds).fetch(["logits"])["logits"]
    assert (found.overflows > 0) == (name != "static-u8s8-reduced")
    difference = np.abs(emulated - found.answers["logits"]).max()
    assert difference <= 0.05 * np.ptp(exact)
    if found.overflows:
        assert np.abs(emulated - exact).max() > 4 * difference


def test_what_is_exact_overflows_on_no_processor() -> None:
    weights = np.array([[127, -128], [127, -128]], np.int8)
    made = integers(weights)
    exact = _exact(made)
    assert (needs_of(made), needs_of(exact)) == (("vnni",), ())
    rows = np.full((1, 2), 255, np.uint8)
    found = without_vnni(made, {"x": rows})
    assert found.exact["y"].tolist() == (rows.astype(int) @ weights.astype(int)).tolist()
