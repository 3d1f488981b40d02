"""Muon's steps: orthogonal for kernels and matrices, plain for vectors."""

import pytest
import torch
from torch import nn

from pipeline.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (1, 9)])
def test_all_directions_come_out_about_equally_long(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    stretched = torch.randn(shape) * torch.logspace(0, -2, shape[1])
    left, lengths, right = torch.linalg.svd(stretched, full_matrices=False)
    assert lengths.max() == pytest.approx(lengths.min()) or lengths.max() > 5 * lengths.min()
    found = orthogonal(stretched)
    assert found.shape == shape
    # The same directions as before, so that what is left between them is diagonal.
    between = left.T @ found @ right.T
    torch.testing.assert_close(between, between.diagonal().diag(), rtol=0, atol=1e-4)
    assert 0.6 < between.diagonal().min() <= between.diagonal().max() < 1.3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_a_matrix_with_a_row_for_each_output(layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    kernel = nn.Parameter(torch.randn(8, 2, 3, 3).to(memory_format=layout))
    before, gradient = kernel.detach().clone(), torch.randn(8, 2, 3, 3)
    optimizer = Muon([kernel], lr=0.1, momentum=0.5, weight_decay=0.2)
    kernel.grad = gradient.clone()
    optimizer.step()
    step = orthogonal(gradient.flatten(1)).view_as(gradient)
    torch.testing.assert_close(kernel.detach(), before * (1 - 0.1 * 0.2) - 0.1 * step)
    torch.testing.assert_close(optimizer.state[kernel]["momentum_buffer"], gradient)


def test_a_tall_matrix_takes_longer_steps() -> None:
    torch.manual_seed(1)
    tall = nn.Parameter(torch.zeros(36, 4))
    tall.grad = torch.randn(36, 4)
    Muon([tall], lr=0.1, momentum=0, weight_decay=0).step()
    assert torch.linalg.svdvals(tall.detach()).mean() == pytest.approx(0.1 * 3, rel=0.2)


def test_vectors_take_the_steps_of_nesterov_without_decay() -> None:
    own, other = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    ours = Muon([own], lr=0.1, momentum=0.9, weight_decay=0.5)
    theirs = torch.optim.SGD([other], 0.1, 0.9, nesterov=True)
    for gradient in ([1.0, 2.0], [-3.0, 0.5]):
        own.grad, other.grad = torch.tensor(gradient), torch.tensor(gradient)
        ours.step()
        theirs.step()
    torch.testing.assert_close(own, other)
