"""A file is judged by its weights, and what it would lose elsewhere is computed."""

import json
from pathlib import Path

import numpy as np
import onnx
from click.testing import CliRunner, Result
from small_models import image_net, rows_for

from pipeline.cli import ferry
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import parse


def linted(recipe: str, folder: Path, *words: str) -> Result:
    original = image_net()
    made = Quantizer(original, rows_for(original, 16)).apply(parse(recipe))
    onnx.save(made, folder / "net.onnx")
    np.savez(folder / "rows.npz", images=np.full((8, 8, 8, 3), 255, np.uint8))
    rows = ["--data", str(folder / "rows.npz")]
    return CliRunner().invoke(ferry, ["lint", str(folder / "net.onnx"), *rows, *words])


def test_what_may_overflow_is_named_with_its_loss_and_its_cure(tmp_path: Path) -> None:
    found = linted("static-u8s8", tmp_path)
    assert found.exit_code == 1
    first, *nodes, lost, here, cure = found.stdout.splitlines()
    assert first.startswith("needs VNNI: weights of 3 of 3 integer products go beyond ±64")
    assert nodes[0] == "  Conv first: up to 127"
    assert lost.startswith("on 8 rows, needs VNNI: without it ")
    assert "points of agreement" in lost
    assert "on this processor such sums" in here
    assert "reduce_range=True" in cure


def test_what_answers_alike_everywhere(tmp_path: Path) -> None:
    found = linted("static-u8s8-reduced", tmp_path)
    assert found.exit_code == 0
    assert found.stdout == "alike everywhere: no sum of 3 integer products can overflow\n"
    assert json.loads(linted("half", tmp_path, "--json").stdout)["products"] == 0


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "odd.onnx").write_bytes(b"no model")
    for name in ("odd.onnx", "none.onnx"):
        refused = CliRunner().invoke(ferry, ["lint", str(tmp_path / name)])
        assert refused.exit_code == 1
        assert refused.stderr.count("\n") == 1
        assert name in refused.stderr
