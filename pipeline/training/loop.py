"""The training loop: epochs, batches, steps, validation, and how one goes on after a stop.

Every random draw of an epoch comes from the seed and the epoch's number, so that a resumed training
draws what an uninterrupted one would have drawn. The optimizers and schedules of params.yaml are
torch's own; here they get their options. On CUDA no step reads a value back, so that the host runs
ahead of the GPU; only lbfgs must.
"""

import math
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from pipeline.config.experiment import Experiment, TrainConfig
from pipeline.errors import ConfigError, DivergedError
from pipeline.models.parts.graph import Distillable, Graph
from pipeline.records.train import Epoch, best_of
from pipeline.training.batches import DeviceRows, augment, draw, evaluate, resized, view_draws
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.distributed import Team
from pipeline.training.muon import Muon

STEPS_BETWEEN_CHECKS = 25
"""How often the loss is read back on a CPU. A GPU would have to wait: there it is once an epoch."""


@dataclass(slots=True)
class _Tally:
    """What the steps of one epoch gave, kept on the device."""

    losses: Tensor
    """float32 [steps]."""
    hits: Tensor
    """int64 [], rows answered rightly."""
    lrs: list[float]
    """Of each step that is done."""


class Goal(NamedTuple):
    """What the network should answer to a batch."""

    labels: Tensor
    taught: Tensor | None = None
    """The teacher's logits, where there is a teacher."""


class TrainingLoop:
    """A graph and its optimizer on the way through the epochs."""

    def __init__(
        self,
        graph: Graph,
        experiment: Experiment,
        train: DeviceRows,
        validation: DeviceRows,
        team: Team,
        taught: Tensor | None = None,
    ) -> None:
        """Train on the device that the graph and the rows are on, which is the team's.

        `taught` are the teacher's logits, where there is one: [views, rows, classes]. Raises
        ConfigError for settings that this machine or this team cannot follow.
        """
        self.config: TrainConfig = experiment.train
        self.name = experiment.name
        self.epochs = experiment.epochs
        self.team = team
        self.graph = graph
        self.train_rows, self.validation_rows = train, validation
        self.taught = taught
        self.batch_size = min(self.config.batch_size, len(train))
        self.steps = len(train) // self.batch_size
        self.part = team.part(self.batch_size, where=f"experiments.{self.name}")
        if self.config.optimizer != "lbfgs":  # which views all gradients as one row of numbers
            graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
        self.stepper = Stepper(graph, experiment, self.steps * experiment.epochs, team)
        self.history: list[Epoch] = []
        self.best = self.weights()
        self.best_epoch: Epoch | None = None
        """The epoch whose weights are kept: the first of the best ones on validation."""

    @property
    def stopped(self) -> bool:
        """Whether the last epochs brought nothing better on validation, as many as allowed."""
        if not self.config.early_stop or self.best_epoch is None:
            return False
        return len(self.history) - self.best_epoch.epoch >= self.config.early_stop

    @property
    def side(self) -> int | None:
        """Of the images of the next epoch, in pixels; None for images as they are."""
        sides = (*self.config.sides, None)
        part = len(self.history) * len(sides) // self.epochs
        return sides[min(part, len(sides) - 1)]

    @property
    def ended(self) -> bool:
        """Whether there is no epoch left to run."""
        return self.stopped or len(self.history) >= self.epochs

    def run_epoch(self, bar: "tqdm[Any] | None" = None) -> Epoch:
        """Train one epoch more, validate, and keep the weights if none were better.

        A `bar` of rows goes on with every batch. Raises DivergedError when a loss is not a number.
        """
        number = len(self.history) + 1
        start = time.perf_counter()
        tally = self._train(number, tqdm(disable=True) if bar is None else bar)
        loss, hits = float(tally.losses.mean()), int(tally.hits)  # a GPU is waited for here
        seconds = time.perf_counter() - start
        epoch = self._validated(number, loss, hits, tally.lrs[-1], seconds)
        if not math.isfinite(epoch.validation_loss):
            raise self._diverged(
                "validation loss", epoch.validation_loss, f"epoch {number}", epoch.lr
            )
        if self.best_epoch is None or epoch.rank > self.best_epoch.rank:
            self.best, self.best_epoch = self.weights(), epoch
        self.history.append(epoch)
        return epoch

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that are kept."""
        return {key: value.clone() for key, value in self.stepper.served().state_dict().items()}

    def checkpoint(self, fingerprint: str, run_id: str | None) -> Checkpoint:
        """All that the next epoch depends on."""
        return Checkpoint(
            fingerprint=fingerprint,
            history=[asdict(epoch) for epoch in self.history],
            run_id=run_id,
            model=self.graph.state_dict(),
            best=self.best,
            **self.stepper.state(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on after the checkpoint's last epoch."""
        self.graph.load_state_dict(checkpoint.model)
        self.stepper.restore(checkpoint)
        self.history = [Epoch(**epoch) for epoch in checkpoint.history]
        self.best_epoch = best_of(self.history) if self.history else None
        self.best = {key: value.to(self.team.device) for key, value in checkpoint.best.items()}

    def _train(self, number: int, bar: "tqdm[Any]") -> _Tally:
        """One pass over the training rows, all draws of which are of the global batches."""
        seed = self.config.seed * 100_003 + number
        torch.manual_seed(seed + 2**40 * self.team.rank)  # dropout draws from it
        generator = torch.Generator().manual_seed(seed)
        rows = self.steps * self.batch_size
        order = torch.randperm(len(self.train_rows), generator=generator)[:rows]
        taught: Tensor | None = None
        if self.taught is None:
            draws = draw(rows, self.config.augment, generator)
        else:
            view = (number - 1) % len(self.taught)
            draws = view_draws(len(self.train_rows), self.config.augment, view)[order]
            taught = self.taught[view, order].to(self.team.device, non_blocking=True)
        draws = draws.to(self.team.device, non_blocking=True)
        tally = _Tally(
            torch.zeros(self.steps, device=self.team.device),
            torch.zeros((), dtype=torch.int64, device=self.team.device),
            [],
        )
        self.graph.train()
        for batch, labels in self.train_rows.batches(order, self.batch_size, self.part):
            self._step(batch, labels, draws, taught, tally)
            bar.update(self.batch_size)
            self._look(tally, number, bar)
        self.team.total(tally.hits)
        self.team.total(tally.losses).div_(self.team.size)
        self._check(tally.losses, tally.lrs, number)
        return tally

    def _step(
        self, batch: Tensor, labels: Tensor, draws: Tensor, taught: Tensor | None, tally: _Tally
    ) -> None:
        step = len(tally.lrs)
        here = slice(step * self.batch_size, (step + 1) * self.batch_size)
        values = augment(self.graph.values(batch), self.config.augment, draws[here][self.part])
        if side := self.side:
            values = resized(values, side)
        tally.lrs.append(self.stepper.lr)
        goal = Goal(labels, None if taught is None else taught[here][self.part])
        output, tally.losses[step] = self.stepper.step(self.graph.inputs(values), goal)
        predicted = self.graph.head.predicted(output)
        if predicted is not None:
            tally.hits += (predicted == labels).sum()

    def _look(self, tally: _Tally, number: int, bar: "tqdm[Any]") -> None:
        """Read the loss back where that costs nothing, and stop early when it is not a number."""
        done = len(tally.lrs)
        if self.team.device.type == "cuda" or self.team.size > 1 or done % STEPS_BETWEEN_CHECKS:
            return
        self._check(tally.losses[:done], tally.lrs, number)
        bar.set_postfix(loss=f"{tally.losses[done - 1]:.3f}", refresh=False)

    def _check(self, losses: Tensor, lrs: list[float], number: int) -> None:
        finite = losses.isfinite()
        if finite.all():
            return
        step = int((~finite).nonzero()[0])
        place = f"epoch {number}, step {step + 1} of {self.steps}"
        raise self._diverged("loss", float(losses[step]), place, lrs[step])

    def _diverged(self, what: str, value: float, place: str, lr: float) -> DivergedError:
        return DivergedError(
            f"{self.name}: the {what} is {value} at {place}, learning rate {lr:.2e}; "
            f"lower experiments.{self.name}.train.lr (now {self.config.lr:.1e})"
        )

    def _validated(self, number: int, loss: float, hits: int, lr: float, seconds: float) -> Epoch:
        """The record of an epoch; the lead validates, and every process gets the same record."""
        measured: Epoch | None = None
        rows = self.steps * self.batch_size
        if self.team.leads:
            checked = evaluate(self.stepper.served(), self.validation_rows)
            measured = Epoch(
                epoch=number,
                lr=lr,
                loss=loss,
                accuracy=None if checked.accuracy is None else hits / rows,
                validation_loss=checked.loss,
                validation_accuracy=checked.accuracy,
                seconds=seconds,
                rows_per_second=rows / seconds,
            )
        epoch: Epoch = self.team.share(measured)
        return epoch


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
        self.average = MovingAverage(graph, self.config.ema) if self.config.ema else None

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def served(self) -> Graph:
        """The graph whose weights are kept: the moving average where there is one."""
        return self.graph if self.average is None else cast("Graph", self.average.module)

    def step(self, inputs: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Move the weights once; returns the network's output and the loss, both detached."""
        if isinstance(self.optimizer, LBFGS):
            output, loss = self._search(self.optimizer, inputs, goal)
        else:
            output, loss = self._forward(inputs, goal)
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
        """What the next step depends on besides the weights: fields of a `Checkpoint`."""
        return {
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() | {"scaler": self.scaler.state_dict()},
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from the `state` of a stepper of the same settings."""
        if self.average:
            self.average.load_state_dict(checkpoint.average)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        match_layouts(self.optimizer)
        schedule = dict(checkpoint.scheduler)
        self.scaler.load_state_dict(schedule.pop("scaler"))
        self.scheduler.load_state_dict(schedule)

    def _forward(self, inputs: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        half = self.precision != torch.float32
        with torch.autocast(self.team.device.type, self.precision, enabled=half):
            output: Tensor = self.network(inputs)
            return output, self._loss(output, inputs, goal)

    def _loss(self, output: Tensor, inputs: Tensor, goal: Goal) -> Tensor:
        """That of the labels, and of the teacher's logits by its weight."""
        head, teacher = self.graph.head, self.config.teacher
        loss = head.loss(output, inputs, goal.labels, self.config.label_smoothing)
        if teacher is None or goal.taught is None or not isinstance(head, Distillable):
            return loss
        taught = head.distillation(output, goal.taught, teacher.temperature)
        return taught * teacher.weight + loss * (1 - teacher.weight)

    def _search(self, optimizer: LBFGS, inputs: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Search along a line, which asks for the loss several times; returns the first answers."""
        # Each asks for the same units dropped, else the line would not be one.
        seed = int(torch.randint(2**31, ()))
        outputs: list[Tensor] = []

        def closure() -> float:
            torch.manual_seed(seed)
            optimizer.zero_grad(set_to_none=True)
            output, loss = self._forward(inputs, goal)
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


class MovingAverage(AveragedModel):
    """torch's own of weights and buffers, without its wait for a GPU at every step.

    torch moves its count of the steps to the GPU, which an exponential average does not ask for.
    """

    def __init__(self, graph: Graph, decay: float) -> None:
        self.blend = get_ema_multi_avg_fn(decay)
        super().__init__(graph, multi_avg_fn=self.blend, use_buffers=True)

    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the weights of `model`, as they are after a step."""
        if not self.n_averaged:
            super().update_parameters(model)  # takes them as they are
            return
        kept, new = ([*one.parameters(), *one.buffers()] for one in (self.module, model))
        pairs = [(mine.detach(), its.detach()) for mine, its in zip(kept, new, strict=True)]
        for dtype in {mine.dtype for mine, _ in pairs}:
            alike = [pair for pair in pairs if pair[0].dtype == dtype]
            self.blend([mine for mine, _ in alike], [its for _, its in alike], 0)
        self.n_averaged += 1


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
        case "muon":
            return Muon(weights, lr, momentum, decay)
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
