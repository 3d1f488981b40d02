"""The search on small models: what is tried, what is not and why, and what is kept."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import image_net, product_net, recurrent_net, rows_for, table_net
from tries import IMPOSSIBLE, attempt, generous

from pipeline.config.experiment import QuantizeConfig, Variant
from pipeline.exporting.onnxmodel import constants, replace_constant
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.judging import LONGER, Judge
from pipeline.quantization.recipes import Recipe, parse
from pipeline.quantization.search import (
    RecipeGroup,
    best_of,
    plan,
    reason_of,
    search,
)
from pipeline.records.quantize import Budget, Try
from serving.errors import UnknownNameError
from serving.files import sha256_of_bytes
from serving.measuring.pairing import PairedRatio
from serving.runtime.session import open_session

SPEED, SIZE = generous(batch_sizes=(1, 4)), generous(goal="size")
BUDGET = Budget(accuracy_loss=100, error_increase=1000, min_speedup=0.001)


def judge_of(model: onnx.ModelProto, config: QuantizeConfig = SPEED, *, count: int = 64) -> Judge:
    return Judge(Quantizer(model, rows_for(model, 32)), rows_for(model, count, seed=5), config, {})


def groups(
    model: onnx.ModelProto, tries: Sequence[Try] = (), *, variant: Variant = "int8", **changes: Any
) -> dict[str, list[str] | str]:
    """Of each group the names of its recipes, or the reason to leave it out."""

    def described(group: RecipeGroup) -> list[str] | str:
        return group.unless or [recipe.name for recipe in group.recipes]

    quantizer = Quantizer(model, rows_for(model, 8))
    planned = plan(quantizer, variant, generous(**changes), tries)
    return {group.name: described(group) for group in planned}


def test_images_begin_with_the_types_and_raw_rows() -> None:
    first = groups(image_net())["static types"]
    assert first == [
        *("static-u8s8-reduced", "static-u8s8-raw-reduced", "static-s8s8-reduced", "static-u8u8"),
        "static-u8s8-tensor-reduced",
    ]
    assert "static-u8s8-raw-reduced" not in groups(product_net())["static types"]


@pytest.mark.parametrize("lacking", [True, False])
def test_all_eight_bits_are_tried_where_vnni_may_be_needed(
    lacking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.quantization.search.overflows", lambda: lacking)
    reduced = groups(image_net())["static types"]
    both = groups(image_net(), needs=("vnni",))["static types"]
    full = [name.replace("-reduced", "") for name in reduced]
    assert set(both) == {*reduced, *full}
    assert len(both) == 9
    first = reduced if lacking else full
    assert both[:5] == first, "those that suit this processor come first"


def test_what_is_inside_already_ends_the_search() -> None:
    inside = [attempt("static-u8s8", 2.0, 0.3)]
    planned = groups(image_net(), inside)
    assert planned["static, other calibrations"] == (
        "a recipe without them is inside both budgets already"
    )
    assert planned["weights alone"] == "static-u8s8 is inside both budgets already"


def test_a_slow_recipe_inside_does_not_keep_a_faster_one_from_being_found() -> None:
    planned = groups(product_net(), [attempt("static-u8s8", 1.01, 0.3)])
    assert planned["dynamic"] == ["dynamic-reduced", "dynamic-channel-reduced"]
    assert planned["weights alone"] == ["weights-int8"]


def test_a_faster_recipe_that_is_inaccurate_alone_is_calibrated_all_the_same() -> None:
    slow, fast = attempt("static-u8u8", 1.05, 0.3), attempt("static-u8s8", 1.5, 0.3, loss=1.0)
    planned = groups(image_net(), [slow, fast])
    assert planned["static, other calibrations"][0] == "static-u8s8-percentile"
    assert planned["static, layers in float"] == ["static-u8s8-float1"]
    near = attempt("static-u8s8", 1.06, 0.3, loss=1.0)
    planned = groups(image_net(), [slow, near])
    assert "inside both budgets already" in planned["static, other calibrations"]


def test_what_is_inaccurate_alone_is_calibrated_anew_and_left_in_float() -> None:
    slower = attempt("static-s8s8", 1.2, 0.3, loss=1.0)
    fastest = attempt("static-u8s8", 2.0, 0.3, loss=2.0)
    planned = groups(image_net(), [slower, fastest])
    assert planned["static, other calibrations"] == [
        f"static-u8s8-{name}" for name in ("percentile", "entropy", "few")
    ]
    assert planned["static, layers in float"] == ["static-u8s8-float1"]
    planned = groups(image_net(), [attempt("dynamic", 2.0, 0.3, loss=1.0)])
    assert planned["static, other calibrations"] == planned["static, layers in float"] == []


def test_what_is_slow_is_not_calibrated_anew() -> None:
    planned = groups(image_net(), [attempt("static-u8s8", 0.7, 0.3, loss=1.0)])
    for name in ("static, other calibrations", "static, layers in float"):
        assert "no recipe so far is fast and small enough" in planned[name]


def test_recurrent_models_begin_with_what_has_a_kernel_for_them() -> None:
    planned = groups(recurrent_net("LSTM"))
    assert next(iter(planned)) == "dynamic"
    assert planned["dynamic"] == ["dynamic-reduced", "dynamic-channel-reduced"]
    assert planned["static types"] == "Conv, Gemm, MatMul hold 160 of 5,541 weights"


def test_a_table_has_nothing_but_its_weights() -> None:
    planned = groups(table_net())
    assert planned["weights alone"] == ["weights-int8"]
    assert [name for name, group in planned.items() if isinstance(group, list)] == ["weights alone"]


def test_four_bits_are_for_size() -> None:
    tries = [attempt("static-u8s8", 2.0, 0.3)]
    assert groups(product_net(), tries, goal="size")["weights alone"] == [
        "weights-int8",
        "weights-int4",
    ]


def test_named_recipes_alone_are_tried_each_for_its_variant() -> None:
    names = ["half-float1", "static-s8s8", "dynamic"]
    assert groups(product_net(), recipes=tuple(names)) == {
        "the recipes that are named": ["static-s8s8", "dynamic"]
    }
    assert groups(product_net(), variant="fp16", recipes=tuple(names)) == {
        "the recipes that are named": ["half-float1"]
    }
    assert groups(product_net(), variant="fp16", recipes=("dynamic",))["half"] == ["half"]
    with pytest.raises(UnknownNameError, match="no recipe named 'static'"):
        groups(product_net(), recipes=("static",))


def test_half_precision_falls_back_to_layers_in_float() -> None:
    lossy = attempt("half", 1.1, 0.5, loss=1.0)
    assert groups(image_net(), [lossy], variant="fp16")["half with layers in float"] == [
        "half-float1"
    ]


def test_the_best_is_kept_with_its_bytes() -> None:
    judge = judge_of(image_net())
    found, content = search(judge, "int8")
    tried = {one.recipe: one for one in found.tries}
    assert found.chosen in tried
    assert len(tried) == 5
    kept = tried[found.chosen or ""]
    assert sha256_of_bytes(content) == kept.sha256
    assert kept.bytes == len(content)
    assert kept.size_ratio == len(content) / len(judge.fp32)
    assert set(kept.speedup) == {"1", "4"}
    assert open_session(content).metadata["ferry.recipe"] == found.chosen
    assert "weights alone" in found.not_tried


def test_a_model_where_int8_is_slower_is_refused_with_the_figures() -> None:
    found, content = search(judge_of(product_net(), generous(min_speedup=IMPOSSIBLE)), "int8")
    assert content == b""
    assert found.chosen is None
    assert "so fp32 ships" in found.reason
    assert "1e+06 asked" in found.reason
    assert all(one.accurate and not one.fast for one in found.tries)
    assert [one.recipe for one in found.tries][-1] == "weights-int8"


def test_layers_in_float_end_with_the_first_that_is_accurate() -> None:
    # No loss at all is allowed, so that every int8 is inaccurate; all are fast enough.
    found, _ = search(judge_of(image_net(), generous(accuracy_loss=0), count=256), "int8")
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
    tried, content = judge.attempt(broken, BUDGET)
    assert not tried.inside
    assert tried.verdict.startswith("cannot be applied: ")
    assert (content, tried.quality, tried.bytes, tried.speed) == (b"", None, None, 0)


def test_weights_that_half_precision_cannot_hold_are_inaccurate() -> None:
    model = product_net()
    for tensor in model.graph.initializer:
        if tensor.name == "w2":  # the largest that it holds is 65504
            large = 1e6 * onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(large.astype(np.float32), "w2"))
    found, content = search(judge_of(model, generous(accuracy_loss=0)), "fp16")
    assert content == b""
    assert not found.tries[0].accurate


def test_a_speed_that_is_too_close_to_tell_is_measured_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge, asked = judge_of(product_net()), []

    def measured(*_calls: object, seconds: float, seed: int) -> PairedRatio:
        asked.append((seconds, seed))
        return PairedRatio(median=1.0, low=0.9, high=1.1, num_pairs=100)

    monkeypatch.setattr("pipeline.quantization.judging.paired_ratio", measured)
    for speed in (1.2, 1.0, 0.8):
        judge._ratio(judge.session, 1, speed)
    usual = judge.config.seconds
    assert [one for one, _ in asked] == [usual, usual, LONGER * usual, usual]


def test_a_fixed_batch_is_timed_at_that_size() -> None:
    model = product_net(batch=4)
    quantizer = Quantizer(model, rows_for(model, 16), 4)
    found, _ = search(Judge(quantizer, rows_for(model, 16), SPEED, {}), "int8")
    assert all(set(one.speedup) == {"4"} for one in found.tries if one.speedup)
    assert found.chosen


# What is kept, and why


def test_the_fastest_or_the_smallest_is_best() -> None:
    quick, small = attempt("static-u8s8", 2.0, 0.4), attempt("weights-int4", 1.2, 0.2)
    outside = attempt("static-s8s8", 9.0, 0.1, loss=5.0)
    assert best_of([quick, small, outside], SPEED) == quick
    assert best_of([quick, small, outside], SIZE) == small
    assert best_of([outside], SPEED) is None


def test_of_nearly_equal_ones_the_first_is_best() -> None:
    first, second = attempt("static-u8s8", 1.50, 0.300), attempt("static-s8s8", 1.52, 0.298)
    assert best_of([first, second], SPEED) == first
    assert best_of([second, first], SPEED) == second
    assert best_of([first, second], SIZE) == first


def test_the_reason_gives_the_figures() -> None:
    kept, other = attempt("static-u8s8", 2.0, 0.3), attempt("static-s8s8", 1.1, 0.3)
    reason = reason_of(kept, [kept, other], SPEED)
    assert reason.startswith("static-u8s8 is the fastest of 2 recipes inside both budgets, of 2")
    assert "2.00 times as fast at batch 1" in reason
    slow = attempt("static-u8s8", 0.7, 0.3)
    wrong = attempt("dynamic", 0.5, 0.3, loss=2.0)
    reason = reason_of(None, [wrong, slow], SPEED)
    assert "none of 2 recipes is inside both budgets, so fp32 ships" in reason
    assert "nearest is static-u8s8: 0.70 times as fast" in reason
    assert reason_of(None, [], SPEED) == "no recipe fits the model, so fp32 ships"


def test_figures_that_are_unknown_are_not_told() -> None:
    failed = replace(
        attempt("dynamic", 1.0, 0.3),
        quality=None,
        size_ratio=None,
        speedup={},
        verdict="cannot be applied: no kernel",
    )
    assert failed.figures() == "cannot be applied: no kernel"


# The last resort


def test_training_gets_the_recipe_and_its_model_is_held_against_the_first_one() -> None:
    # The trained model is the model itself without one class, so that it answers otherwise.
    model = product_net()
    asked: list[str] = []

    def trained(recipe: Recipe) -> onnx.ModelProto:
        asked.append(recipe.name)
        changed = copy.deepcopy(model)
        weight = constants(model)["w2"].copy()
        weight[:, 0] = 0
        replace_constant(changed, "w2", weight)
        return changed

    config = generous(
        recipes=("static-u8s8-reduced", "dynamic-reduced"),
        accuracy_loss=-1,  # which nothing meets
        qat_epochs=3,
    )
    tries = search(judge_of(model, config), "int8", trained)[0].tries
    assert [one.qat_epochs for one in tries] == [0, 0, 3]
    assert asked == [tries[-1].recipe]
    assert tries[-1].quality is not None
    assert tries[-1].quality.flips, "it is held against the model that was not trained"
    losses = {one.recipe: one.quality.loss for one in tries[:2] if one.quality}
    assert asked == [min(losses, key=lambda name: losses[name] or 0.0)]


@pytest.mark.parametrize("changes", [{}, {"min_speedup": IMPOSSIBLE}])
def test_no_training_where_something_is_inside_or_all_is_slow(changes: dict[str, Any]) -> None:
    def never(_recipe: Recipe) -> onnx.ModelProto:
        raise AssertionError

    config = generous(recipes=("static-u8s8-reduced",), qat_epochs=3, **changes)
    search(judge_of(product_net(), config), "int8", never)
