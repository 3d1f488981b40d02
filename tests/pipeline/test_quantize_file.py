"""Files that ferry did not make: the same search, with their inputs and outputs as they are."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from small_models import image_net, product_net, recurrent_net, rows_for, table_net

from pipeline.cli import ferry
from pipeline.config.experiment import Variant
from pipeline.quantization.foreign import FileSettings, quantize_file
from pipeline.records import read
from pipeline.records.quantize import Budget, QuantizeReport
from serving.errors import InputError, MissingInputError, ModelError, UnknownNameError, UsageError
from serving.runtime.session import open_session

GENEROUS = Budget(accuracy_loss=100, error_increase=1000, min_speedup=0.001)


def settings(*variants: Variant, recipes: tuple[str, ...] = ()) -> FileSettings:
    return FileSettings(
        budgets=dict.fromkeys(variants or ("int8",), GENEROUS),
        goal="speed",
        batch_sizes=(1,),
        recipes=recipes,
        seconds=0.005,
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
        (image_net, "static-u8s8-raw"),
        (product_net, "static-u8s8"),
        (lambda: recurrent_net("LSTM"), "dynamic"),
        (lambda: recurrent_net("GRU"), "weights-int8"),
        (table_net, "weights-int8"),
    ],
)
def test_a_file_becomes_smaller_with_its_ends_as_they_are(
    build: Callable[[], onnx.ModelProto], recipe: str, tmp_path: Path
) -> None:
    path, rows = saved(build(), tmp_path)
    out = tmp_path / "out"
    report = quantize_file(path, rows, out, settings=settings("int8", "fp16", recipes=(recipe,)))
    whole = open_session(path)
    for variant in ("int8", "fp16"):
        small = open_session(out / f"net.{variant}.onnx")
        assert (small.inputs, small.outputs) == (whole.inputs, whole.outputs)
    assert report.variants["int8"].recipe == recipe
    assert report.variants["int8"].size_ratio < 0.75
    assert read(QuantizeReport, out / "quantize.json", "x") == report


def test_rows_to_calibrate_on_are_not_judged_on(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path, count=50)
    report = quantize_file(path, rows, tmp_path, settings=settings(recipes=("static-u8s8",)))
    assert (report.calibration_rows, report.rows) == (25, 25)
    assert report.judged_on.endswith("rows.npz, to judge on")
    path, rows = saved(product_net(), tmp_path, count=2000)
    report = quantize_file(path, rows, tmp_path, settings=settings(recipes=("static-u8s8",)))
    assert (report.calibration_rows, report.rows) == (512, 1488)


def test_labels_make_it_accuracy_and_none_agreement(tmp_path: Path) -> None:
    model = product_net()
    path, rows = saved(model, tmp_path)
    found = quantize_file(path, rows, tmp_path, settings=settings(recipes=("static-u8s8",)))
    quality = found.searches["int8"].tries[0].quality
    assert quality is not None
    assert quality.measure == "agreement"
    inputs = rows_for(model, 40).inputs
    labels = open_session(path).run(inputs)["logits"].argmax(1)
    np.savez(tmp_path / "rows.npz", **inputs, labels=labels)
    found = quantize_file(path, rows, tmp_path, settings=settings(recipes=("static-u8s8",)))
    quality = found.searches["int8"].tries[0].quality
    assert quality is not None
    assert (quality.measure, quality.reference) == ("accuracy", 1)


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    path, rows = saved(product_net(batch=4), tmp_path, count=19)
    report = quantize_file(path, rows, tmp_path, settings=settings(recipes=("static-u8s8",)))
    assert report.calibration_rows == 8
    assert open_session(tmp_path / "net.int8.onnx").inputs[0].shape == (4, 64)


def test_too_few_rows(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path, count=1)
    with pytest.raises(InputError, match=r"rows\.npz holds 1 rows; quantization needs 2 or more"):
        quantize_file(path, rows, tmp_path / "out", settings=settings())
    path, rows = saved(product_net(batch=4), tmp_path, count=7)
    with pytest.raises(InputError, match="needs 8 or more"):
        quantize_file(path, rows, tmp_path / "out", settings=settings())
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_quantized_at_all_is_one_clear_line(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    with pytest.raises(MissingInputError, match="is not there"):
        quantize_file(tmp_path / "none.onnx", rows, tmp_path, settings=settings())
    with pytest.raises(MissingInputError, match="is not there"):
        quantize_file(path, str(tmp_path / "none.npy"), tmp_path, settings=settings())
    with pytest.raises(UnknownNameError, match="no recipe named 'quarter'"):
        quantize_file(path, rows, tmp_path, settings=settings(recipes=("quarter",)))
    np.save(tmp_path / "wrong.npy", np.zeros((5, 3), np.float32))
    with pytest.raises(InputError, match="the model takes float32"):
        quantize_file(path, str(tmp_path / "wrong.npy"), tmp_path, settings=settings())
    foreign = product_net()
    foreign.graph.node.append(helper.make_node("Mine", ["logits"], ["x"], "odd", domain="my.own"))
    foreign.opset_import.append(helper.make_opsetid("my.own", 1))
    onnx.save(foreign, path)
    with pytest.raises(ModelError, match=r"my\.own"):
        quantize_file(path, rows, tmp_path, settings=settings())


def test_a_variant_never_replaces_the_model_itself(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    named = tmp_path / "net.int8.onnx"
    quantize_file(path, rows, tmp_path, settings=settings(recipes=("static-u8s8",)))
    assert named.exists()
    assert path.exists()
    odd = tmp_path / "a.onnx"
    odd.write_bytes(path.read_bytes())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.int8.onnx").symlink_to(odd)
    with pytest.raises(UsageError, match="would be replaced by its own variant"):
        quantize_file(odd, rows, tmp_path / "out", settings=settings())


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(ferry, ["quantize", *map(str, arguments)])


def test_the_command_prints_a_table_of_all_tries(tmp_path: Path) -> None:
    path, rows = saved(product_net(), tmp_path)
    done = invoke(
        *(path, "--data", rows, "--output", tmp_path / "out", "--accuracy-loss", "100"),
        *("--min-speedup", "0.001", "--recipe", "static-u8s8", "--recipe", "static-u8u8"),
        *("--batch", "1"),
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
        *(path, "--data", rows, "-o", out, "--min-speedup", "1e6", "--recipe", "static-u8s8"),
        *("--batch", "1", "--json"),
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["variants"] == {}
    assert "so fp32 ships" in answer["skipped"]["int8"]
    assert [one.name for one in out.iterdir()] == ["quantize.json"]


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
