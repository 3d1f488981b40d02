"""One step of a training: the loss, its gradient, the optimizer, the schedule, the moving average.

The optimizers and schedules of params.yaml are torch's own; here they get their options. On CUDA no
step reads a value back, so that the host runs ahead of the GPU; only lbfgs must.
"""

import math
import os
import shutil
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config.experiment import Experiment, TrainConfig
from pipeline.errors import ConfigError
from pipeline.network.graph import Graph
from pipeline.training.distributed import Team


class Stepper:
    """A graph with all that moves its weights."""

    def __init__(self, graph: Graph, experiment: Experiment, steps: int, team: Team) -> None:
        """Take `steps` steps in all, on the device that the graph is on.

        Raises ConfigError where the network is to be compiled and no compiler is found.
        """
        self.config: TrainConfig = experiment.train
        self.graph = graph
        self.team = team
        self.network = team.parallel(graph.network)
        if self.config.compile:
            _require_compiler(team.device, experiment.name)
            self.network = cast("nn.Module", torch.compile(self.network))
        self.optimizer = make_optimizer(graph.parameters(), self.config)
        self.scheduler = make_scheduler(self.optimizer, self.config, steps)
        self.precision = _precision(team.device, self.config)
        self.scaler = torch.amp.GradScaler(
            team.device.type, enabled=self.precision == torch.float16
        )
        self.average = _average(graph, self.config.ema)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def served(self) -> Graph:
        """The graph whose weights are kept: the moving average where there is one."""
        return self.graph if self.average is None else cast("Graph", self.average.module)

    def step(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Move the weights once; returns the network's output and the loss, both detached."""
        if isinstance(self.optimizer, LBFGS):
            output, loss = self._search(self.optimizer, inputs, labels)
        else:
            output, loss = self._forward(inputs, labels)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            if self.config.clip:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.graph.parameters(), self.config.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.scheduler.step()
        if self.average:
            self.average.update_parameters(self.graph)
        return output.detach(), loss.detach()

    def state(self) -> dict[str, Any]:
        """What the next step depends on, besides the weights; see `restore`."""
        return {
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() | {"scaler": self.scaler.state_dict()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of a stepper of the same settings."""
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        match_layouts(self.optimizer)
        schedule = dict(state["scheduler"])
        self.scaler.load_state_dict(schedule.pop("scaler"))
        self.scheduler.load_state_dict(schedule)

    def _forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        half = self.precision != torch.float32
        with torch.autocast(self.team.device.type, self.precision, enabled=half):
            output: Tensor = self.network(inputs)
            smoothing = self.config.label_smoothing
            return output, self.graph.head.loss(output, inputs, labels, smoothing)

    def _search(self, optimizer: LBFGS, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Search along a line, which asks for the loss several times; returns the first answers."""
        # Each asks for the same units dropped, else the line would not be one.
        seed = int(torch.randint(2**31, ()))
        outputs: list[Tensor] = []

        def closure() -> float:
            torch.manual_seed(seed)
            optimizer.zero_grad(set_to_none=True)
            output, loss = self._forward(inputs, labels)
            loss.backward()
            outputs.append(output)
            value = float(self.team.total(loss.detach().clone())) / self.team.size
            if math.isnan(value):
                raise _LostError
            return value

        try:
            loss = float(optimizer.step(closure))
        except _LostError:
            loss = math.nan
        return outputs[0], torch.tensor(loss, device=inputs.device)


def make_optimizer(weights: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Make the optimizer that `config` names.

    The fused forms walk all weights at once and read no value back from a GPU, not even where the
    loss is scaled for half precision.
    """
    lr, decay, momentum = config.lr, config.weight_decay, config.momentum
    betas = (momentum, 0.99)
    match config.optimizer:
        case "sgd":
            nesterov = momentum > 0
            return torch.optim.SGD(
                weights, lr, momentum, weight_decay=decay, nesterov=nesterov, fused=True
            )
        case "adam":
            return torch.optim.Adam(weights, lr, betas, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(weights, lr, betas, weight_decay=decay, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(weights, lr, momentum=momentum, weight_decay=decay)
        case "lbfgs":
            return torch.optim.LBFGS(weights, lr, line_search_fn="strong_wolfe")


def make_scheduler(
    optimizer: Optimizer, config: TrainConfig, steps: int
) -> lr_scheduler.LRScheduler:
    """Make the schedule that `config` names, over all `steps` of the training."""
    match config.schedule:
        case "onecycle":
            # One step more than there are: OneCycleLR refuses to be asked after its last one.
            return lr_scheduler.OneCycleLR(
                optimizer, config.lr, total_steps=steps + 1, cycle_momentum=False
            )
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        case "linear":
            return lr_scheduler.LinearLR(optimizer, 1.0, end_factor=0.0, total_iters=steps)
        case "constant":
            return lr_scheduler.ConstantLR(optimizer, 1.0)


def match_layouts(optimizer: Optimizer) -> None:
    """Lay moments out in memory as their weights are.

    A file keeps rows in order and the weights are channels last; torch's fused optimizers walk both
    by address and would pair the wrong elements.
    """
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[key] = torch.empty_like(weight).copy_(value)


class _LostError(ArithmeticError):
    """A search that came to where the loss is not a number, from where it would not find back."""


def _require_compiler(device: torch.device, name: str) -> None:
    variable, command = ("CC", "gcc") if device.type == "cuda" else ("CXX", "g++")
    if not shutil.which(os.environ.get(variable, command)):
        raise ConfigError(
            f"experiments.{name}.train.compile: torch.compile needs a compiler and there is no "
            f"{os.environ.get(variable, command)}; install one, name it in {variable}, or set "
            f"compile: false"
        )


def _precision(device: torch.device, config: TrainConfig) -> torch.dtype:
    """What the forward pass computes in: half precision on CUDA, as the card has it.

    Not for lbfgs, whose line search compares losses that differ in their last digits.
    """
    if device.type != "cuda" or config.optimizer == "lbfgs":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _average(graph: Graph, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    return AveragedModel(graph, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
