"""The times of nodes, by ONNX Runtime's own profile."""

from pathlib import Path

import numpy as np

from serving.runtime.profiling import node_times
from serving.runtime.session import open_session, probe
from serving.runtime.settings import SessionSettings


def test_each_call_of_each_node_is_timed(tmp_path: Path) -> None:
    (name,) = (info.name for info in open_session(probe(), threads=1).inputs)
    row = np.zeros((1, 4), np.float32)
    found = node_times(probe(), [{name: row}] * 3, settings=SessionSettings(threads=1))
    names = {node.name for node in found}
    assert len(found) == 3 * len(names)
    assert not [one for one in names if one.endswith("_time")]
    assert {node.dtype for node in found} == {"float"}
    assert {node.provider for node in found} == {"CPUExecutionProvider"}
    assert all(node.us >= 0 and node.operator for node in found)
