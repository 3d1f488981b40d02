"""The stage: what it writes, what it refuses, and that one recipe gives the same bytes twice."""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper
from project import Project, files_in
from small_models import image_net, product_net, recurrent_net, rows_for, table_net
from tries import generous

from pipeline.cli import ferry
from pipeline.config import layout
from pipeline.config.experiment import MinSpeedup, QuantizeConfig, Variant
from pipeline.errors import ConfigError
from pipeline.records import read, record
from pipeline.records.quantize import QuantizeReport
from pipeline.records.ready import open_manifest, open_split, write_manifest
from pipeline.stages.quantize import calibration_rows, judging_rows, quantize, quantize_file
from serving.errors import InputError, MissingInputError, ModelError, UnknownNameError, UsageError
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
    names = {path.name for path in (folder / "quantized").iterdir()}
    models = {name for name in names if name.endswith(".onnx")}
    assert names - models == {f"{name}.sha256" for name in models}
    return sorted(models)


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
    manifest, name = open_manifest(tmp_path), "validation_inputs.npy"
    none = replace(manifest.arrays[name], shape=(0, *manifest.arrays[name].shape[1:]))
    write_manifest(tmp_path, replace(manifest, arrays={**manifest.arrays, name: none}))
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


def test_where_there_are_fewer_rows_all_are_calibrated_on_and_it_is_said(
    exported: Project, caplog: pytest.LogCaptureFixture
) -> None:
    info = open_session(exported.models["fp32"]).inputs[0]
    config = replace(config_of(exported), calibration_rows=5000)
    with caplog.at_level("INFO"):
        rows = calibration_rows(exported.data, info, config, "mine")
    there = len(open_split(exported.data, "train").labels)
    assert len(rows) == there
    assert caplog.messages == [
        f"mine: calibrates on all {there} rows of digits:train, calibration_rows asks for 5000"
    ]


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
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.models["fp32"].read_bytes()[:1000])
    record(path, sha256_of_file(path))
    with pytest.raises(ModelError, match="is not an ONNX file"):
        run(exported, tmp_path, model=path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.sha256"]


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


# Any ONNX file


def of_file(
    path: Path, rows: str, folder: Path, *variants: Variant, **changes: Any
) -> QuantizeReport:
    return quantize_file(
        path,
        rows,
        folder,
        config=generous(**changes),
        variants=variants or ("int8",),
        min_snr_db={},
    )


def saved(model: onnx.ModelProto, folder: Path, count: int = 40) -> tuple[Path, str]:
    """The file of a model, and the one of rows for it."""
    path, rows = folder / "net.onnx", folder / "rows.npz"
    onnx.save(model, path)
    np.savez(rows, **rows_for(model, count).inputs)
    return path, str(rows)


@pytest.mark.parametrize(
    ("build", "recipe"),
    [
        (image_net, "static-u8s8-raw-reduced"),
        (product_net, "static-u8s8-reduced"),
        (lambda: recurrent_net("LSTM"), "dynamic-reduced"),
        (lambda: recurrent_net("GRU"), "weights-int8"),
        (table_net, "weights-int8"),
    ],
)
def test_a_file_becomes_smaller_with_its_ends_as_they_are(
    build: Callable[[], onnx.ModelProto], recipe: str, tmp_path: Path
) -> None:
    path, rows = saved(build(), tmp_path)
    out = tmp_path / "out"
    report = of_file(path, rows, out, "int8", "fp16", recipes=(recipe,))
    whole = open_session(path)
    for variant in ("int8", "fp16"):
        small = open_session(out / f"net.{variant}.onnx")
        assert (small.inputs, small.outputs) == (whole.inputs, whole.outputs)
    assert report.variants["int8"].recipe == recipe
    assert report.variants["int8"].size_ratio < 0.75
    assert read(QuantizeReport, out / "quantize.json", "x") == report


def test_what_needs_vnni_is_kept_only_where_it_may_be_needed(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    report = of_file(path, rows, tmp_path / "out", recipes=("static-u8s8",))
    assert not report.variants
    assert "needs VNNI: without it" in report.searches["int8"].tries[0].verdict
    allowed = of_file(path, rows, tmp_path / "out", recipes=("static-u8s8",), needs=("vnni",))
    assert allowed.variants["int8"].recipe == "static-u8s8"
    assert allowed.searches["int8"].tries[0].without_vnni
    assert open_session(tmp_path / "out/net.int8.onnx").metadata["ferry.needs"] == "vnni"


def test_rows_to_calibrate_on_are_not_judged_on(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path, count=50)
    report = of_file(path, rows, tmp_path, recipes=("static-u8s8-reduced",))
    assert (report.calibration_rows, report.rows) == (25, 25)
    assert report.judged_on.endswith("rows.npz, to judge on")
    path, rows = saved(product_net(), tmp_path, count=2000)
    report = of_file(path, rows, tmp_path, recipes=("static-u8s8-reduced",))
    assert (report.calibration_rows, report.rows) == (512, 1488)


def test_labels_make_it_accuracy_and_none_agreement(tmp_path: Path) -> None:
    model = product_net()
    path, rows = saved(model, tmp_path)
    found = of_file(path, rows, tmp_path, recipes=("static-u8s8-reduced",))
    quality = found.searches["int8"].tries[0].quality
    assert quality is not None
    assert quality.measure == "agreement"
    inputs = rows_for(model, 40).inputs
    labels = open_session(path).run(inputs)["logits"].argmax(1)
    np.savez(tmp_path / "rows.npz", **inputs, labels=labels)
    found = of_file(path, rows, tmp_path, recipes=("static-u8s8-reduced",))
    quality = found.searches["int8"].tries[0].quality
    assert quality is not None
    assert (quality.measure, quality.reference) == ("accuracy", 1)


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    path, rows = saved(product_net(batch=4), tmp_path, count=19)
    report = of_file(path, rows, tmp_path, recipes=("static-u8s8-reduced",))
    assert report.calibration_rows == 8
    assert open_session(tmp_path / "net.int8.onnx").inputs[0].shape == (4, 64)


def test_too_few_rows(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path, count=1)
    with pytest.raises(InputError, match=r"rows\.npz holds 1 rows; quantization needs 2 or more"):
        of_file(path, rows, tmp_path / "out")
    path, rows = saved(product_net(batch=4), tmp_path, count=7)
    with pytest.raises(InputError, match="needs 8 or more"):
        of_file(path, rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_quantized_at_all_is_one_clear_line(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    with pytest.raises(MissingInputError, match="is not there"):
        of_file(tmp_path / "none.onnx", rows, tmp_path)
    with pytest.raises(MissingInputError, match="is not there"):
        of_file(path, str(tmp_path / "none.npy"), tmp_path)
    with pytest.raises(UnknownNameError, match="no recipe named 'quarter'"):
        of_file(path, rows, tmp_path, recipes=("quarter",))
    np.save(tmp_path / "wrong.npy", np.zeros((5, 3), np.float32))
    with pytest.raises(InputError, match="the model takes float32"):
        of_file(path, str(tmp_path / "wrong.npy"), tmp_path)
    foreign = product_net()
    foreign.graph.node.append(helper.make_node("Mine", ["logits"], ["x"], "odd", domain="my.own"))
    foreign.opset_import.append(helper.make_opsetid("my.own", 1))
    onnx.save(foreign, path)
    with pytest.raises(ModelError, match=r"my\.own"):
        of_file(path, rows, tmp_path)


def test_a_variant_never_replaces_the_model_itself(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    named = tmp_path / "net.int8.onnx"
    of_file(path, rows, tmp_path, recipes=("static-u8s8-reduced",))
    assert named.exists()
    assert path.exists()
    odd = tmp_path / "a.onnx"
    odd.write_bytes(path.read_bytes())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.int8.onnx").symlink_to(odd)
    with pytest.raises(UsageError, match="would be replaced by its own variant"):
        of_file(odd, rows, tmp_path / "out")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(ferry, ["quantize", *map(str, arguments)])


def test_the_command_prints_a_table_of_all_tries(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    done = invoke(
        *(path, "--data", rows, "--output", tmp_path / "out", "--accuracy-loss", "100"),
        *("--min-speedup", "0.001", "--recipe", "static-u8s8-reduced", "--recipe", "static-u8u8"),
        *("--batch-size", "1"),
    )
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["variant", "recipe", "loss"]
    assert sum(" KEPT" in line for line in lines) == 1
    assert "speed b1" in lines[0]
    assert str(tmp_path / "out" / "net.int8.onnx") in done.stderr


def test_the_command_as_json_and_a_refusal_that_is_no_failure(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    out = tmp_path / "out"
    done = invoke(
        *(
            path,
            "--data",
            rows,
            "-o",
            out,
            "--min-speedup",
            "1e6",
            "--recipe",
            "static-u8s8-reduced",
        ),
        *("--batch-size", "1", "--json"),
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["variants"] == {}
    assert "so fp32 ships" in answer["skipped"]["int8"]
    assert [one.name for one in out.iterdir()] == ["quantize.json"]


def test_noise_what_the_user_says_and_few_rows_are_told(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    asked = ("--min-speedup", "0.001", "--recipe", "static-u8s8-reduced", "--batch-size", "1")
    usual = (path, "--data", rows, "-o", tmp_path / "out", *asked, "--json")
    done = invoke(*usual, "--min-snr", "90")
    assert " dB of signal over the noise at logits, 90 dB asked" in done.stdout
    assert json.loads(done.stdout)["variants"] == {}
    done = invoke(*usual, "--min-snr", "10")
    (tried,) = json.loads(done.stdout)["searches"]["int8"]["tries"]
    assert tried["quality"]["measure"] == "agreement"
    assert tried["unsettled"].startswith("not settled on 20 rows, ")
    assert "net.int8.onnx: not settled on 20 rows" in done.stderr
    done = invoke(*usual, "--min-snr", "10", "--error-increase", "100", "--task", "regression")
    (tried,) = json.loads(done.stdout)["searches"]["int8"]["tries"]
    assert tried["quality"]["measure"] == "difference"
    assert tried["quality"]["noisiest"].startswith("logits[:, ")


def test_wrong_usage_of_the_command(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    for arguments, message in (
        ((path,), "needs --data and --output"),
        ((path, "--data", rows), "needs --data and --output"),
        ((path, "--data", rows, "-o", tmp_path, "--goal", "beauty"), "'beauty' is not one of"),
        ((path, "--data", rows, "-o", tmp_path, "--min-speedup", "0"), "is not in the range"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2, result.output
        assert message in result.output


def test_an_experiment_takes_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    result = invoke("digits-mlp", "--goal", "size")
    assert result.exit_code == 2
    assert "an experiment's are in params.yaml" in result.output
