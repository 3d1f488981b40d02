"""A job from end to end: the record of all that happened, and the files that were kept."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import image_net, product_net, rows_for

from pipeline.config.experiment import Variant
from pipeline.proof.rows import Rows
from pipeline.quantization.job import Job, Outcome, Training, chosen_rows, run, write_variants
from pipeline.quantization.prepare import constants, copied, replace_constant
from pipeline.quantization.recipes import Recipe
from pipeline.quantization.search import Settings
from pipeline.records import read
from pipeline.records.quantize import Budget, QuantizeReport
from serving.errors import UnknownNameError
from serving.files import sha256_of_bytes, write_json

GENEROUS = Budget(accuracy_loss=100, error_increase=100, min_speedup=0.001)
IMPOSSIBLE = replace(GENEROUS, min_speedup=1e6)


def job_of(
    model: onnx.ModelProto,
    budgets: Mapping[Variant, Budget],
    *,
    only: tuple[str, ...] = ("half", "static-u8s8"),
    training: Training | None = None,
) -> Job:
    return Job(
        name="mine",
        model=model,
        calibration=rows_for(model, 32),
        rows=rows_for(model, 64, seed=1),
        settings=Settings(goal="speed", batch_sizes=(1,), seconds=0.005, seed=1, only=only),
        budgets=budgets,
        skip={},
        training=training,
    )


def test_the_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    report = run(job_of(image_net(), {"fp16": GENEROUS, "int8": GENEROUS})).report
    write_json(tmp_path / "quantize.json", report)
    again = read(QuantizeReport, tmp_path / "quantize.json", "ferry quantize mine")
    assert again == report
    assert list(again.searches) == ["fp16", "int8"]
    assert again.searches["int8"].tries[0].inside


def test_what_is_refused_is_skipped_with_the_reason() -> None:
    outcome = run(job_of(image_net(), {"fp16": GENEROUS, "int8": IMPOSSIBLE}))
    report = outcome.report
    assert list(outcome.contents) == list(report.variants) == ["fp16"]
    assert report.skipped == {"int8": report.searches["int8"].reason}


def test_a_variant_that_nobody_asked_for_is_not_searched() -> None:
    report = run(job_of(image_net(), {"fp16": GENEROUS})).report
    assert list(report.searches) == ["fp16"]
    assert report.calibration_rows == 0


def test_a_misspelt_recipe_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(UnknownNameError, match="no recipe named 'haff'; did you mean 'half'"):
        run(job_of(image_net(), {"int8": GENEROUS}, only=("haff",)))


def test_the_bytes_are_those_of_the_record_and_the_same_again() -> None:
    outcomes: list[Outcome] = [run(job_of(image_net(), {"int8": GENEROUS})) for _ in range(2)]
    first, second = (outcome.contents["int8"] for outcome in outcomes)
    assert first == second
    made = outcomes[0].report.variants["int8"]
    assert (made.sha256, made.bytes) == (sha256_of_bytes(first), len(first))


def test_files_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    write_variants(run(job_of(image_net(), {"fp16": GENEROUS, "int8": GENEROUS})), tmp_path)
    names = ["mine.txt", "model.fp16.onnx", "model.int8.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    write_variants(run(job_of(image_net(), {"fp16": GENEROUS, "int8": IMPOSSIBLE})), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[:2]


def test_training_gets_the_recipe_and_its_model_is_held_against_the_first_one() -> None:
    # The trained model is the model itself without one class, so that it answers otherwise.
    model = product_net()
    asked: list[str] = []

    def trained(recipe: Recipe) -> onnx.ModelProto:
        asked.append(recipe.name)
        changed = copied(model)
        weight = constants(model)["w2"].copy()
        weight[:, 0] = 0
        replace_constant(changed, "w2", weight)
        return changed

    strict = replace(GENEROUS, accuracy_loss=-1)  # which nothing meets
    training = Training(epochs=3, model=trained)
    report = run(
        job_of(model, {"int8": strict}, only=("static-u8s8", "dynamic"), training=training)
    ).report
    tries = report.searches["int8"].tries
    assert [one.qat_epochs for one in tries] == [0, 0, 3]
    assert asked == [tries[-1].recipe]
    assert tries[-1].quality is not None
    assert tries[-1].quality.flips, "it is held against the model that was not trained"
    losses = {one.recipe: one.quality.loss for one in tries[:2] if one.quality}
    assert asked == [min(losses, key=lambda name: losses[name] or 0.0)]


def test_no_training_where_something_is_inside() -> None:
    def never(_recipe: Recipe) -> onnx.ModelProto:
        raise AssertionError

    training = Training(epochs=3, model=never)
    run(job_of(product_net(), {"int8": GENEROUS}, training=training))
    run(job_of(product_net(), {"int8": IMPOSSIBLE}, training=training))


def test_rows_are_drawn_with_their_classes_and_in_order() -> None:
    array = np.arange(100, dtype=np.float32).reshape(100, 1)
    rows = Rows(name="all", inputs={"x": array}, labels=np.arange(100))
    drawn = chosen_rows(rows, 10, 1, "some")
    assert len(drawn) == 10
    assert drawn.labels is not None
    assert np.array_equal(drawn.inputs["x"][:, 0], drawn.labels)
    assert (np.diff(drawn.labels) > 0).all()
    assert drawn.name == "some"
