"""Batches of rows, what a graph answers on them, and their random changes, checked by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.config.experiment import AugmentConfig
from pipeline.models.parts.graph import Graph, head_of
from pipeline.models.parts.vocabulary import Vocabulary
from pipeline.records.ready import Split
from pipeline.training.batches import DeviceRows, augment, draw, evaluate, resized

CPU = torch.device("cpu")


def table(rows: int) -> tuple[Graph, Split]:
    torch.manual_seed(1)
    graph = Graph(
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), "table", head_of("cross_entropy")
    )
    graph.standardise((0.0,) * 3, (1.0,) * 3)
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(rows, 3)).astype(np.float32)
    return graph, Split(inputs, generator.integers(0, 4, rows))


def test_loss_and_accuracy_are_means_over_rows_not_over_batches() -> None:
    graph, split = table(2300)
    found = evaluate(graph, DeviceRows(graph, split, CPU))
    graph.eval()
    logits = graph.network(torch.from_numpy(split.inputs)).detach()
    labels = torch.from_numpy(split.labels)
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert found.predicted is not None
    assert torch.equal(found.predicted, logits.argmax(1))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_what_it_was(training: bool) -> None:
    graph, split = table(10)
    graph.train(training)
    evaluate(graph, DeviceRows(graph, split, CPU))
    assert graph.training is training


def test_a_reconstruction_has_a_loss_alone() -> None:
    graph = Graph(nn.Identity(), "image", head_of("mean_squared_error"))
    graph.standardise((0.0,), (255.0,))
    split = Split(np.full((5, 4, 4, 1), 51, dtype=np.uint8), np.zeros(5, dtype=np.int64))
    found = evaluate(graph, DeviceRows(graph, split, CPU))
    assert (found.loss, found.accuracy, found.predicted) == (0.0, None, None)


def test_every_row_comes_once_in_the_given_order() -> None:
    graph, split = table(10)
    rows = DeviceRows(graph, split, CPU)
    order = torch.randperm(10)
    batches = list(rows.batches(order, 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), rows.inputs[order])
    assert torch.equal(torch.cat([labels for _, labels in batches]), rows.labels[order])
    second = [inputs for inputs, _ in rows.batches(order[:8], 4, slice(2, 4))]
    assert torch.equal(torch.cat(second), rows.inputs[order[[2, 3, 6, 7]]])


class LastWord(nn.Module):
    """Answers by the last word of a sentence, and remembers how long the longest was."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.0, -1.0, 1.0, 2.0]))
        self.longest: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.longest.append(ids.shape[1])
        last = (ids != 0).sum(1).clamp(min=1) - 1
        return self.scores[ids.gather(1, last[:, None])]


def test_sentences_are_cut_behind_the_longest_of_their_batch() -> None:
    network = LastWord()
    graph = Graph(network, "text", head_of("binary_cross_entropy"))
    graph.vocabulary = Vocabulary(("good", "fine"), 50)
    split = Split(np.array(["a good", "", "x y z fine", "bad"]), np.array([1, 0, 1, 0]))
    rows = DeviceRows(graph, split, CPU)
    assert rows.inputs.shape == (4, 50)
    assert [inputs.shape[1] for inputs, _ in rows.batches(torch.arange(4), 2)] == [2, 4]
    assert [inputs.shape[1] for inputs, _ in rows.batches(torch.tensor([1, 1]), 2)] == [1]
    found = evaluate(graph, rows)
    assert found.accuracy == 1.0
    assert network.longest == [4]


def test_the_rows_are_copies() -> None:
    graph, split = table(4)
    frozen = split.inputs.copy()
    frozen.flags.writeable = False
    rows = DeviceRows(graph, Split(frozen, split.labels), CPU)
    rows.inputs.zero_()
    assert frozen.any()


# Random changes


LAST = 1 - 2**-24
"""The largest number that is ever drawn."""
OFF = AugmentConfig(translate=0, rotate=0, scale=0, flip=False, cutout=0)


def config(
    translate: int = 0, rotate: float = 0, scale: float = 0, flip: bool = False, cutout: int = 0
) -> AugmentConfig:
    return AugmentConfig(translate=translate, rotate=rotate, scale=scale, flip=flip, cutout=cutout)


def change(planes: Tensor, settings_of: AugmentConfig, seed: int = 1) -> Tensor:
    return augment(planes, settings_of, draw(len(planes), settings_of, seeded(seed)))


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=seeded(99)) * 255


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """Move one image [C, H, W] by whole pixels; what comes in is 0."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    rows = slice(max(down, 0), min(height, height + down))
    columns = slice(max(right, 0), min(width, width + right))
    from_rows = slice(max(-down, 0), min(height, height - down))
    from_columns = slice(max(-right, 0), min(width, width - right))
    result[:, rows, columns] = image[:, from_rows, from_columns]
    return result


def test_zeros_switch_it_off() -> None:
    planes = images(4, 1, 8, 8)
    generator = seeded()
    before = generator.get_state()
    assert augment(planes, OFF, draw(4, OFF, generator)) is planes
    assert torch.equal(generator.get_state(), before), "no draw is taken"


@pytest.mark.parametrize("exact", [True, False], ids=["moved", "sampled"])
@pytest.mark.parametrize("shape", [(64, 1, 8, 8), (64, 3, 28, 28), (64, 2, 12, 7)])
def test_a_translation_moves_whole_pixels(shape: tuple[int, ...], exact: bool) -> None:
    planes = images(*shape)
    moved = change(planes, config(translate=2, rotate=0 if exact else 1e-9))
    offsets = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    seen = set()
    for before, after in zip(planes, moved, strict=True):
        fits = [
            offset
            for offset in offsets
            if torch.allclose(shifted(before, *offset), after, atol=0 if exact else 1e-2)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 12, "the shifts differ from image to image"
    assert {down for down, _ in seen} == {right for _, right in seen} == {-2, -1, 0, 1, 2}


def test_each_shift_is_as_likely_as_the_others() -> None:
    planes = torch.zeros(5000, 1, 7, 7)
    planes[:, :, 3, 3] = 1
    middles = change(planes, config(translate=1)).sum(0)[0, 2:5, 2:5]
    assert middles.sum() == 5000
    assert middles.min() > 5000 / 9 * 0.8


@pytest.mark.parametrize("turned", [0.0, 1e-9])
def test_a_flip_mirrors_about_half_of_the_images(turned: float) -> None:
    planes = images(200, 3, 6, 9)
    flipped = change(planes, config(flip=True, rotate=turned))
    mirrored = planes.flip(3)
    sides = [
        (torch.allclose(after, before, atol=1e-2), torch.allclose(after, other, atol=1e-2))
        for before, other, after in zip(planes, mirrored, flipped, strict=True)
    ]
    assert all(one != other for one, other in sides)
    assert 60 < sum(other for _, other in sides) < 140


@pytest.mark.parametrize("side", [1, 2, 5])
def test_a_cutout_blanks_one_square(side: int) -> None:
    planes = images(2000, 2, 9, 12) + 1
    blanked = change(planes, config(cutout=side))
    gone = blanked == 0
    assert torch.equal(gone[:, 0], gone[:, 1]), "in every channel"
    assert torch.equal(blanked[~gone], planes[~gone])
    heights = gone[:, 0].any(2).sum(1)
    widths = gone[:, 0].any(1).sum(1)
    assert torch.equal(gone[:, 0].sum((1, 2)), heights * widths), "a rectangle"
    assert heights.max() == widths.max() == side
    assert heights.min() >= min(1, side // 2)
    assert gone[:, 0].any(0).all(), "anywhere"


def test_channels_last_stays_so() -> None:
    planes = images(4, 3, 8, 8).to(memory_format=torch.channels_last)
    changed = change(planes, config(translate=1, flip=True, cutout=2))
    assert changed.is_contiguous(memory_format=torch.channels_last)


def test_the_original_is_left_alone() -> None:
    planes = images(8, 1, 8, 8)
    before = planes.clone()
    change(planes, config(2, 10, 0.1, flip=True, cutout=2))
    change(planes, config(2, flip=True, cutout=2))
    assert torch.equal(planes, before)


def test_the_seed_decides() -> None:
    planes = images(16, 1, 9, 9)
    settings_of = config(1, 20, 0.2)
    first = change(planes, settings_of, 5)
    assert torch.equal(first, change(planes, settings_of, 5))
    assert not torch.equal(first, change(planes, settings_of, 6))


def test_an_image_is_changed_the_same_in_any_batch() -> None:
    planes, settings_of = images(16, 1, 9, 9), config(1, 20, 0.2, flip=True, cutout=3)
    draws = draw(16, settings_of, seeded())
    whole = augment(planes, settings_of, draws)
    parts = [augment(planes[i : i + 4], settings_of, draws[i : i + 4]) for i in (0, 4, 8, 12)]
    torch.testing.assert_close(torch.cat(parts), whole)


def quarter_turns(planes: Tensor, drawn: float) -> Tensor:
    """Augment with every draw at `drawn`, from 0 to 1, and turns of 90 degrees."""
    return augment(planes, config(rotate=90), torch.full((len(planes), 7), drawn))


@pytest.mark.parametrize("side", [7, 8])
def test_a_quarter_turn_is_rot90(side: int) -> None:
    planes = images(3, 2, side, side)
    one_way = quarter_turns(planes, LAST)
    other_way = quarter_turns(planes, 0.0)
    ways = [torch.rot90(planes, turns, dims=(2, 3)) for turns in (1, -1)]
    if torch.allclose(one_way, ways[1], atol=1e-2):
        ways.reverse()
    torch.testing.assert_close(one_way, ways[0], atol=1e-2, rtol=0)
    torch.testing.assert_close(other_way, ways[1], atol=1e-2, rtol=0)


def test_a_turn_keeps_the_form_of_what_is_in_an_oblong_image() -> None:
    planes = torch.zeros(1, 1, 15, 9)
    planes[0, 0, 7, 2:7] = 255  # a bar through the middle, 5 pixels long
    turned = quarter_turns(planes, LAST)
    expected = torch.zeros_like(planes)
    expected[0, 0, 5:10, 4] = 255
    torch.testing.assert_close(turned, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize(("drawn", "larger"), [(0.0, True), (LAST, False)])
def test_scale_changes_the_size(drawn: float, larger: bool) -> None:
    planes = torch.zeros(1, 1, 21, 21)
    planes[..., 7:14, 7:14] = 100
    area = augment(planes, config(scale=0.3), torch.full((1, 7), drawn)).sum() / planes.sum()
    expected = 1 / (0.7 if larger else 1.3) ** 2
    assert area.item() == pytest.approx(expected, rel=0.08)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(
        *[st.integers(1, 6), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)]
    ),
    translate=st.integers(0, 3),
    rotate=st.floats(0, 180),
    scale=st.floats(0, 0.9),
    flip=st.booleans(),
    cutout=st.integers(0, 20),
)
def test_any_shape_keeps_its_shape_dtype_and_range(
    shape: tuple[int, ...], translate: int, rotate: float, scale: float, flip: bool, cutout: int
) -> None:
    planes = images(*shape)
    result = change(planes, config(translate, rotate, scale, flip, cutout))
    assert result.shape == planes.shape
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
    assert result.min() >= -1e-3
    assert result.max() <= planes.max() + 1e-2


def test_smaller_images_show_the_same() -> None:
    ramp = torch.arange(32.0).expand(2, 3, 24, 32).contiguous()
    small = resized(ramp, 12)
    assert small.shape == (2, 3, 12, 16)
    assert small.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(small[..., 2:-2], ramp[:, :, ::2, ::2][..., 2:-2] + 0.5)
