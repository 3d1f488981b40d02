"""Which sizes of a free axis are tried, what torch says of it, and the axes of what is answered."""

from collections.abc import Mapping

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from pipeline.exporting.axes import (
    SizeTrial,
    TracedLength,
    free_outputs,
    traced_lengths,
    tried_sizes,
)
from pipeline.exporting.signatures import FreeAxis, parse_input
from pipeline.records.parity import AxisProof


def axis(text: str) -> FreeAxis:
    (found,) = parse_input(f"float32[b,{text}]").axes
    assert isinstance(found, FreeAxis)
    return found


@pytest.mark.parametrize(
    ("text", "traced", "sizes"),
    [
        ("t", TracedLength(), (1, 2, 7, 8, 16, 19)),
        ("t=1..512", TracedLength(), (1, 2, 7, 8, 16, 19, 512)),
        ("t=32..", TracedLength(), (32, 64, 67)),
        ("t=..5", TracedLength(), (1, 2, 4, 5)),
        ("t", TracedLength(least=3), (1, 2, 3, 4, 7, 8, 16, 19)),
        ("t=3..", TracedLength(least=3), (3, 4, 7, 8, 16, 19)),
        ("t", TracedLength(most=100), (1, 2, 7, 8, 16, 19, 99, 100, 101)),
        ("t", TracedLength(guards=("Eq(t, 5)", "Ne(t, 5)")), (1, 2, 4, 5, 6, 7, 8, 16, 19)),
        ("t", TracedLength(most=2**40, guards=("Eq(x2, t)",)), (1, 2, 7, 8, 16, 19)),
    ],
)
def test_sizes_are_both_sides_of_every_edge(
    text: str, traced: TracedLength, sizes: tuple[int, ...]
) -> None:
    assert tried_sizes(axis(text), traced) == sizes


@pytest.mark.parametrize(
    ("traced", "words"),
    [
        (TracedLength(), ""),
        (TracedLength(least=5), "from 5 on"),
        (TracedLength(most=9), "up to 9"),
        (TracedLength(least=2, most=9), "from 2 on up to 9"),
    ],
)
def test_the_range_of_a_trace_in_words(traced: TracedLength, words: str) -> None:
    assert traced.lengths == words


class Asking(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        long = x.shape[1] > 4 and x.shape[1] != 11
        return x.sum(1) if long and y.shape[1] > x.shape[1] - 2 else y.sum(1)


def test_what_torch_asked_is_said_in_the_users_names() -> None:
    names = torch.export.Dim("batch"), torch.export.Dim("t", min=5), torch.export.Dim("s", min=4)
    shapes = ({0: names[0], 1: names[1]}, {0: names[0], 1: names[2]})
    program = torch.export.export(
        Asking(),
        (torch.ones(2, 8), torch.ones(2, 8)),
        dynamic_shapes=shapes,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    found = traced_lengths(program, [parse_input("float32[b,t]"), parse_input("float32[b,s]")])
    assert (found["t"].least, found["t"].most) == (5, None)
    assert any("11" in guard for guard in found["t"].guards)
    assert any("t" in guard and "s" in guard for guard in found["s"].guards)


def trials(shapes: Mapping[int, tuple[int, ...]]) -> list[SizeTrial]:
    """Answers of one output at some sizes of `t`."""
    one = axis("t")
    return [
        SizeTrial(
            axis=one, traced=TracedLength(), sizes={"t": size}, shapes={"y": shape}, refusal=""
        )
        for size, shape in shapes.items()
    ]


@pytest.mark.parametrize(
    ("shapes", "declared"),
    [
        ({8: (4, 8, 3), 2: (4, 2, 3)}, ["batch", "t", 3]),
        ({8: (4, 8, 3), 2: (4, 5, 3)}, ["batch", "y.1", 3]),
        ({8: (4, 8, 3), 2: (4, 8, 3)}, ["batch", 8, 3]),
        ({}, ["batch", 8, 3]),
    ],
)
def test_an_answer_that_torch_declares_as_long_as_the_example(
    shapes: Mapping[int, tuple[int, ...]], declared: list[int | str]
) -> None:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 3])
    within = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 8, 3])
    graph = onnx.GraphProto(output=[y], value_info=[within])
    free_outputs(graph, trials(shapes))
    dims = graph.output[0].type.tensor_type.shape.dim
    assert [one.dim_param or one.dim_value for one in dims] == declared
    assert bool(graph.value_info) == (declared[1] == 8)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ((), "axis t: proven at 2, 8, up to 1.0e-06"),
        ((1,), "axis t: proven at 2, 8, up to 1.0e-06; not below 2: no"),
        ((7, 19), "axis t: proven at 2, 8, up to 1.0e-06; not at 7, 19: no"),
    ],
)
def test_a_proof_in_words(refused: tuple[int, ...], words: str) -> None:
    proof = AxisProof(
        name="t", sizes=(2, 8), max_abs_diff=1e-6, traced="", refused=refused, refusal="no"
    )
    assert proof.describe() == words
    assert (
        f"{words}; torch traced it for lengths up to 9"
        == AxisProof(
            name="t",
            sizes=(2, 8),
            max_abs_diff=1e-6,
            traced="up to 9",
            refused=refused,
            refusal="no",
        ).describe()
    )
