"""The search itself, on small models: what is tried, what is not and why, and what is kept."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from small_models import image_net, product_net, recurrent_net, rows_for, table_net
from tries import attempt

from pipeline.config.experiment import Variant
from pipeline.quantization.apply import Source
from pipeline.quantization.plan import Step, plan
from pipeline.quantization.quality import Goal
from pipeline.quantization.recipes import parse
from pipeline.quantization.search import Judge, Settings, search
from pipeline.records.quantize import Budget, Try
from serving.errors import UnknownNameError
from serving.files import sha256_of_bytes
from serving.runtime.session import open_session

GENEROUS = Budget(accuracy_loss=100, error_increase=100, min_speedup=0.001)
QUICK = Settings(goal="speed", batch_sizes=(1, 4), seconds=0.005, seed=1)


def judge_of(model: onnx.ModelProto, *, count: int = 64, settings: Settings = QUICK) -> Judge:
    source = Source(model, rows_for(model, 32))
    return Judge(source, rows_for(model, count, seed=5), settings)


def steps(
    model: onnx.ModelProto,
    tries: Sequence[Try] = (),
    *,
    variant: Variant = "int8",
    goal: Goal = "speed",
    only: Sequence[str] = (),
) -> dict[str, list[str] | str]:
    """Of each step the names of its recipes, or the reason to leave it out."""

    def described(step: Step) -> list[str] | str:
        return step.unless(tries) or [recipe.name for recipe in step.recipes(tries)]

    source = Source(model, rows_for(model, 8))
    return {step.name: described(step) for step in plan(source, variant, goal, only)}


def test_images_begin_with_the_types_and_raw_rows() -> None:
    first = steps(image_net())["static types"]
    assert first == [
        *("static-u8s8", "static-u8s8-raw", "static-s8s8", "static-u8u8", "static-u8s8-tensor"),
    ]
    assert "static-u8s8-raw" not in steps(product_net())["static types"]


def test_what_is_inside_already_ends_the_search() -> None:
    planned = steps(product_net(), [attempt("static-u8s8", 2.0, 0.3)])
    assert planned["static, other calibrations"] == (
        "a recipe without them is inside both budgets already"
    )
    assert planned["dynamic"] == "static-u8s8 is inside both budgets already"
    assert planned["weights alone"] == "static-u8s8 is inside both budgets already"


def test_what_is_inaccurate_alone_is_calibrated_anew_and_left_in_float() -> None:
    slower = attempt("static-s8s8", 1.2, 0.3, loss=1.0)
    fastest = attempt("static-u8s8", 2.0, 0.3, loss=2.0)
    planned = steps(image_net(), [slower, fastest])
    assert planned["static, other calibrations"] == [
        f"static-u8s8-{name}" for name in ("percentile", "entropy", "few")
    ]
    assert planned["static, layers in float"] == ["static-u8s8-float1"]


def test_what_is_slow_is_not_calibrated_anew() -> None:
    planned = steps(image_net(), [attempt("static-u8s8", 0.7, 0.3, loss=1.0)])
    for name in ("static, other calibrations", "static, layers in float"):
        assert "no recipe so far is fast and small enough" in planned[name]


def test_recurrent_models_begin_with_what_has_a_kernel_for_them() -> None:
    planned = steps(recurrent_net("LSTM"))
    assert next(iter(planned)) == "dynamic"
    assert planned["dynamic"] == ["dynamic", "dynamic-channel"]
    assert planned["static types"] == "Conv, Gemm, MatMul hold 160 of 5,541 weights"


def test_a_table_has_nothing_but_its_weights() -> None:
    planned = steps(table_net())
    assert planned["weights alone"] == ["weights-int8"]
    assert [name for name, step in planned.items() if isinstance(step, list)] == ["weights alone"]


def test_four_bits_are_for_size() -> None:
    tries = [attempt("static-u8s8", 2.0, 0.3)]
    assert steps(product_net(), tries, goal="size")["weights alone"] == [
        "weights-int8",
        "weights-int4",
    ]


def test_named_recipes_alone_are_tried_each_for_its_variant() -> None:
    names = ["half-float1", "static-s8s8", "dynamic"]
    assert steps(product_net(), only=names) == {
        "the recipes that are named": ["static-s8s8", "dynamic"]
    }
    assert steps(product_net(), variant="fp16", only=names) == {
        "the recipes that are named": ["half-float1"]
    }
    assert steps(product_net(), variant="fp16", only=["dynamic"])["half"] == ["half"]
    with pytest.raises(UnknownNameError, match="no recipe named 'static'"):
        steps(product_net(), only=["static"])


def test_half_precision_falls_back_to_layers_in_float() -> None:
    lossy = attempt("half", 1.1, 0.5, loss=1.0)
    assert steps(image_net(), [lossy], variant="fp16")["half with layers in float"] == [
        "half-float1"
    ]


def test_the_best_is_kept_with_its_bytes() -> None:
    judge = judge_of(image_net())
    found, content = search(judge, "int8", GENEROUS)
    tried = {one.recipe: one for one in found.tries}
    assert found.chosen in tried
    assert len(tried) == 5
    kept = tried[found.chosen or ""]
    assert sha256_of_bytes(content) == kept.sha256
    assert kept.bytes == len(content)
    assert kept.size_ratio == len(content) / len(judge.content)
    assert set(kept.speedup) == {"1", "4"}
    assert open_session(content).metadata["ferry.recipe"] == found.chosen
    assert "weights alone" in found.not_tried


def test_a_model_where_int8_is_slower_is_refused_with_the_figures() -> None:
    budget = replace(GENEROUS, min_speedup=1e6)
    found, content = search(judge_of(product_net()), "int8", budget)
    assert content == b""
    assert found.chosen is None
    assert "so fp32 ships" in found.reason
    assert "1e+06 asked" in found.reason
    assert all(one.accurate and not one.fast for one in found.tries)
    assert [one.recipe for one in found.tries][-1] == "weights-int8"


def test_layers_in_float_end_with_the_first_that_is_accurate() -> None:
    # No loss at all is allowed, so that every int8 is inaccurate; all are fast enough.
    model = image_net()
    budget = replace(GENEROUS, accuracy_loss=0)
    found, _ = search(judge_of(model, count=256), "int8", budget)
    names = [one.recipe for one in found.tries]
    inside = [one.recipe for one in found.tries if one.inside]
    if inside:  # a machine may round so that a recipe loses nothing
        assert names.index(inside[0]) >= 0
    else:
        assert any("float1" in name for name in names)
        assert any(name.endswith("-entropy") for name in names)
        floats = [one for one in found.tries if one.float_layers]
        assert all(len(one.float_layers) == 1 for one in floats)


def test_a_recipe_that_cannot_be_applied_is_told_and_the_search_goes_on() -> None:
    judge = judge_of(product_net())
    broken = replace(parse("weights-int4"), bits=5)  # which no operator has
    tried, content = judge.attempt(broken, GENEROUS)
    assert not tried.inside
    assert tried.verdict.startswith("cannot be applied: ")
    assert (content, tried.quality, tried.bytes, tried.speed) == (b"", None, None, 0)


def test_weights_that_half_precision_cannot_hold_are_inaccurate() -> None:
    model = product_net()
    for tensor in model.graph.initializer:
        if tensor.name == "w2":  # the largest that it holds is 65504
            large = 1e6 * onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(large.astype(np.float32), "w2"))
    found, content = search(judge_of(model), "fp16", replace(GENEROUS, accuracy_loss=0))
    assert content == b""
    assert not found.tries[0].accurate


def test_a_speed_that_is_too_close_to_tell_is_measured_for_longer() -> None:
    judge = judge_of(product_net())
    same = judge.session
    short = judge._ratio(same, 1, 1e-6)
    longer = judge._ratio(same, 1, short.median)
    assert longer.num_pairs >= short.num_pairs


def test_several_inputs_are_fed_by_name() -> None:
    found, content = search(judge_of(table_net()), "int8", GENEROUS)
    assert found.chosen == "weights-int8"
    assert found.tries[0].quality is not None
    assert found.tries[0].quality.measure == "agreement"
    assert len(open_session(content).inputs) == 2


def test_a_fixed_batch_is_timed_at_that_size() -> None:
    model = product_net(batch=4)
    source = Source(model, rows_for(model, 16), 4)
    found, _ = search(Judge(source, rows_for(model, 16), QUICK), "int8", GENEROUS)
    assert all(set(one.speedup) == {"4"} for one in found.tries if one.speedup)
    assert found.chosen
