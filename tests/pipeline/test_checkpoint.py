"""Checkpoints: all that was put in comes back, and anything else is no checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import Checkpoint, load, read, save


def make(fingerprint: str = "mine") -> Checkpoint:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), 0.1)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return Checkpoint(
        fingerprint=fingerprint,
        history=[{"epoch": 1, "loss": 0.25}],
        run_id="abc",
        model=module.state_dict(),
        best={"weight": torch.zeros(2, 3)},
        average={},
        optimizer=optimizer.state_dict(),
        scheduler={"last_epoch": 7, "scaler": {}},
    )


def test_everything_comes_back(tmp_path: Path) -> None:
    before = make()
    save(tmp_path / "c.safetensors", before)
    after = load(read(tmp_path / "c.safetensors"), "mine")
    assert after is not None
    assert (after.history, after.run_id, after.scheduler) == (
        before.history,
        before.run_id,
        before.scheduler,
    )
    assert torch.equal(after.model["weight"], before.model["weight"])
    assert torch.equal(after.best["weight"], before.best["weight"])
    assert after.average == {}
    assert torch.equal(
        after.optimizer["state"][0]["exp_avg"], before.optimizer["state"][0]["exp_avg"]
    )
    module = torch.nn.Linear(3, 2)
    restored = torch.optim.AdamW(module.parameters(), 0.5)
    restored.load_state_dict(after.optimizer)
    assert restored.param_groups[0]["lr"] == 0.1


def test_the_state_of_a_line_search_comes_back_exactly(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(module.parameters(), 0.1, max_iter=2)
    inputs = torch.randn(8, 3)

    def closure() -> float:
        optimizer.zero_grad()
        loss = module(inputs).square().mean()
        loss.backward()
        return float(loss.detach())

    for _ in range(2):
        optimizer.step(closure)
        before = optimizer.state_dict()["state"][0]
        save(tmp_path / "c.safetensors", replace(make(), optimizer=optimizer.state_dict()))
        found = load(read(tmp_path / "c.safetensors"), "mine")
        assert found is not None
        after = found.optimizer["state"][0]
        assert set(before) == set(after)
        assert after["prev_loss"] == before["prev_loss"]
        assert after["n_iter"] == before["n_iter"]
        assert len(after["old_dirs"]) == len(before["old_dirs"])
        for one, other in zip(after["old_dirs"], before["old_dirs"], strict=True):
            assert torch.equal(one, other)


def test_another_trainings_checkpoint_is_none(tmp_path: Path) -> None:
    save(tmp_path / "c.safetensors", make("theirs"))
    assert load(read(tmp_path / "c.safetensors"), "mine") is None


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_spoilt_file_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.safetensors").write_bytes(content)
    assert load(read(tmp_path / "c.safetensors"), "mine") is None


def test_a_cut_file_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(path, make())
    path.write_bytes(path.read_bytes()[:-5])
    assert load(read(path), "mine") is None
