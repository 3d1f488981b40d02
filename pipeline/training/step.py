"""One step of a training: the loss, its gradient, the optimizer, the schedule, the moving average.

On CUDA no step reads a value back, so that the host runs ahead of the GPU; only lbfgs must.
"""

import math
import os
import shutil
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config import Experiment, TrainConfig
from pipeline.errors import ConfigError
from pipeline.graph import Graph
from pipeline.training.distributed import Team
from pipeline.training.optimizers import make_optimizer, make_scheduler, match_layouts

__all__ = ["Stepper"]


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
