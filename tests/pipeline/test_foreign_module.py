"""A module from its export to its proof, and what becomes of one that fails it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from foreign_nets import Infinite, Lying, Still, Two, plain
from onnx import numpy_helper
from torch import nn

from pipeline.errors import ParityError
from pipeline.exporting.exporter import Exported, export_flat
from pipeline.exporting.module import ModuleOptions, export_module
from pipeline.exporting.module_proof import explain, prove, rounding
from pipeline.exporting.signatures import FlatModule, InputSpec, parse_input, random_rows
from pipeline.proof.rows import Rows
from pipeline.records.module import as_table
from pipeline.records.parity import Divergence
from serving.errors import InputError, MissingInputError, ModelError, UsageError
from serving.runtime.session import open_session

PIXELS = "images:float32[batch,3,8,8]"
FOUR = [parse_input("x:float32[batch,4]")]
LIMIT = 1e-4


def two(path: Path) -> list[InputSpec]:
    """The inputs of `Two` as files of 6 rows."""
    rng = np.random.default_rng(0)
    np.save(path / "rows.npy", rng.standard_normal((6, 4)).astype(np.float32))
    np.save(path / "ids.npy", rng.integers(0, 5, (6, 3)))
    return [parse_input(f"{name}:{path / name}.npy") for name in ("rows", "ids")]


def test_a_module_is_exported_and_proven(tmp_path: Path) -> None:
    module = plain().train()
    path = tmp_path / "new" / "net.onnx"
    options = ModuleOptions(source="nets:plain")
    report = export_module(module, [parse_input(PIXELS)], path, options=options)
    assert report.passed
    assert report.max_abs_diff <= 1e-5
    assert (report.flips, report.failures, report.notes) == (0, (), ())
    assert (report.rows, report.data, report.limit) == (64, "random, seed 1", 1e-4)
    assert report.outputs[0].values == 64 * 5 * len(report.batch_sizes)
    assert report.inputs == ("images float32 [batch, 3, 8, 8]",)
    assert report.parameters == sum(one.numel() for one in module.parameters())
    kept = json.loads((path.parent / "net.parity.json").read_text())
    assert kept["sha256"] == open_session(path).sha256
    assert kept["outputs"][0]["name"] == "output"
    assert sorted(one.name for one in path.parent.iterdir()) == ["net.onnx", "net.parity.json"]


def test_the_model_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    options = ModuleOptions(source="nets:plain", num_rows=2)
    report = export_module(plain(), [parse_input(PIXELS)], path, options=options)
    facts = open_session(path).metadata
    assert facts["ferry.module"] == "nets:plain"
    assert facts["ferry.torch"] == torch.__version__
    assert facts["ferry.weights_sha256"] == report.weights_sha256
    assert facts["ferry.version"]


def test_a_module_of_two_inputs_on_real_rows(tmp_path: Path) -> None:
    report = export_module(Two(), two(tmp_path), tmp_path / "two.onnx")
    assert (report.rows, report.data) == (6, "the inputs' files")
    assert [output.name for output in report.outputs] == ["logits", "hidden.0", "hidden.1.0"]
    assert report.outputs[0].flips == 0
    assert report.module == "Two"
    table = as_table(report)
    assert "hidden.1.0" in table
    assert "passed" in table


def test_rows_of_a_file_are_what_it_is_proven_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "rows": rng.standard_normal((9, 4)).astype(np.float32),
        "ids": rng.integers(0, 5, (9, 2)),
    }
    np.savez(tmp_path / "rows.npz", **arrays)  # type: ignore[arg-type]
    specs = [parse_input("float32[batch,4]"), parse_input("int64[batch,length]")]
    rows = str(tmp_path / "rows.npz")
    report = export_module(Two(), specs, tmp_path / "two.onnx", rows=rows)
    assert (report.rows, report.data) == (9, rows)
    with pytest.raises(MissingInputError, match="is not there"):
        export_module(Two(), specs, tmp_path / "two.onnx", rows=str(tmp_path / "none.npz"))


def test_files_of_another_number_of_rows(tmp_path: Path) -> None:
    first, second = two(tmp_path)
    assert second.rows is not None
    with pytest.raises(InputError, match="must hold as many rows, got 6, 5"):
        export_module(Two(), [first, replace(second, rows=second.rows[:5])], tmp_path / "two.onnx")
    assert not (tmp_path / "two.onnx").exists()


@pytest.mark.parametrize(
    ("name", "limit", "specs", "message"),
    [
        ("net.pt", 1e-4, FOUR, "must end in .onnx, got .*net.pt"),
        ("net.onnx", 0.0, FOUR, "limit must be above 0, got 0"),
        ("net.onnx", float("nan"), FOUR, "limit must be above 0, got nan"),
        ("net.onnx", 1e-4, [], "at least one --input"),
    ],
)
def test_senseless_arguments(
    tmp_path: Path, name: str, limit: float, specs: list[InputSpec], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_module(nn.Linear(4, 3), specs, tmp_path / name, options=ModuleOptions(limit=limit))


# What fails


def test_another_computation_while_exporting_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"an earlier one")
    with pytest.raises(ParityError) as caught:
        export_module(Lying(), FOUR, path)
    message = str(caught.value)
    assert message.startswith("Lying: ")
    assert "at output[" in message
    assert "limit 1.0e-04" in message
    assert "torch's exporter traced another computation than the module's" in message
    assert f"kept as {tmp_path / 'net.failed.onnx'}" in message
    assert path.read_bytes() == b"an earlier one"
    kept = json.loads((tmp_path / "net.failed.parity.json").read_text())
    assert (kept["passed"], kept["model"]) == (False, "net.failed.onnx")
    assert kept["max_abs_diff"] > 1e-4
    assert not (tmp_path / "net.parity.json").exists()


def test_a_later_success_takes_the_failure_away(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(ParityError):
        export_module(Lying(), FOUR, path)
    export_module(nn.Linear(4, 3), FOUR, path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["net.onnx", "net.parity.json"]


def test_values_that_are_not_finite_name_the_first_layer(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"NaN or infinite.*main/Log \(Log\) is the first"):
        export_module(Infinite(), FOUR, tmp_path / "net.onnx")


def test_a_module_that_answers_every_row_alike_is_told(tmp_path: Path) -> None:
    report = export_module(Still(), FOUR, tmp_path / "net.onnx")
    assert report.passed
    assert "answers every row alike at output" in report.notes[0]
    assert report.notes[0] in as_table(report)


def tampered(node: str, factor: float) -> tuple[FlatModule, Exported, Rows]:
    """A module and its export, one weight of which was changed afterwards."""
    specs = [parse_input(PIXELS)]
    flat = FlatModule(plain(), specs)
    made = export_flat(flat, specs, 20, {})
    names = next(list(one.input) for one in made.model.graph.node if one.name == node)
    for tensor in made.model.graph.initializer:
        if tensor.name == names[1]:
            changed = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    rows = dict(zip(flat.inputs, random_rows(specs, 20, seed=2), strict=True))
    return flat, made, Rows(name="random", inputs=rows, labels=None)


@pytest.mark.parametrize("node", ["0/Conv", "4/Gemm"])
def test_a_layer_that_is_not_the_modules_is_named(node: str) -> None:
    flat, made, rows = tampered(node, 1.5)
    session = open_session(made.model.SerializeToString())
    proof = prove(flat, session, rows, (1, 3), LIMIT)
    assert proof.failures
    assert proof.worst_row == proof.outputs[0].max_abs_at[0]
    found = explain(flat, made, rows, proof.worst_row, LIMIT)
    assert isinstance(found, Divergence)
    assert found.node == node
    assert found.reference == "PyTorch"


def test_flips_are_failures_of_their_own() -> None:
    flat, made, rows = tampered("4/Gemm", -1.0)
    session = open_session(made.model.SerializeToString())
    (output,) = prove(flat, session, rows, (4,), 100.0).outputs
    assert output.max_abs_diff < 100
    assert output.flips is not None
    assert output.flips > 10
    assert output.failures == (f"{output.flips} flips of output's largest value, limit 0",)


def test_a_model_of_another_shape_is_refused() -> None:
    flat, _, rows = tampered("4/Gemm", 1.0)
    specs = [parse_input(PIXELS)]
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
    made = export_flat(FlatModule(other, specs), specs, 20, {})
    session = open_session(made.model.SerializeToString())
    with pytest.raises(ModelError, match=r"module answers \[20, 5\], the model \[20, 7\]"):
        prove(flat, session, rows, (4,), LIMIT)


def test_more_rows_than_are_held_at_once() -> None:
    flat, made, _ = tampered("4/Gemm", 1.0)
    images = random_rows([parse_input(PIXELS)], 150, seed=3)[0]
    rows = Rows(name="random", inputs={"images": images}, labels=None)
    session = open_session(made.model.SerializeToString())
    (output,) = prove(flat, session, rows, (1, 32, 100), LIMIT).outputs
    assert output.values == 150 * 5 * 3
    assert output.failures == ()
    assert output.spread > 0.1


def test_the_failed_file_is_what_was_compared(tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        export_module(Lying(), FOUR, tmp_path / "net.onnx")
    onnx.checker.check_model(tmp_path / "net.failed.onnx")
    kept = json.loads((tmp_path / "net.failed.parity.json").read_text())
    assert kept["sha256"] == open_session(tmp_path / "net.failed.onnx").sha256


class Amplifying(nn.Module):
    """Makes of the last rounding of a float32 something that can be seen."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x + 4096) - 4096) * 8


def test_what_float32_itself_loses_is_told() -> None:
    specs = FOUR
    flat = FlatModule(Amplifying(), specs)
    rows = Rows(name="random", inputs={"x": random_rows(specs, 4, seed=1)[0]}, labels=None)
    lost = rounding(flat, rows)
    assert lost is not None
    assert 1e-5 < lost < 8 * 2**-11
    linear = rounding(FlatModule(nn.Linear(4, 3), specs), rows)
    assert linear is not None
    assert linear < 1e-6


class Single(nn.Module):
    """Runs in float32 alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(4, 3)


def test_a_module_that_runs_in_float32_alone_has_no_such_figure() -> None:
    rows = Rows(name="random", inputs={"x": np.ones((2, 4), np.float32)}, labels=None)
    assert rounding(FlatModule(Single(), FOUR), rows) is None
