"""Where a slow variant's time goes: conversions, what stayed in float, and integer operators."""

from dataclasses import replace

import onnx
from small_models import image_net, product_net, rows_for
from tries import BUDGET, IMPOSSIBLE, attempt, generous

from pipeline.quantization.apply import Quantizer
from pipeline.quantization.judging import Judge
from pipeline.quantization.recipes import parse
from pipeline.quantization.search import search
from pipeline.quantization.slowness import slowness, why_slow


def lines_of(model: onnx.ModelProto, recipe: str) -> tuple[str, ...]:
    rows = rows_for(model, 32)
    content = Quantizer(model, rows).apply(parse(recipe)).SerializeToString()
    return why_slow(model.SerializeToString(), content, rows.slice(0, 4))


def test_an_activation_between_integer_layers_is_named_with_its_conversions() -> None:
    model = image_net()
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "HardSwish"
    lines = lines_of(model, "static-u8u8-tensor")
    told = "\n".join(lines)
    for kind in ("DequantizeLinear on its own: ", "QuantizeLinear on its own: ", "Mul in float: "):
        assert kind in told  # a HardSwish is a HardSigmoid and a Mul there
    assert " % of the time in " in lines[0]
    assert "those of integers alone take" in lines[-1]
    assert len(lines) <= 5


def test_layers_that_no_recipe_touched_are_named_in_float() -> None:
    told = "\n".join(lines_of(image_net(), "dynamic"))
    assert "Conv in float: " in told
    assert "2 nodes, such as " in told


def test_only_what_is_slow_is_explained() -> None:
    model = product_net()
    rows = rows_for(model, 32)
    judge = Judge(Quantizer(model, rows), rows, generous(), {})
    content = model.SerializeToString()
    assert slowness(judge, attempt("static-u8s8", 2.0, 0.3), content, BUDGET) == ()
    assert slowness(judge, None, b"", BUDGET) == ()
    assert slowness(judge, replace(attempt("half", 2.0, 0.5), speedup={}), b"", BUDGET) == ()
    assert slowness(judge, attempt("static-u8s8", 0.5, 0.3), content, BUDGET)


def test_a_search_that_finds_nothing_fast_says_why() -> None:
    model = product_net()
    rows = rows_for(model, 32)
    config = generous(min_speedup=IMPOSSIBLE, recipes=("static-u8u8",))
    found, content = search(Judge(Quantizer(model, rows), rows, config, {}), "int8")
    assert not content
    assert " nodes run where fp32 has " in found.slowness[-1]
