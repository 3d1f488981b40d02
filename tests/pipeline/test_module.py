"""A module from its export to its proof, and what becomes of one that fails it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_nets import Infinite, Lying, Opposite, Scaled, Still, Two, plain
from onnx import numpy_helper
from torch import nn

from pipeline.errors import ParityError
from pipeline.exporting.module import BATCH_SIZES, ModuleReport, export_flat, export_module
from pipeline.exporting.signatures import FlatModule, InputSpec, parse_input, random_rows
from pipeline.proof.pair import compare, limits_of_pair
from pipeline.proof.rows import Rows
from pipeline.proof.sides import ModelSide, ModuleSide, model_side
from pipeline.proof.tables import pair_table
from pipeline.records import read
from pipeline.records.parity import Cell, PairReport
from serving.errors import InputError, MissingInputError, UsageError
from serving.runtime.session import open_session

PIXELS = "images:float32[batch,3,8,8]"
FOUR = [parse_input("x:float32[batch,4]")]
LIMIT = 1e-4


def export(
    module: nn.Module,
    inputs: list[InputSpec],
    model: Path,
    *,
    rows: str | None = None,
    source: str | None = None,
    limit: float | None = LIMIT,
) -> ModuleReport:
    return export_module(module, inputs, model, opset=20, limit=limit, rows=rows, source=source)


def run(report: PairReport) -> list[Cell]:
    return list(report.result.run)


def two(path: Path) -> list[InputSpec]:
    """The inputs of `Two` as files of 6 rows."""
    rng = np.random.default_rng(0)
    np.save(path / "rows.npy", rng.standard_normal((6, 4)).astype(np.float32))
    np.save(path / "ids.npy", rng.integers(0, 5, (6, 3)))
    return [parse_input(f"{name}:{path / name}.npy") for name in ("rows", "ids")]


def test_a_module_is_exported_and_proven(tmp_path: Path) -> None:
    module = plain().train()
    path = tmp_path / "new" / "net.onnx"
    report = export(module, [parse_input(PIXELS)], path, source="nets:plain")
    parity, result = report.parity, report.parity.result
    assert parity.passed
    assert result.max_abs_diff <= 1e-5
    assert (result.flips, result.failures, result.notes, report.notes) == (0, (), (), ())
    assert (parity.rows, parity.data, result.limits.max_abs_diff) == (64, "random, seed 1", 1e-4)
    assert result.batch_sizes == BATCH_SIZES == tuple(one.batch_size for one in run(parity))
    assert [one.outputs[0].values for one in run(parity)] == [64 * 5] * 4
    assert report.inputs == ("images float32 [batch, 3, 8, 8]",)
    assert report.parameters == sum(one.numel() for one in module.parameters())
    assert read(PairReport, path.parent / "net.parity.json", "ferry export") == parity
    assert parity.other.sha256 == open_session(path).sha256
    assert result.max_abs_output == "output"
    assert sorted(one.name for one in path.parent.iterdir()) == ["net.onnx", "net.parity.json"]


def test_the_model_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    report = export(plain(), [parse_input(PIXELS)], path, source="nets:plain")
    facts = open_session(path).metadata
    assert facts["ferry.module"] == "nets:plain"
    assert facts["ferry.torch"] == torch.__version__
    assert facts["ferry.weights_sha256"] == report.parity.reference.sha256
    assert facts["ferry.version"]


def test_a_module_of_two_inputs_on_real_rows(tmp_path: Path) -> None:
    report = export(Two(), two(tmp_path), tmp_path / "two.onnx")
    parity = report.parity
    assert (parity.rows, parity.data) == (6, "the inputs' files")
    (first, *_) = run(parity)
    assert [one.output for one in first.outputs] == ["logits", "hidden.0", "hidden.1.0"]
    assert [one.output for one in first.decisions] == ["logits", "hidden.0"]
    assert (report.module, parity.reference.name) == ("Two", "Two")
    table = pair_table(parity)
    assert "hidden.1.0" in table
    assert "passed" in table


def test_rows_of_a_file_are_what_it_is_proven_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "rows": rng.standard_normal((9, 4)).astype(np.float32),
        "ids": rng.integers(0, 5, (9, 5)),
    }
    np.savez(tmp_path / "rows.npz", **arrays)  # type: ignore[arg-type]
    specs = [parse_input("float32[batch,4]"), parse_input("int64[batch,length]")]
    rows = str(tmp_path / "rows.npz")
    report = export(Two(), specs, tmp_path / "two.onnx", rows=rows)
    assert (report.parity.rows, report.parity.data) == (9, rows)
    (axis,) = report.parity.axes
    assert (axis.name, axis.sizes, axis.refused) == ("length", (1, 2, 5, 7, 8, 16, 19), ())
    with pytest.raises(MissingInputError, match="is not there"):
        export(Two(), specs, tmp_path / "two.onnx", rows=str(tmp_path / "none.npz"))


def test_files_of_another_number_of_rows(tmp_path: Path) -> None:
    first, second = two(tmp_path)
    assert second.rows is not None
    with pytest.raises(InputError, match="must hold as many rows, got 6, 5"):
        export(Two(), [first, replace(second, rows=second.rows[:5])], tmp_path / "two.onnx")
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
        export(nn.Linear(4, 3), specs, tmp_path / name, limit=limit)


# What fails


def test_another_computation_while_exporting_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"an earlier one")
    with pytest.raises(ParityError) as caught:
        export(Lying(), FOUR, path)
    message = str(caught.value)
    assert message.startswith("Lying: ")
    assert "at output[" in message
    assert "limit 1.0e-04" in message
    assert "torch's exporter traced another computation than the module's" in message
    assert f"kept as {tmp_path / 'net.failed.onnx'}" in message
    assert path.read_bytes() == b"an earlier one"
    kept = json.loads((tmp_path / "net.failed.parity.json").read_text())
    assert (kept["passed"], kept["other"]["name"]) == (False, "net.failed.onnx")
    assert kept["result"]["max_abs_diff"] > 1e-4
    assert kept["other"]["sha256"] == open_session(tmp_path / "net.failed.onnx").sha256
    assert not (tmp_path / "net.parity.json").exists()


def test_a_later_success_takes_the_failure_away(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(ParityError):
        export(Lying(), FOUR, path)
    export(nn.Linear(4, 3), FOUR, path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["net.onnx", "net.parity.json"]


def test_values_that_are_not_finite_name_the_first_layer(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"NaN or infinite.*main/Log \(Log\) is the first"):
        export(Infinite(), FOUR, tmp_path / "net.onnx")


def test_a_module_that_answers_every_row_alike_is_told(tmp_path: Path) -> None:
    report = export(Still(), FOUR, tmp_path / "net.onnx")
    assert report.parity.passed
    (note,) = report.parity.result.notes
    assert "answers every row alike at output" in note
    assert note in pair_table(report.parity)


def sides(module: nn.Module, specs: list[InputSpec]) -> tuple[ModuleSide, ModelSide]:
    """A module and its export."""
    flat = FlatModule(module, specs)
    made = export_flat(flat, specs, 20, {})
    model = model_side("net.onnx", made.model.SerializeToString())
    reference = ModuleSide(
        name="net",
        inputs=model.inputs,
        outputs=model.outputs,
        sha256="",
        flat=flat,
        traced=made.traced,
    )
    return reference, model


def tampered(side: ModelSide, node: str, factor: float) -> ModelSide:
    """The same model with the weight of one node another one."""
    model = side.model()
    name = next(one.input[1] for one in model.graph.node if one.name == node)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            weight = numpy_helper.to_array(tensor)
            changed = (weight * np.float32(factor)).astype(weight.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return model_side("net.onnx", model.SerializeToString())


def drawn(specs: list[InputSpec], count: int) -> Rows:
    (rows,) = random_rows(specs, count, seed=2)
    return Rows(name="random", inputs={str(specs[0].name): rows}, labels=None)


def compared(node: str, factor: float, limit: float = LIMIT) -> PairReport:
    specs = [parse_input(PIXELS)]
    reference, model = sides(plain(), specs)
    off = tampered(model, node, factor)
    return beside(reference, off, drawn(specs, 20), limit)


def beside(reference: ModuleSide, other: ModelSide, rows: Rows, limit: float = LIMIT) -> PairReport:
    return compare(reference, other, rows, limits=limits_of_pair(limit), batch_sizes=(1, 3))


@pytest.mark.parametrize("node", ["0/Conv", "4/Gemm"])
def test_a_layer_that_is_not_the_modules_is_named(node: str) -> None:
    result = compared(node, 1.5).result
    assert not result.passed
    assert result.first_divergence is not None
    assert result.first_divergence.node == node
    assert result.first_divergence.reference == "PyTorch"


def test_flips_are_failures_of_their_own() -> None:
    result = compared("4/Gemm", -1.0, 100.0).result
    assert result.max_abs_diff < 100
    assert result.flips is not None
    assert result.flips > 10
    assert result.failures == (f"{result.flips} flips of output, limit 0",)


def test_a_model_of_another_shape_is_refused() -> None:
    specs = [parse_input(PIXELS)]
    reference, _ = sides(plain(), specs)
    _, other = sides(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), specs)
    with pytest.raises(InputError, match=r"rows, 5\].*rows, 7\]: they cannot be compared"):
        beside(reference, other, drawn(specs, 4))


def test_whole_numbers_must_be_the_same() -> None:
    """No limit of a difference lets an integer of a module be another one."""
    specs = [parse_input(PIXELS)]

    class Counting(nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"count": (images > 0).sum((1, 2, 3)), "mean": images.mean((1, 2, 3))}

    reference, model = sides(Counting(), specs)
    rows = drawn(specs, 20)
    assert beside(reference, model, rows).passed
    changed = model.model()
    for node in changed.graph.node:
        node.op_type = {"Greater": "GreaterOrEqual"}.get(node.op_type, node.op_type)
    rows.inputs["images"][7, 0, 0, 0] = 0
    off = model_side("net.onnx", changed.SerializeToString())
    result = beside(reference, off, rows).result
    assert result.failures == ("1.0e+00 at count[7], limit 1.0e-04",)


class Amplifying(nn.Module):
    """Makes of the last rounding of a float32 something that can be seen."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x + 4096) - 4096) * 8


def test_what_float32_itself_loses_is_told() -> None:
    reference, model = sides(Amplifying(), FOUR)
    rows = drawn(FOUR, 4)
    lost = reference.rounding(rows.inputs)["output"]
    assert 1e-5 < lost < 8 * 2**-11
    off = tampered(model, "main/Mul", 2.0)
    result = beside(reference, off, rows).result
    assert f"PyTorch itself is {lost:.1e} from float64 here" in result.notes
    linear = sides(nn.Linear(4, 3), [replace(FOUR[0], name="input")])[0]
    assert linear.rounding({"input": rows.inputs["x"]})["output"] < 1e-6


def test_what_float32_itself_loses_is_no_fault() -> None:
    """The file loses less than the module, so that the two are apart by what float32 does."""
    reference, model = sides(Amplifying(), FOUR)
    finer = tampered(tampered(model, "main/Add", 0.5), "main/Sub", 0.5)
    limits = limits_of_pair(None)
    result = compare(reference, finer, drawn(FOUR, 60), limits=limits, batch_sizes=(1, 3)).result
    assert result.passed, result.failures
    assert result.max_abs_diff > LIMIT
    assert not beside(reference, finer, drawn(FOUR, 60)).passed


# Limits in parts of an output's own scale


def test_minus_the_module_is_refused_however_small_its_outputs_are(tmp_path: Path) -> None:
    with pytest.raises(ParityError) as caught:
        export(Opposite(), FOUR, tmp_path / "net.onnx", limit=None)
    assert "of its scale at output[" in str(caught.value)
    assert "64 flips of output, limit 0" in str(caught.value)


@pytest.mark.parametrize(
    ("factor", "dtype"), [(2e4, torch.float32), (1.0, torch.float16), (1e-4, torch.float32)]
)
def test_the_limit_follows_the_scale_and_the_precision(factor: float, dtype: torch.dtype) -> None:
    reference, model = sides(Scaled(factor, dtype), FOUR)
    rows, limits = drawn(FOUR, 40), limits_of_pair(None)
    sound = compare(reference, model, rows, limits=limits, batch_sizes=(1, 3)).result
    assert sound.passed, sound.failures
    off = tampered(model, "out/Gemm", 1.02)
    result = compare(reference, off, rows, limits=limits, batch_sizes=(1, 3)).result
    assert "of its scale at output[" in result.failures[0]
    if factor > 1:
        assert not beside(reference, model, rows, 1e-4).passed, "a limit that is given is absolute"


class Single(nn.Module):
    """Runs in float32 alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(4, 3)


def test_a_module_that_runs_in_float32_alone_has_no_such_figure() -> None:
    reference, _ = sides(Single(), FOUR)
    assert reference.rounding({"x": np.ones((2, 4), np.float32)}) == {}
