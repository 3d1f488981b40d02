"""What ONNX Runtime, onnx.reference and PyTorch compute on the way, and how far it is apart."""

from math import inf, nan

import numpy as np
import onnx
import pytest
import torch
from planted_faults import subject
from small_onnx import chain, node

from pipeline.proof.tracing.divergence import Difference, compared
from pipeline.proof.tracing.pairs import Pair, Steps
from pipeline.proof.tracing.torch_values import TorchValues, Traced, of_graph
from pipeline.proof.tracing.values import OnnxValues, node_name, reads, submodel
from serving.errors import InputError, ModelError

FEEDS = {"x": np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)}
SAME = Pair(wanted="a")


def test_values_are_those_of_a_calculation_by_hand() -> None:
    made = chain(20)
    found = OnnxValues(made, FEEDS).fetch(["p0", "t0", "p1", "y"])
    w0, w1 = (onnx.numpy_helper.to_array(one) for one in made.graph.initializer[:2])
    np.testing.assert_allclose(found["p0"], FEEDS["x"] @ w0, rtol=1e-6)
    np.testing.assert_allclose(found["p1"], np.tanh(FEEDS["x"] @ w0) @ w1, rtol=1e-5)
    assert set(found) == {"p0", "t0", "p1", "y"}


def test_constants_are_values_as_well() -> None:
    values = OnnxValues(chain(1), FEEDS)
    assert values.fetch(["w0"])["w0"].shape == (4, 4)
    assert {"w0", "p0", "y"} <= set(values.names)
    assert "x" not in values.names


def test_the_model_is_left_as_it_was() -> None:
    made = chain(2)
    before = made.SerializeToString()
    OnnxValues(made, FEEDS).fetch(["p0"])
    assert made.SerializeToString() == before


def test_a_model_that_refuses_its_feeds() -> None:
    with pytest.raises(InputError, match="the model refused its input"):
        OnnxValues(chain(1), {"x": np.zeros((1, 3), np.float32)}).fetch(["y"])


def test_torch_gives_outputs_words_and_states_of_recurrent_layers() -> None:
    sound = subject("text_lstm")
    (row,) = sound.feeds.values()
    values = of_graph(sound.graph, row, 20)
    names = ["logits", "text.words", "text.ids", "ids", "lstm.states", "lstm_1.states"]
    assert set(names) <= set(values.names)
    found = values.fetch(names)
    assert found["text.words"].tolist() == [["word3", "unheard", "word7", "word1"]]
    assert found["text.ids"].tolist() == [[5, 1, 9, 3]]
    assert found["ids"][0, :5].tolist() == [5, 1, 9, 3, 0]
    assert found["lstm.states"].shape == (12, 1, 1, 8)
    assert [layers for _, layers in values.recurrent] == [1, 1]
    np.testing.assert_array_equal(found["logits"], sound.graph.answer(row, 1)[0])


def test_nothing_but_what_is_asked_for_is_kept() -> None:
    sound = subject("trained")
    (row,) = sound.feeds.values()
    assert set(of_graph(sound.graph, row, 20).fetch(["relu"])) == {"relu"}


class Both(torch.nn.Module):
    """Two inputs, a constant that is no parameter, two layers of an LSTM in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True)
        self.linear = torch.nn.Linear(8, 2)
        self.register_buffer("factor", torch.tensor(0.5), persistent=False)

    def forward(self, steps: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        states = self.lstm(steps)[0]
        return self.linear(states[-1] * self.factor).masked_fill(~used[:, None], 0.0)


def test_any_module_with_several_inputs() -> None:
    torch.manual_seed(0)
    network = Both().eval()
    example = (torch.randn(5, 2, 3), torch.tensor([True, False]))
    program = torch.onnx.export(network, example, dynamo=True, verbose=False, opset_version=20)
    assert program is not None
    traced = Traced(program=program.exported_program, inputs=("steps", "used"), outputs=("answer",))
    feeds = {"steps": example[0].numpy(), "used": example[1].numpy()}
    values = TorchValues(traced=traced, feeds=feeds)
    ((states, layers),) = values.recurrent
    assert layers == 2
    found = values.fetch([states, "answer", "linear", "linear.product"])
    assert found[states].shape == (5, 2, 2, 4)
    with torch.no_grad():
        np.testing.assert_allclose(found["answer"], network(*example), atol=1e-6)
    bias = network.linear.bias.detach().numpy()
    np.testing.assert_allclose(found["linear.product"] + bias, found["linear"], atol=1e-6)


def test_rows_that_the_trace_does_not_take() -> None:
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(2, 3),))
    traced = Traced(program=program, inputs=("linear",), outputs=("answer",))
    values = TorchValues(traced=traced, feeds={"linear": np.ones((2, 4), np.float32)})
    assert "linear" not in values.names, "an input that is called as a value of torch's"
    with pytest.raises(ModelError, match="the graph that torch traced refuses the rows: Runtime"):
        values.fetch(["answer"])


# A part of a graph


def test_a_subgraph_reads_what_it_takes_from_outside() -> None:
    inner = onnx.helper.make_graph(
        [node("Add", "outer own", "sum")], "g", [], [], [onnx.TensorProto(name="own")]
    )
    assert set(reads(node("If", "truth", "y", then_branch=inner))) == {"truth", "outer"}


def test_a_part_of_a_model_runs_by_itself() -> None:
    made = chain(3)
    feeds = {"t0": FEEDS["x"]}
    part = submodel(made, made.graph.node[2:4], feeds, "t1")
    assert [one.name for one in part.graph.initializer] == ["w1"]
    found = OnnxValues(part, feeds).fetch(["t1"])["t1"]
    w1 = onnx.numpy_helper.to_array(made.graph.initializer[1])
    np.testing.assert_allclose(found, np.tanh(FEEDS["x"] @ w1), rtol=1e-5)


def test_a_node_without_a_name_is_called_by_what_it_makes() -> None:
    assert node_name(onnx.helper.make_node("Split", ["x"], ["a", "", "b"])) == "Split of a, b"


# Differences


def off(wanted: object, found: object, pair: Pair = SAME) -> Difference:
    return compared(np.array(wanted), np.array(found), pair)


def test_differences_are_relative_to_the_largest_value() -> None:
    assert off([1.0, -10.0], [1.5, -10.0]) == Difference(0.5, 0.05, False)
    assert off([0.0], [0.0]) == Difference(0.0, 0.0, False)


def test_whole_numbers_truths_and_words_are_right_or_wrong() -> None:
    assert off([1, 20], [1, 19]) == Difference(1.0, 0.05, True)
    assert off([True, False], [True, True]) == Difference(1.0, 1.0, True)
    words = np.array(["a", "b"], dtype=object)
    assert compared(words, words.copy(), SAME) == Difference(0.0, 0.0, True)
    assert off(["a"], ["b"]) == Difference(inf, inf, True)


def test_what_no_number_tells_is_infinite() -> None:
    assert off([1.0, 2.0], [[1.0, 2.0]]).relative == inf
    assert off([1.0, 2.0], [1.0, nan]).relative == inf
    assert off([1.0, 2.0], [1.0, inf]).relative == inf
    assert off([1.0, nan, -inf, inf], [1.0, nan, -inf, inf]) == Difference(0.0, 0.0, False)
    assert off([1.0, -inf], [1.0, inf]).relative == inf


def test_numbers_of_a_quantizer_are_what_they_stand_for() -> None:
    pair = Pair(wanted="a", steps=Steps(np.float32(0.5), np.uint8(10), 1))
    assert off([0.0, 1.0], np.array([10, 12], np.uint8), pair).absolute == 0.0
    assert off([0.0, 1.0], np.array([10, 14], np.uint8), pair).absolute == 1.0


def test_what_a_quantizer_clips_is_no_difference() -> None:
    pair = Pair(wanted="a", clipped=True)
    assert off([0.0, 3.0], [-2.0, 3.0], pair).absolute == 0.0
    assert off([0.0, 3.0], [-2.0, 2.0], pair).absolute == 1.0
