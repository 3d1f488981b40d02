"""The network that learns in seconds: its computed first layer, its norms and its views."""

import pytest
import torch
from model_cases import CASES, build, case, image, parameters
from torch import nn

from pipeline.models.fast import Fast, Norm, Whitening

CIFAR = image(32, 32, 3)
FAST = CASES["fast"][0] | {"widths": [64, 256, 256], "mirror": False, "shift": 0}


def patches(planes: torch.Tensor) -> torch.Tensor:
    return nn.functional.unfold(planes, 2).transpose(1, 2).flatten(end_dim=1)


def test_whitening_makes_the_values_of_patches_independent() -> None:
    torch.manual_seed(0)
    rough = torch.randn(64, 3, 17, 17)
    planes = (
        nn.functional.avg_pool2d(rough, 3, stride=1)
        + rough.mean(dim=1, keepdim=True)[..., 1:-1, 1:-1]
    )
    whitening = Whitening(3, 2)
    nn.init.zeros_(whitening.conv.bias)
    whitening.initialise(planes)
    values = whitening(planes).transpose(0, 1).flatten(start_dim=1)
    kept, negative = values.chunk(2)
    torch.testing.assert_close(kept, -negative)
    moments = kept @ kept.T / kept.shape[1]
    torch.testing.assert_close(moments, torch.eye(12), atol=5e-2, rtol=0)
    spread = patches(planes).T @ patches(planes)
    assert (spread - spread.diag().diag()).abs().max() > 0.1 * spread.diag().min()


def test_whitening_does_not_blow_up_what_never_varies() -> None:
    whitening = Whitening(3, 2)
    whitening.initialise(torch.ones(4, 3, 8, 8))
    assert torch.isfinite(whitening.conv.weight).all()
    assert whitening.conv.weight.abs().max() < 50


def test_the_whitening_is_kept_with_the_weights_and_never_trained() -> None:
    network = case("fast")
    assert isinstance(network, Fast)
    before = network.state_dict()["whitening.conv.weight"].clone()
    network.initialise(torch.randn(200, 3, 9, 12))
    after = network.state_dict()["whitening.conv.weight"]
    assert not torch.equal(before, after)
    assert not network.whitening.conv.weight.requires_grad
    other = case("fast", seed=5).eval()
    other.load_state_dict(network.state_dict())
    planes = torch.randn(2, 3, 9, 12)
    assert torch.equal(other(planes), network.eval()(planes))


def test_the_size_of_the_fast_network() -> None:
    network = build("fast", FAST, CIFAR)
    convolutions = 24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256
    assert parameters(network) == (12 + 1) * 24 + 9 * convolutions + 2 * (64 + 512) + 2560
    deep = build("fast", FAST | {"depth": 3}, CIFAR)
    assert parameters(deep) - parameters(network) == 9 * (64**2 + 2 * 256**2) + 64 + 512


def test_a_convolution_at_first_hands_its_planes_on() -> None:
    conv = case("fast").blocks[0].convs[1]
    planes = torch.randn(1, 6, 5, 5)
    assert torch.equal(conv(planes), planes)


def test_a_norm_is_batch_normalisation_with_a_faster_shift() -> None:
    torch.manual_seed(0)
    norm, usual = Norm(5), nn.BatchNorm2d(5, momentum=0.4)
    planes = torch.randn(6, 5, 4, 4)
    torch.testing.assert_close(norm(planes), usual(planes))
    torch.testing.assert_close(norm.eval()(planes), usual.eval()(planes))
    assert set(norm.state_dict()) == {"shift", "mean", "variance"}
    norm(planes).sum().backward()
    usual(planes).sum().backward()
    # The step of the shift itself is its gain times as large again.
    torch.testing.assert_close(norm.shift.grad, usual.bias.grad * 8)


@pytest.mark.parametrize(("mirror", "shift"), [(True, 0), (True, 1), (False, 2)])
def test_views_are_averaged_when_served(mirror: bool, shift: int) -> None:
    network = case("fast", mirror=mirror, shift=shift).eval()
    alone = case("fast", mirror=False, shift=0).eval()
    planes = torch.randn(3, 3, 9, 12)
    views = [planes]
    if shift:
        wide = nn.functional.pad(planes, [shift] * 4, mode="replicate")
        views += [wide[:, :, 2 * shift :, 2 * shift :], wide[:, :, : -2 * shift, : -2 * shift]]
    if mirror:
        views += [view.flip(3) for view in views]
    expected = sum(alone(view) for view in views) / len(views)
    torch.testing.assert_close(network(planes), expected, atol=1e-6, rtol=1e-5)


def test_a_row_and_its_mirror_image_get_one_answer() -> None:
    network = case("fast", mirror=True, shift=0).eval()
    planes = torch.randn(3, 3, 9, 12)
    torch.testing.assert_close(network(planes), network(planes.flip(3)))
    network.train()
    assert not torch.allclose(network(planes), network(planes.flip(3)))
