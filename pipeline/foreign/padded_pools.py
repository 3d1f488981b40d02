"""Keep ONNX Runtime from reading a padding of zeros as one of minus infinity.

Its optimizer puts a `Pad` into the `MaxPool` behind it (`Pad_Fusion`, seen in version 1.31.1),
whose own padding never wins the maximum: where all values of a window are negative, the zero
of the file was the answer and is no more. The file is right and what runs is not, so the two are
held apart by an operator that changes nothing.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["keep_padding"]


def keep_padding(graph: onnx.GraphProto) -> int:
    """Put `Max(x, lowest)` between each `Pad` and the `MaxPool` behind it; how many there were.

    Every number is kept, and NaN and infinities as well: the lowest value of the dtype is minus
    infinity for floats.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    pads = {node.output[0] for node in graph.node if node.op_type == "Pad"}
    kept = 0
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        padded = pool.input[0]
        if padded not in pads or padded not in types:
            continue
        kept += 1
        guard, lowest = f"{padded}.kept", f"{padded}.lowest"
        if guard not in {name for node in graph.node for name in node.output}:
            graph.initializer.append(numpy_helper.from_array(_lowest(types[padded]), lowest))
            node = helper.make_node("Max", [padded, lowest], [guard], name=f"{pool.name}.padding")
            graph.node.insert(list(graph.node).index(pool), node)
        pool.input[0] = guard
    return kept


def _lowest(elem_type: int) -> np.ndarray[tuple[()], np.dtype[np.generic]]:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    value = -np.inf if dtype.kind == "f" else np.iinfo(dtype).min
    return np.array(value, dtype)
