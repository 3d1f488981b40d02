"""One step of the optimizer, held against what torch does by hand."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from training import run, with_train

from pipeline.config.experiment import Experiment, Params
from pipeline.errors import ConfigError
from pipeline.network.graph import Graph, head_of
from pipeline.training.distributed import Team
from pipeline.training.loop import Stepper, make_optimizer, make_scheduler

ALONE = Team(device=torch.device("cpu"))
INPUTS = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
LABELS = torch.tensor([0, 1, 1])


def make(experiment: Experiment, steps: int = 10, **settings: Any) -> Stepper:
    torch.manual_seed(1)
    graph = Graph(nn.Linear(2, 2), "table", head_of("cross_entropy"))
    graph.standardise((0.0, 0.0), (1.0, 1.0))
    plain = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "schedule": "constant"}
    changed = with_train(experiment, **{**plain, "lr": 0.1, "label_smoothing": 0.0, **settings})
    return Stepper(graph, changed, steps, ALONE)


def gradients(stepper: Stepper, smoothing: float = 0.0) -> list[Tensor]:
    output = stepper.graph.network(INPUTS)
    loss = nn.functional.cross_entropy(output, LABELS, label_smoothing=smoothing)
    return list(torch.autograd.grad(loss, list(stepper.graph.parameters())))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_step_goes_down_the_gradient(tiny: Experiment, smoothing: float) -> None:
    stepper = make(tiny, label_smoothing=smoothing)
    before = [weight.detach().clone() for weight in stepper.graph.parameters()]
    slopes = gradients(stepper, smoothing)
    output, loss = stepper.step(INPUTS, LABELS)
    assert not output.requires_grad
    assert not loss.requires_grad
    for weight, old, slope in zip(stepper.graph.parameters(), before, slopes, strict=True):
        torch.testing.assert_close(weight, old - 0.1 * slope)


def test_a_long_gradient_is_cut_to_the_norm(tiny: Experiment) -> None:
    stepper = make(tiny, clip=0.01)
    before = [weight.detach().clone() for weight in stepper.graph.parameters()]
    stepper.step(INPUTS, LABELS)
    steps = [old - new for old, new in zip(before, stepper.graph.parameters(), strict=True)]
    length = torch.cat([step.flatten() for step in steps]).norm().item()
    assert length == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_short_gradient_is_not_cut(tiny: Experiment) -> None:
    clipped, plain = make(tiny, clip=1000), make(tiny)
    clipped.step(INPUTS, LABELS)
    plain.step(INPUTS, LABELS)
    for one, other in zip(clipped.graph.parameters(), plain.graph.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_moving_average_follows_the_weights(tiny: Experiment) -> None:
    stepper = make(tiny, ema=0.75)
    stepper.step(INPUTS, LABELS)
    first = stepper.graph.network.weight.detach().clone()
    stepper.step(INPUTS, LABELS)
    second = stepper.graph.network.weight.detach()
    torch.testing.assert_close(stepper.served().network.weight, 0.75 * first + 0.25 * second)


def test_a_line_search_reaches_the_bottom(tiny: Experiment) -> None:
    stepper = make(tiny, optimizer="lbfgs", lr=1.0)
    losses = [float(stepper.step(INPUTS, LABELS)[1]) for _ in range(4)]
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
    stepper = make(tiny, steps=4, lr=2.0, schedule=schedule)
    found = []
    for _ in range(4):
        found.append(stepper.lr / 2.0)
        stepper.step(INPUTS, LABELS)
    assert found == pytest.approx(rates, rel=1e-5)


def test_one_cycle_goes_up_to_the_peak_and_down(tiny: Experiment) -> None:
    stepper = make(tiny, steps=20, lr=2.0, schedule="onecycle")
    found = []
    for _ in range(20):
        found.append(stepper.lr)
        stepper.step(INPUTS, LABELS)
    peak = found.index(max(found))
    assert max(found) == pytest.approx(2.0, rel=0.05)
    assert 0 < peak < 10
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_each_optimizer_is_torchs_with_its_settings(tiny: Experiment) -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    wanted = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
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
        make(tiny, compile=True)


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_network_learns_the_same(ready: Path, params: Params, tmp_path: Path) -> None:
    experiment = params.experiment("digits-mlp")
    settings = {**experiment.model.settings, "hidden": [16], "dropout": 0}
    short = with_train(experiment, epochs=1)
    short = replace(short, model=replace(short.model, settings=settings))
    plain = run(ready, short, tmp_path / "plain")
    compiled = run(ready, with_train(short, compile=True), tmp_path / "compiled")
    assert compiled.history[0].loss == pytest.approx(plain.history[0].loss, rel=1e-3)
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    found = load_file(tmp_path / "compiled" / "model.safetensors")
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-3, rtol=1e-3)
