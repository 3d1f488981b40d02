"""The training loop itself: epochs, batches, validation, and how one goes on after a stop.

Every random draw of an epoch comes from the seed and the epoch's number, so that a resumed
training draws what an uninterrupted one would have drawn.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.config.experiment import Experiment, TrainConfig
from pipeline.errors import DivergedError
from pipeline.network.graph import Graph
from pipeline.records.train import Epoch, best_of
from pipeline.training.augment import augment, draw
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.distributed import Team
from pipeline.training.evaluation import DeviceRows, evaluate
from pipeline.training.step import Stepper

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


class TrainingLoop:
    """A graph and its optimizer on the way through the epochs."""

    def __init__(
        self,
        graph: Graph,
        experiment: Experiment,
        train: DeviceRows,
        validation: DeviceRows,
        team: Team,
    ) -> None:
        """Train on the device that the graph and the rows are on, which is the team's.

        Raises ConfigError for settings that this machine or this team cannot follow.
        """
        self.config: TrainConfig = experiment.train
        self.name = experiment.name
        self.epochs = experiment.epochs
        self.team = team
        self.graph = graph
        self.train_rows, self.validation_rows = train, validation
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
    def ended(self) -> bool:
        """Whether there is no epoch left to run."""
        return self.stopped or len(self.history) >= self.epochs

    def run_epoch(self, bar: "tqdm[Any]") -> Epoch:
        """Train one epoch more, validate, and keep the weights if none were better.

        Raises DivergedError when a loss is not a number.
        """
        number = len(self.history) + 1
        start = time.perf_counter()
        tally = self._train(number, bar)
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
        self.stepper.restore(
            {
                "average": checkpoint.average,
                "optimizer": checkpoint.optimizer,
                "scheduler": checkpoint.scheduler,
            }
        )
        self.history = [Epoch(**epoch) for epoch in checkpoint.history]
        self.best_epoch = best_of(self.history)
        self.best = {key: value.to(self.team.device) for key, value in checkpoint.best.items()}

    def _train(self, number: int, bar: "tqdm[Any]") -> _Tally:
        """One pass over the training rows, all draws of which are of the global batches."""
        seed = self.config.seed * 100_003 + number
        torch.manual_seed(seed + 2**40 * self.team.rank)  # dropout draws from it
        generator = torch.Generator().manual_seed(seed)
        rows = self.steps * self.batch_size
        order = torch.randperm(len(self.train_rows), generator=generator)[:rows]
        draws = draw(rows, self.config.augment, generator).to(self.team.device, non_blocking=True)
        tally = _Tally(
            torch.zeros(self.steps, device=self.team.device),
            torch.zeros((), dtype=torch.int64, device=self.team.device),
            [],
        )
        self.graph.train()
        for batch, labels in self.train_rows.batches(order, self.batch_size, self.part):
            self._step(batch, labels, draws, tally)
            bar.update(self.batch_size)
            self._look(tally, number, bar)
        self.team.total(tally.hits)
        self.team.total(tally.losses).div_(self.team.size)
        self._check(tally.losses, tally.lrs, number)
        return tally

    def _step(self, batch: Tensor, labels: Tensor, draws: Tensor, tally: _Tally) -> None:
        step = len(tally.lrs)
        drawn = draws[step * self.batch_size : (step + 1) * self.batch_size][self.part]
        values = augment(self.graph.values(batch), self.config.augment, drawn)
        tally.lrs.append(self.stepper.lr)
        output, tally.losses[step] = self.stepper.step(self.graph.inputs(values), labels)
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
        content = b""
        rows = self.steps * self.batch_size
        if self.team.leads:
            checked = evaluate(self.stepper.served(), self.validation_rows)
            epoch = Epoch(
                epoch=number,
                lr=lr,
                loss=loss,
                accuracy=None if checked.accuracy is None else hits / rows,
                validation_loss=checked.loss,
                validation_accuracy=checked.accuracy,
                seconds=seconds,
                rows_per_second=rows / seconds,
            )
            if self.team.size == 1:
                return epoch
            content = json.dumps(asdict(epoch)).encode()
        return Epoch(**json.loads(self.team.share(content)))
