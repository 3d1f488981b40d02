"""Image architectures that ferry did not make, exported and proven."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from architectures import CLASSES, UNLIKE, Architecture

from pipeline.exporting.module import export_module
from pipeline.exporting.signatures import parse_input
from serving.model import open_model

pytest.importorskip("transformers", reason="transformers is not installed: no architectures")

LIMIT = 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("architecture", UNLIKE, ids=lambda one: one.name)
def test_it_is_exported_with_parity_and_served(architecture: Architecture, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    pixels = architecture.pixels
    images = parse_input(f"pixel_values:float32[batch,3,{pixels},{pixels}]")
    report = export_module(architecture.build(), [images], path, opset=20, limit=LIMIT)
    result = report.parity.result
    assert report.parity.passed
    assert result.max_abs_diff <= LIMIT
    assert result.flips == 0
    assert result.max_abs_output == "logits"
    assert result.notes == (), "the answers depend on the image"

    made = onnx.load(path).graph
    if architecture.name == "BiT":
        # It pads before its pool; ONNX Runtime would take the padding into the pool.
        assert "padding of zeros" in report.notes[0]
        operators = [node.op_type for node in made.node]
        at = operators.index("MaxPool")
        assert operators[at - 2 : at + 1] == ["Pad", "Max", "MaxPool"]
    else:
        assert report.notes == ()
    for value in (*made.input, *made.output):
        assert value.type.tensor_type.shape.dim[0].dim_param
    content = path.read_bytes()
    for leak in (b"site-packages", b"pkg.torch", b".py", str(tmp_path).encode()):
        assert leak not in content

    rows = np.random.default_rng(3).standard_normal((5, 3, pixels, pixels)).astype(np.float32)
    answer = open_model(path).predict(rows, batch_rows=3)
    assert answer.scores.shape == (5, CLASSES)
