"""The stage: what it writes, what it refuses, and that one recipe gives the same bytes twice."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from project import Project, files_in

from pipeline import layout
from pipeline.config.experiment import MinSpeedup, QuantizeConfig
from pipeline.errors import ConfigError
from pipeline.records import read
from pipeline.records.quantize import QuantizeReport
from pipeline.records.ready import open_split
from pipeline.stages.quantize import calibration_rows, judging_rows, quantize
from serving.errors import MissingInputError, ModelError
from serving.files import sha256_of_file
from serving.runtime.session import open_session


def logits(path: Path, rows: np.ndarray) -> np.ndarray:
    return open_session(path).run({"images": rows})["logits"]


def weight_bytes(path: Path) -> int:
    """Of the kernels alone: the files of a tiny network are mostly graph."""
    tensors = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    return sum(tensor.nbytes for tensor in tensors if tensor.ndim > 1 and tensor.size > 50)


@pytest.mark.parametrize(("variant", "times"), [("fp16", 2), ("int8", 4)])
def test_a_variant_is_smaller_and_close(exported: Project, variant: str, times: int) -> None:
    rows = np.array(open_split(exported.data, "test").inputs)
    small, whole = exported.models[variant], exported.models["fp32"]
    wanted, found = logits(whole, rows), logits(small, rows)
    assert weight_bytes(whole) == times * weight_bytes(small)
    assert 0 < np.abs(wanted - found).max() < 0.05 * np.abs(wanted).max()
    assert (wanted.argmax(1) == found.argmax(1)).mean() > 0.98


def test_inputs_outputs_and_metadata_stay(exported: Project) -> None:
    whole = open_session(exported.models["fp32"])
    for variant, recipe in (("fp16", "half"), ("int8", "static-u8u8-tensor")):
        session = open_session(exported.models[variant])
        assert (session.inputs, session.outputs) == (whole.inputs, whole.outputs)
        assert session.metadata == {
            **whole.metadata,
            "ferry.variant": variant,
            "ferry.recipe": recipe,
        }


def test_the_logits_stay_in_float(exported: Project) -> None:
    model = onnx.load(exported.models["int8"])
    (maker,) = [node for node in model.graph.node if "logits" in node.output]
    assert maker.op_type == "Gemm"


def test_the_record_tells_what_was_written_and_on_what_it_was_judged(exported: Project) -> None:
    report = read(QuantizeReport, exported.details("quantize"), "ferry quantize x")
    assert report.judged_on == "digits:validation"
    assert report.rows == len(open_split(exported.data, "validation").labels)
    assert report.skipped == {}
    assert report.machine
    for variant, made in report.variants.items():
        path = exported.models[variant]
        assert made.sha256 == sha256_of_file(path)
        assert made.bytes == path.stat().st_size
        assert made.size_ratio == made.bytes / exported.models["fp32"].stat().st_size
        (tried,) = report.searches[variant].tries
        assert tried.sha256 == made.sha256


def test_the_trace_is_a_picture_and_rows(exported: Project) -> None:
    folder = exported.plots("quantize")
    rows = list(csv.DictReader((folder / "tries.csv").open()))
    assert [row["recipe"] for row in rows] == ["half", "static-u8u8-tensor"]
    assert "static-u8u8-tensor" in (folder / "pareto.svg").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["pareto.svg", "tries.csv"]


def config_of(project: Project, **changes: Any) -> QuantizeConfig:
    return replace(project.experiment.quantize, **changes)


def run(
    project: Project, folder: Path, *, model: Path | None = None, **changes: Any
) -> QuantizeReport:
    return quantize(
        model or project.models["fp32"],
        project.data,
        folder / "quantized",
        files_in(folder, "quantize"),
        folder / "plots",
        experiment=replace(project.experiment, quantize=config_of(project, **changes)),
        track=False,
    )


def made_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "quantized").iterdir())


def test_the_same_inputs_give_the_same_bytes(exported: Project, tmp_path: Path) -> None:
    run(exported, tmp_path)
    for variant in ("fp16", "int8"):
        made = (tmp_path / f"quantized/model.{variant}.onnx").read_bytes()
        assert made == exported.models[variant].read_bytes()


def test_a_variant_that_is_skipped_is_not_made_and_the_metrics_say_why(
    exported: Project, tmp_path: Path
) -> None:
    run(exported, tmp_path)
    report = run(exported, tmp_path, skip={"int8": "nine weights gain nothing"})
    assert made_in(tmp_path) == ["model.fp16.onnx"]
    assert list(report.variants) == ["fp16"]
    assert report.calibration_rows == 0
    written = json.loads((tmp_path / "quantize.json").read_text())
    assert written["skipped"] == {"int8": "nine weights gain nothing"}


def test_nothing_to_search_writes_no_file_and_runs_no_model(
    exported: Project, tmp_path: Path
) -> None:
    report = run(exported, tmp_path, skip={"int8": "small", "fp16": "small"})
    assert made_in(tmp_path) == []
    assert (report.searches, report.rows) == ({}, 0)


def test_a_variant_that_is_slower_is_refused_with_the_figures(
    exported: Project, tmp_path: Path
) -> None:
    run(exported, tmp_path)
    speedup = MinSpeedup(fp16=0.001, int8=1e6)
    report = run(exported, tmp_path, min_speedup=speedup)
    assert made_in(tmp_path) == ["model.fp16.onnx"], "what an earlier run kept is gone"
    assert "so fp32 ships" in report.skipped["int8"]
    assert "times as fast as fp32 at batch 1" in report.skipped["int8"]
    assert report.searches["int8"].chosen is None
    assert list(layout.models("none", tmp_path)) == ["fp32"]


def test_rows_to_judge_on_are_never_the_test_set(exported: Project) -> None:
    info = open_session(exported.models["fp32"]).inputs[0]
    rows = judging_rows(exported.data, info)
    assert rows.name == "digits:validation"
    assert np.array_equal(rows.inputs["images"], open_split(exported.data, "validation").inputs)


def test_training_rows_judge_where_there_is_no_validation(
    exported: Project, tmp_path: Path
) -> None:
    info = open_session(exported.models["fp32"]).inputs[0]
    for path in exported.data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["arrays"]["validation_inputs.npy"]["shape"][0] = 0
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert judging_rows(tmp_path, info).name.endswith(":train")


def test_calibration_rows_come_from_training_and_from_the_seed(exported: Project) -> None:
    info = open_session(exported.models["fp32"]).inputs[0]
    config = config_of(exported)
    rows = calibration_rows(exported.data, info, config, "x").inputs["images"]
    train = {row.tobytes() for row in np.array(open_split(exported.data, "train").inputs)}
    assert len(rows) == config.calibration_rows
    assert all(row.tobytes() in train for row in rows)
    again = calibration_rows(exported.data, info, config, "x").inputs["images"]
    assert np.array_equal(rows, again)
    other = calibration_rows(exported.data, info, replace(config, seed=2), "x").inputs["images"]
    assert not np.array_equal(rows, other)


def test_more_rows_than_there_are_is_a_wrong_setting(exported: Project, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"experiments\.digits-cnn\.quantize\.calibration_rows must be at most \d+, the rows "
        r"of the training split, got 5000",
    ):
        run(exported, tmp_path, calibration_rows=5000)


def test_a_recipe_that_does_not_exist_is_a_wrong_setting(exported: Project, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"experiments\.digits-cnn\.quantize\.recipes\.1: no recipe named 'dynamics'; did",
    ):
        run(exported, tmp_path, recipes=("half", "dynamics"))
    assert list(tmp_path.iterdir()) == []


def test_no_model_and_a_corrupt_model(exported: Project, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="`ferry export digits-cnn` makes it"):
        run(exported, tmp_path, model=tmp_path / "none.onnx")
    (tmp_path / "model.onnx").write_bytes(exported.models["fp32"].read_bytes()[:1000])
    with pytest.raises(ModelError, match="is not an ONNX file"):
        run(exported, tmp_path, model=tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_nothing_is_written_to_stdout(
    exported: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(exported, tmp_path)
    assert capfd.readouterr().out == ""


HARSH: Mapping[str, Any] = {
    "recipes": ("static-u8u8-tensor",),
    "skip": {"fp16": "not asked for"},
    # More than any rounding brings, but the tiny network is far from done after its two epochs.
    "accuracy_loss": -2,
}


def test_training_is_the_last_resort_and_the_record_says_so(
    exported: Project, tmp_path: Path
) -> None:
    # Eight more epochs move the logits of a network that is far from done.
    parity = exported.experiment.parity
    noisy = replace(parity, int8=replace(parity.int8, min_snr_db=None))
    unfinished = replace(exported, experiment=replace(exported.experiment, parity=noisy))
    report = run(unfinished, tmp_path, **HARSH)
    assert made_in(tmp_path) == []
    assert "points of accuracy" in report.skipped["int8"]
    report = run(unfinished, tmp_path, **HARSH, qat_epochs=8)
    found = report.searches["int8"]
    assert [(one.recipe, one.qat_epochs) for one in found.tries] == [
        ("static-u8u8-tensor", 0),
        ("static-u8u8-tensor", 8),
    ]
    before, after = (one.quality.loss for one in found.tries if one.quality)
    assert before is not None
    assert after is not None
    assert before > -2 >= after
    assert (found.chosen, found.qat_epochs) == ("static-u8u8-tensor", 8)
    assert report.skipped == {"fp16": "not asked for"}
    metadata = open_session(tmp_path / "quantized/model.int8.onnx").metadata
    assert metadata["ferry.qat_epochs"] == "8"
    assert metadata["ferry.recipe"] == "static-u8u8-tensor"


def test_no_training_where_speed_is_what_fails(exported: Project, tmp_path: Path) -> None:
    report = run(
        exported,
        tmp_path,
        **(dict(HARSH) | {"accuracy_loss": 100}),
        qat_epochs=2,
        min_speedup=MinSpeedup(fp16=1, int8=1e6),
    )
    assert [one.qat_epochs for one in report.searches["int8"].tries] == [0]
    assert made_in(tmp_path) == []
