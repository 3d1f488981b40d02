"""The loop of epochs and one step of it, held against what torch does by hand."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training import OFF, with_train
from training import run as train

from pipeline.config.experiment import Experiment, Params
from pipeline.errors import ConfigError, DivergedError
from pipeline.models.parts.graph import Graph, head_of
from pipeline.records.ready import Split
from pipeline.training.batches import DeviceRows
from pipeline.training.distributed import Team
from pipeline.training.loop import (
    Goal,
    MovingAverage,
    Stepper,
    TrainingLoop,
    make_optimizer,
    make_scheduler,
)

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
    for _ in range(epochs):
        loop.run_epoch()


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
    kept = []
    while not loop.ended:
        loop.run_epoch()
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


# One step


INPUTS = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])


class Sizes(nn.Module):
    """Notes the size of the images it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.seen: list[int] = []

    def forward(self, planes: Tensor) -> Tensor:
        if self.training:
            self.seen.append(planes.shape[-1])
        return self.linear(planes.mean(dim=(1, 2, 3))[:, None])


def test_the_first_parts_of_the_epochs_see_smaller_images(tiny: Experiment) -> None:
    network = Sizes()
    graph = Graph(network, "image", head_of("cross_entropy"))
    graph.standardise((0.0,), (1.0,))
    rows = np.zeros((4, 8, 8, 1), np.uint8)
    split = DeviceRows(graph, Split(rows, np.arange(4) % 2), CPU)
    changed = with_train(tiny, epochs=7, batch_size=4, sides=(4, 6), augment=OFF, ema=0)
    loop = TrainingLoop(graph, changed, split, split, Team(device=CPU))
    while not loop.ended:
        loop.run_epoch()
    assert network.seen == [4, 4, 4, 6, 6, 8, 8]
    assert loop.side is None


LABELS = torch.tensor([0, 1, 1])
GOAL = Goal(LABELS)


def stepper_of(experiment: Experiment, steps: int = 10, **settings: Any) -> Stepper:
    torch.manual_seed(1)
    graph = Graph(nn.Linear(2, 2), "table", head_of("cross_entropy"))
    graph.standardise((0.0, 0.0), (1.0, 1.0))
    plain = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "schedule": "constant"}
    changed = with_train(experiment, **{**plain, "lr": 0.1, "label_smoothing": 0.0, **settings})
    return Stepper(graph, changed, steps, Team(device=CPU))


def gradients(stepper: Stepper, smoothing: float = 0.0) -> list[Tensor]:
    output = stepper.graph.network(INPUTS)
    loss = nn.functional.cross_entropy(output, LABELS, label_smoothing=smoothing)
    return list(torch.autograd.grad(loss, list(stepper.graph.parameters())))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_step_goes_down_the_gradient(tiny: Experiment, smoothing: float) -> None:
    stepper = stepper_of(tiny, label_smoothing=smoothing)
    before = [weight.detach().clone() for weight in stepper.graph.parameters()]
    slopes = gradients(stepper, smoothing)
    output, loss = stepper.step(INPUTS, GOAL)
    assert not output.requires_grad
    assert not loss.requires_grad
    for weight, old, slope in zip(stepper.graph.parameters(), before, slopes, strict=True):
        torch.testing.assert_close(weight, old - 0.1 * slope)


def test_a_long_gradient_is_cut_to_the_norm(tiny: Experiment) -> None:
    stepper = stepper_of(tiny, clip=0.01)
    before = [weight.detach().clone() for weight in stepper.graph.parameters()]
    stepper.step(INPUTS, GOAL)
    steps = [old - new for old, new in zip(before, stepper.graph.parameters(), strict=True)]
    length = torch.cat([step.flatten() for step in steps]).norm().item()
    assert length == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_short_gradient_is_not_cut(tiny: Experiment) -> None:
    clipped, plain = stepper_of(tiny, clip=1000), stepper_of(tiny)
    clipped.step(INPUTS, GOAL)
    plain.step(INPUTS, GOAL)
    for one, other in zip(clipped.graph.parameters(), plain.graph.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_moving_average_follows_the_weights(tiny: Experiment) -> None:
    stepper = stepper_of(tiny, ema=0.75)
    stepper.step(INPUTS, GOAL)
    first = stepper.graph.network.weight.detach().clone()
    stepper.step(INPUTS, GOAL)
    second = stepper.graph.network.weight.detach()
    torch.testing.assert_close(stepper.served().network.weight, 0.75 * first + 0.25 * second)


def test_the_moving_average_is_torchs_own(tiny: Experiment) -> None:
    loop = make(tiny)
    loop.stepper.graph.network.register_buffer("steps", torch.tensor(4))
    ours = MovingAverage(loop.stepper.graph, 0.9)
    theirs = AveragedModel(
        loop.stepper.graph, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    for _ in range(3):
        run(loop, 1)
        loop.stepper.graph.network.steps += 10
        ours.update_parameters(loop.stepper.graph)
        theirs.update_parameters(loop.stepper.graph)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_a_line_search_reaches_the_bottom(tiny: Experiment) -> None:
    stepper = stepper_of(tiny, optimizer="lbfgs", lr=1.0)
    losses = [float(stepper.step(INPUTS, GOAL)[1]) for _ in range(4)]
    assert losses[-1] < 0.01 < losses[0]
    assert stepper.graph.head.predicted(stepper.graph.network(INPUTS)).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules(tiny: Experiment, schedule: str, rates: list[float]) -> None:
    stepper = stepper_of(tiny, steps=4, lr=2.0, schedule=schedule)
    found = []
    for _ in range(4):
        found.append(stepper.lr / 2.0)
        stepper.step(INPUTS, GOAL)
    assert found == pytest.approx(rates, rel=1e-5)


def test_one_cycle_goes_up_to_the_peak_and_down(tiny: Experiment) -> None:
    stepper = stepper_of(tiny, steps=20, lr=2.0, schedule="onecycle")
    found = []
    for _ in range(20):
        found.append(stepper.lr)
        stepper.step(INPUTS, GOAL)
    peak = found.index(max(found))
    assert max(found) == pytest.approx(2.0, rel=0.05)
    assert 0 < peak < 10
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_each_optimizer_has_its_settings(tiny: Experiment) -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    wanted = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "muon": "Muon"}
    for name, kind in wanted.items():
        config = with_train(tiny, optimizer=name, momentum=0.5, weight_decay=0.25, lr=0.125).train
        optimizer = make_optimizer(weights, config)
        group = optimizer.param_groups[0]
        assert type(optimizer).__name__ == kind
        assert (group["lr"], group["weight_decay"]) == (0.125, 0.25)
        assert group["momentum"] == 0.5 if "momentum" in group else group["betas"] == (0.5, 0.99)
        assert make_scheduler(optimizer, config, 10).get_last_lr()[0] <= 0.125
    assert make_optimizer(weights, with_train(tiny, optimizer="sgd").train).defaults["nesterov"]


def test_compiling_needs_a_compiler(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"digits-cnn\.train\.compile: .* no no-such-compiler;"):
        stepper_of(tiny, compile=True)


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_network_learns_the_same(ready: Path, params: Params, tmp_path: Path) -> None:
    experiment = params.experiment("digits-mlp")
    settings = {**experiment.model.settings, "hidden": [16], "dropout": 0}
    short = with_train(experiment, epochs=1)
    short = replace(short, model=replace(short.model, settings=settings))
    plain = train(ready, short, tmp_path / "plain")
    compiled = train(ready, with_train(short, compile=True), tmp_path / "compiled")
    assert compiled.history[0].loss == pytest.approx(plain.history[0].loss, rel=1e-3)
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    found = load_file(tmp_path / "compiled" / "model.safetensors")
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-3, rtol=1e-3)
