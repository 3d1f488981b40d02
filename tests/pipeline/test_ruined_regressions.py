"""Regressions that are ruined on purpose are refused, each kind of them, and sound ones are not.

What ruins them is what quantizers and converters do: one scale for columns of different size, steps
as wide as a column's variation, values that saturate, overflow or drown in half precision, and
answers that have nothing to do with the row. The budgets are the defaults of params.yaml.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tries import generous

from pipeline.config.experiment import ParityConfig, QuantizeConfig
from pipeline.config.params import stage_defaults
from pipeline.quantization.quality import compare_answers, too_inaccurate, too_noisy
from pipeline.records.quantize import Budget, QuantizeReport
from pipeline.stages.quantize import asked_snr_db, quantize_file

Array = np.ndarray
ROWS = 200
RNG = np.random.default_rng(11)
TABLE = RNG.standard_normal((ROWS, 3))
ONE = RNG.standard_normal((ROWS, 1))
MIXED = np.concatenate([1000 * ONE, TABLE], axis=1)
OFFSET = 300 + 0.34 * ONE
SERIES = np.cumsum(RNG.standard_normal((ROWS, 24, 2)), axis=1)
MAPS = 3 * RNG.standard_normal((1, 3, 8, 8)) + RNG.standard_normal((ROWS, 3, 8, 8))
BOXES = np.concatenate([640 * RNG.random((ROWS, 4, 60)), RNG.beta(0.2, 2, (ROWS, 2, 60))], axis=1)
EMBEDDING = RNG.standard_normal((ROWS, 64))
WEIGHT = RNG.standard_normal((16, 4))
COUNTS = RNG.poisson(9, ROWS)


def steps(values: Array, bits: int = 8) -> Array:
    """One scale for all values, as a quantizer has for a tensor."""
    low, high = values.min(), values.max()
    width = (high - low) / (2**bits - 1)
    return low + width * np.round((values - low) / width)


def noisy(values: Array, part: float) -> Array:
    noise = np.random.default_rng(2).standard_normal(values.shape)
    return values + part * values.std(axis=0) * noise


def lost(values: Array, *columns: int) -> Array:
    kept = values.copy()
    kept[:, list(columns)] = 0
    return kept


def some_rows(values: Array) -> Array:
    kept = values.copy()
    kept[::100] += 10 * values.std()
    return kept


def broken(values: Array, value: float) -> Array:
    kept = values.copy()
    kept[17] = value
    return kept


RUINED: dict[str, tuple[Array, Array]] = {
    "a constant for what varies little beside its size": (OFFSET, np.full_like(OFFSET, 300)),
    "small columns within one step of a large one": (MIXED, steps(MIXED)),
    "the sign": (TABLE, -TABLE),
    "two columns in each other's place": (TABLE, TABLE[:, [1, 0, 2]]),
    "the answers of other rows": (TABLE, TABLE[::-1]),
    "large values cut off": (TABLE, TABLE.clip(-0.8, 0.8)),
    "what is below zero cut off": (TABLE, TABLE.clip(0, None)),
    "three bits": (TABLE, steps(TABLE, 3)),
    "a little added to what varies little": (OFFSET, OFFSET + 0.05),
    "nine tenths of it": (TABLE, 0.9 * TABLE),
    "half precision of a large number": (OFFSET, OFFSET.astype(np.float16).astype(float)),
    "one of two outputs": (np.concatenate([TABLE, ONE], 1), np.concatenate([TABLE, 0 * ONE], 1)),
    "scores within the steps of boxes": (BOXES, steps(BOXES)),
    "the same picture for every row": (MAPS, np.broadcast_to(MAPS.mean(axis=0), MAPS.shape)),
    "a series one step late": (SERIES, np.roll(SERIES, 1, axis=1)),
    "one of the two quantities of a series": (SERIES, SERIES * [1, 0]),
    "one row of a hundred": (TABLE, some_rows(TABLE)),
    "NaN": (TABLE, broken(TABLE, np.nan)),
    "infinity": (TABLE, broken(TABLE, np.inf)),
    "noise of a tenth": (TABLE, noisy(TABLE, 0.1)),
    "tiny numbers in fixed point": (1e-6 * TABLE, np.round(1e-6 * TABLE, 6)),
    "some columns of an embedding": (EMBEDDING, lost(EMBEDDING, 3, 40)),
    "counts": (COUNTS, COUNTS + (np.arange(ROWS) % 50 == 0)),
    "a vector of one number a row": (ONE[:, 0], np.roll(ONE[:, 0], 1)),
}


@pytest.fixture(scope="module")
def refused() -> Callable[[Array, Array], list[str]]:
    """Why an int8 variant is not kept that answers the second for the first."""
    config = stage_defaults("quantize", QuantizeConfig)
    least = asked_snr_db(stage_defaults("parity", ParityConfig))["int8"]
    budget = Budget(
        accuracy_loss=config.accuracy_loss, error_increase=config.error_increase, min_speedup=1.0
    )

    def reasons(wanted: Array, found: Array) -> list[str]:
        quality = compare_answers({"y": wanted}, {"y": found}, None)
        return [*too_inaccurate(quality, budget), *too_noisy(quality, least)]

    return reasons


@pytest.mark.parametrize("kind", RUINED)
def test_what_is_ruined_is_refused(kind: str, refused: Callable[[Array, Array], list[str]]) -> None:
    assert refused(*RUINED[kind])


@pytest.mark.parametrize("kind", RUINED)
def test_what_is_a_little_off_is_not(
    kind: str, refused: Callable[[Array, Array], list[str]]
) -> None:
    wanted, _ = RUINED[kind]
    assert refused(wanted, wanted) == []
    if wanted.dtype.kind == "f":
        assert refused(wanted, noisy(wanted, 0.02)) == []


def test_there_are_twenty_kinds() -> None:
    assert len(RUINED) >= 20


def test_an_error_that_is_gone_is_no_gain(
    refused: Callable[[Array, Array], list[str]],
) -> None:
    """A reconstruction whose error is answered as 0 has not become better."""
    least = asked_snr_db(stage_defaults("parity", ParityConfig))["int8"]
    error = RNG.gamma(4, 0.01, ROWS)
    wanted = {"reconstruction": MAPS, "error": error}
    quality = compare_answers(wanted, {**wanted, "error": 0 * error}, None)
    assert quality.loss == -100
    assert list(too_noisy(quality, least))


# Files, from the model to the verdict


def regression(
    weight: Array, bias: float = 0, *others: onnx.NodeProto, output: str = "y"
) -> onnx.ModelProto:
    """x @ weight + bias, and what others make of it."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="out/Gemm"), *others]
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in (("x", weight.shape[0]), (output, weight.shape[1]))
    ]
    count = weight.shape[1]
    tensors = {
        "w": weight,
        "b": np.full(count, bias),
        "one": np.eye(count),
        "small": np.array(1e-5),
    }
    kept = [numpy_helper.from_array(one.astype(np.float32), key) for key, one in tensors.items()]
    graph = helper.make_graph(nodes, "regression", shapes[:1], shapes[1:], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def constant() -> onnx.ModelProto:
    """300 ± 0.34, which one step of 256 between 0 and 301 is wider than."""
    return regression(
        0.085 * WEIGHT[:, :1],
        300,
        helper.make_node("Relu", ["y"], ["above"], name="main/Relu"),
        helper.make_node("MatMul", ["above", "one"], ["level"], name="main/MatMul"),
        output="level",
    )


def overflowing() -> onnx.ModelProto:
    """Weights beyond half precision, whose products are brought back to between -1 and 1."""
    return regression(
        1e5 * WEIGHT,
        0,
        helper.make_node("Mul", ["y", "small"], ["scaled"], name="main/Scale"),
        helper.make_node("Tanh", ["scaled"], ["level"], name="main/Tanh"),
        output="level",
    )


FILES = {
    "four columns, one of them large": (
        regression(WEIGHT * [1000, 1, 1, 1]),
        "static-u8u8-tensor",
    ),
    "300 ± 0.34": (constant(), "static-u8u8"),
    "overflow inside": (overflowing(), "half"),
}


def of_file(model: onnx.ModelProto, recipe: str, folder: Path, rows: int = 48) -> QuantizeReport:
    onnx.save(model, folder / "net.onnx")
    drawn = np.random.default_rng(5).standard_normal((rows, 16)).astype(np.float32)
    np.save(folder / "rows.npy", drawn)
    config = stage_defaults("quantize", QuantizeConfig)
    return quantize_file(
        folder / "net.onnx",
        str(folder / "rows.npy"),
        folder / "out",
        config=generous(
            recipes=(recipe,),
            accuracy_loss=config.accuracy_loss,
            error_increase=config.error_increase,
        ),
        variants=("fp16" if recipe == "half" else "int8",),
        min_snr_db=asked_snr_db(stage_defaults("parity", ParityConfig)),
    )


@pytest.mark.parametrize("kind", FILES)
def test_a_ruined_file_is_not_kept(kind: str, tmp_path: Path) -> None:
    report = of_file(*FILES[kind], tmp_path)
    (search,) = report.searches.values()
    (tried,) = search.tries
    assert tried.quality is not None, tried.verdict
    assert tried.quality.measure == "difference"
    assert not tried.accurate
    assert report.variants == {}
    assert "% of the variation of " in tried.verdict
    assert " dB asked" in tried.verdict
