"""Modules that are hard to export: right, or refused in one clear line."""

import re
from pathlib import Path

import pytest
from awkward_nets import REFUSED, RIGHT, Awkward

from pipeline.exporting.module import ModuleReport, export_module
from pipeline.exporting.signatures import parse_input
from pipeline.proof.tables import pair_table
from serving.errors import FerryError


def export(net: Awkward, path: Path) -> ModuleReport:
    inputs = [parse_input(text) for text in net.inputs]
    return export_module(net.build(), inputs, path, opset=20)


@pytest.mark.slow
@pytest.mark.parametrize("net", RIGHT, ids=lambda net: net.name)
def test_it_is_exported_with_parity(net: Awkward, tmp_path: Path) -> None:
    report = export(net, tmp_path / "net.onnx")
    assert report.parity.passed
    lines = pair_table(report.parity).splitlines()
    assert bool(report.parity.axes) == bool(net.says)
    if net.says:
        assert lines[-1] == report.parity.axes[-1].describe()
        assert re.search(net.says, lines[-1]), lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("net", REFUSED, ids=lambda net: net.name)
def test_it_is_refused_in_one_line(net: Awkward, tmp_path: Path) -> None:
    with pytest.raises(FerryError, match=net.says) as caught:
        export(net, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.onnx").exists()
