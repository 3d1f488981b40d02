"""The loop of epochs: which weights it keeps, when it ends, and what it tells of a wrong loss."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tqdm import tqdm
from training import OFF, with_train

from pipeline.config.experiment import Experiment
from pipeline.errors import DivergedError
from pipeline.network.graph import Graph, head_of
from pipeline.records.ready import Split
from pipeline.training.batches import DeviceRows
from pipeline.training.distributed import Team
from pipeline.training.loop import TrainingLoop

CPU = torch.device("cpu")


class Spy(nn.Linear):
    """A linear layer that notes the rows it is trained on."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.seen: list[Tensor] = []

    def forward(self, rows: Tensor) -> Tensor:
        if self.training:
            self.seen.append(rows[:, 0].clone())
        return super().forward(rows)


def make(
    experiment: Experiment, rows: int = 20, team: Team | None = None, **settings: Any
) -> TrainingLoop:
    """A loop over rows whose first value is their number, and whose second tells their class."""
    torch.manual_seed(1)
    graph = Graph(Spy(), "table", head_of("cross_entropy"))
    graph.standardise((0.0, 0.0), (1.0, 1.0))
    labels = np.arange(rows) % 2
    inputs = np.stack([np.arange(rows), labels * 2.0 - 1], axis=1).astype(np.float32)
    plain = {"optimizer": "sgd", "lr": 1e-3, "schedule": "constant", "batch_size": 6}
    changed = with_train(experiment, **{**plain, "augment": OFF, **settings})
    split = DeviceRows(graph, Split(inputs, labels), CPU)
    return TrainingLoop(graph, changed, split, split, team or Team(device=CPU))


def run(loop: TrainingLoop, epochs: int) -> None:
    with tqdm(disable=True) as bar:
        for _ in range(epochs):
            loop.run_epoch(bar)


def seen(loop: TrainingLoop) -> list[Tensor]:
    network: Any = loop.graph.network
    return list(network.seen)


def test_an_epoch_is_of_whole_batches_in_an_order_of_its_own(tiny: Experiment) -> None:
    loop = make(tiny)
    run(loop, 2)
    batches = seen(loop)
    assert [len(batch) for batch in batches] == [6] * 6
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert len(first.unique()) == len(second.unique()) == 18, "each row at most once"
    assert not torch.equal(first, second)


def test_the_seed_and_the_number_of_the_epoch_decide_the_order(tiny: Experiment) -> None:
    one, same, other = make(tiny), make(tiny), make(tiny, seed=2)
    for loop in (one, same, other):
        run(loop, 1)
    assert torch.equal(torch.cat(seen(one)), torch.cat(seen(same)))
    assert not torch.equal(torch.cat(seen(one)), torch.cat(seen(other)))


def test_two_processes_see_what_one_sees(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Team, "parallel", lambda _team, network: network)
    monkeypatch.setattr(Team, "total", lambda _team, values: values)
    monkeypatch.setattr(Team, "share", lambda _team, content: content)
    alone = make(tiny)
    run(alone, 1)
    lead = make(tiny, team=Team(device=CPU, rank=0, size=2))
    run(lead, 1)
    for whole, part in zip(seen(alone), seen(lead), strict=True):
        assert torch.equal(whole[:3], part)


def test_the_weights_of_the_best_epoch_are_kept(tiny: Experiment) -> None:
    loop = make(tiny, lr=0.03, epochs=12)
    with tqdm(disable=True) as bar:
        kept = []
        while not loop.ended:
            loop.run_epoch(bar)
            kept.append({key: value.clone() for key, value in loop.graph.state_dict().items()})
    best = max(loop.history, key=lambda epoch: epoch.rank)
    assert loop.best_epoch == best
    for key, value in kept[best.epoch - 1].items():
        assert torch.equal(loop.best[key], value)


def test_the_better_epoch_is_the_more_accurate_one_then_the_one_with_less_loss(
    tiny: Experiment,
) -> None:
    loop = make(tiny)
    run(loop, 1)

    def rank(accuracy: float | None, loss: float) -> tuple[float, float]:
        epoch = replace(loop.history[0], validation_accuracy=accuracy, validation_loss=loss)
        return epoch.rank

    assert rank(0.9, 0.8) > rank(0.8, 0.1)
    assert rank(0.9, 0.1) > rank(0.9, 0.8)
    assert rank(None, 0.1) > rank(None, 0.8)


def test_patience_ends_the_training(tiny: Experiment) -> None:
    loop = make(tiny, lr=1e-30, early_stop=2, epochs=50)
    run(loop, 1)
    assert not loop.ended
    run(loop, 2)
    assert loop.stopped
    assert loop.ended
    assert loop.best_epoch is not None
    assert loop.best_epoch.epoch == 1


def test_the_learning_rate_is_that_of_the_last_step(tiny: Experiment) -> None:
    loop = make(tiny, schedule="linear", lr=0.001, epochs=2)
    run(loop, 2)
    assert [epoch.lr for epoch in loop.history] == pytest.approx([0.001 * 4 / 6, 0.001 / 6])


def test_a_loss_that_is_no_number_is_told_by_its_step(tiny: Experiment) -> None:
    undisturbed, loop = make(tiny), make(tiny)
    run(undisturbed, 1)
    row = int(torch.cat(seen(undisturbed))[8])
    loop.train_rows.inputs[row] = float("nan")
    message = r"digits-cnn: the loss is nan at epoch 1, step 2 of 3, learning rate 1.00e-03; lower"
    with pytest.raises(DivergedError, match=message):
        run(loop, 1)


def test_a_validation_loss_that_is_no_number_is_told(tiny: Experiment) -> None:
    loop = make(tiny)
    split = Split(np.full((3, 2), np.nan, dtype=np.float32), np.zeros(3, dtype=np.int64))
    loop.validation_rows = DeviceRows(loop.graph, split, CPU)
    with pytest.raises(DivergedError, match=r"the validation loss is nan at epoch 1, learning"):
        run(loop, 1)


def test_accuracy_is_that_of_the_rows_as_they_were_trained_on(tiny: Experiment) -> None:
    loop = make(tiny, rows=18, lr=1e-30)
    run(loop, 1)
    (epoch,) = loop.history
    assert epoch.accuracy == epoch.validation_accuracy
    assert epoch.rows_per_second == pytest.approx(18 / epoch.seconds)
