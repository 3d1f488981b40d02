"""Random affine maps of whole batches, held against shifts and turns done by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.augment import augment
from pipeline.config import AugmentConfig

OFF = AugmentConfig(translate=0, rotate=0, scale=0)


def config(translate: int = 0, rotate: float = 0, scale: float = 0) -> AugmentConfig:
    return AugmentConfig(translate=translate, rotate=rotate, scale=scale)


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
    assert augment(planes, OFF, generator) is planes
    assert torch.equal(generator.get_state(), before), "no draw is taken"


@pytest.mark.parametrize("shape", [(64, 1, 8, 8), (64, 3, 28, 28), (64, 2, 12, 7)])
def test_a_translation_moves_whole_pixels(shape: tuple[int, ...]) -> None:
    planes = images(*shape)
    moved = augment(planes, config(translate=2), seeded())
    offsets = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    seen = set()
    for before, after in zip(planes, moved, strict=True):
        fits = [
            offset
            for offset in offsets
            if torch.allclose(shifted(before, *offset), after, atol=1e-2)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 12, "the shifts differ from image to image"
    assert {down for down, _ in seen} == {right for _, right in seen} == {-2, -1, 0, 1, 2}


def test_the_original_is_left_alone() -> None:
    planes = images(8, 1, 8, 8)
    before = planes.clone()
    augment(planes, config(2, 10, 0.1), seeded())
    assert torch.equal(planes, before)


def test_the_seed_decides() -> None:
    planes = images(16, 1, 9, 9)
    settings_of = config(1, 20, 0.2)
    first = augment(planes, settings_of, seeded(5))
    assert torch.equal(first, augment(planes, settings_of, seeded(5)))
    assert not torch.equal(first, augment(planes, settings_of, seeded(6)))


def test_a_generator_goes_on() -> None:
    planes, generator = images(16, 1, 9, 9), seeded(5)
    settings_of = config(1, 20, 0.2)
    first = augment(planes, settings_of, generator)
    assert not torch.equal(first, augment(planes, settings_of, generator))


def quarter_turns(monkeypatch: pytest.MonkeyPatch, planes: Tensor, draw: float) -> Tensor:
    """Augment with every draw at `draw`, between 0 and 1, and turns of 90 degrees."""
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, draw))
    return augment(planes, config(rotate=90), seeded())


@pytest.mark.parametrize("side", [7, 8])
def test_a_quarter_turn_is_rot90(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    planes = images(3, 2, side, side)
    one_way = quarter_turns(monkeypatch, planes, 1.0)
    other_way = quarter_turns(monkeypatch, planes, 0.0)
    ways = [torch.rot90(planes, turns, dims=(2, 3)) for turns in (1, -1)]
    if torch.allclose(one_way, ways[1], atol=1e-2):
        ways.reverse()
    torch.testing.assert_close(one_way, ways[0], atol=1e-2, rtol=0)
    torch.testing.assert_close(other_way, ways[1], atol=1e-2, rtol=0)


def test_a_turn_keeps_the_form_of_what_is_in_an_oblong_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planes = torch.zeros(1, 1, 15, 9)
    planes[0, 0, 7, 2:7] = 255  # a bar through the middle, 5 pixels long
    turned = quarter_turns(monkeypatch, planes, 1.0)
    expected = torch.zeros_like(planes)
    expected[0, 0, 5:10, 4] = 255
    torch.testing.assert_close(turned, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize(("draw", "larger"), [(0.0, True), (1.0, False)])
def test_scale_changes_the_size(monkeypatch: pytest.MonkeyPatch, draw: float, larger: bool) -> None:
    planes = torch.zeros(1, 1, 21, 21)
    planes[..., 7:14, 7:14] = 100
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, draw))
    area = augment(planes, config(scale=0.3), seeded()).sum() / planes.sum()
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
)
def test_any_shape_keeps_its_shape_dtype_and_range(
    shape: tuple[int, ...], translate: int, rotate: float, scale: float
) -> None:
    planes = images(*shape)
    result = augment(planes, config(translate, rotate, scale), seeded())
    assert result.shape == planes.shape
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
    assert result.min() >= -1e-3
    assert result.max() <= planes.max() + 1e-2
