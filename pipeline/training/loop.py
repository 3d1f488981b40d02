"""The training loop itself: epochs, batches, validation, and how one goes on after a stop.

Every random draw of an epoch comes from the seed and the epoch's number, so that a resumed training
draws what an uninterrupted one would have drawn.

A whole batch of images is changed at once, on its device: shift, turn, size, side, gap. All draws
are taken on the CPU beforehand, so that no step waits for a GPU.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from pipeline.config.experiment import AugmentConfig, Experiment, TrainConfig
from pipeline.errors import DivergedError
from pipeline.network.graph import Graph
from pipeline.records.train import Epoch, best_of
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.distributed import Team
from pipeline.training.evaluation import DeviceRows, evaluate
from pipeline.training.step import Stepper

DRAWS = 7
"""Of an image: shift down and right, turn, size, side, and the middle of what is blanked."""


def draw(rows: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw what changes each of `rows` images: float32 [rows, 7] from 0 to 1, on the CPU.

    The same seed gives the same changes on every device. Where nothing is to change no draw is
    taken, and the result is [rows, 0].
    """
    return torch.rand(rows, DRAWS if _changes(config) else 0, generator=generator)


def augment(planes: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Change each image in its own random way; what comes in from outside is 0, as is a gap.

    `planes` is raw float32 [batch, C, H, W] and so is the result. `draws` is float32 [batch, 7], as
    `draw` makes it, on the device of the planes.
    """
    if not _changes(config):
        return planes
    if config.rotate or config.scale:
        planes = _transform(planes, config, draws)
    elif config.translate or config.flip:
        planes = _move(planes, config, draws)
    if config.cutout:
        planes = _blank(planes, config.cutout, draws)
    return planes


def _changes(config: AugmentConfig) -> bool:
    return bool(config.translate or config.rotate or config.scale or config.flip or config.cutout)


def _shifts(config: AugmentConfig, draws: Tensor) -> Tensor:
    """Whole pixels down and right, each as likely as the others: float32 [2, batch]."""
    return (draws[:, :2].T * (2 * config.translate + 1)).floor() - config.translate


def _mirrored(config: AugmentConfig, draws: Tensor) -> Tensor:
    return draws[:, 4] < (0.5 if config.flip else 0.0)


def _move(planes: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Shift by whole pixels and mirror: on a CPU several times as fast as sampling along a grid."""
    batch, channels, height, width = planes.shape
    edge, device = config.translate, planes.device
    padded = functional.pad(planes.permute(0, 2, 3, 1), (0, 0, edge, edge, edge, edge))
    down, right = _shifts(config, draws).long()
    columns = torch.arange(width, device=device)
    columns = torch.where(_mirrored(config, draws)[:, None], columns.flip(0), columns)
    columns = columns + (edge - right)[:, None]
    rows = torch.arange(height, device=device) + (edge - down)[:, None]
    images = torch.arange(batch, device=device)[:, None, None]
    lines = images * (height + 2 * edge) + rows[:, :, None]
    pixels = lines * (width + 2 * edge) + columns[:, None, :]
    moved = padded.reshape(-1, channels).index_select(0, pixels.flatten())
    return moved.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _transform(planes: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Sample along a grid that is shifted, turned, stretched and mirrored."""
    _, _, height, width = planes.shape
    maps = _affine_maps(planes.shape, config, draws)[..., None, None]
    x, y = (_middles(side, planes.device) for side in (width, height))
    # Twice as fast as `affine_grid`, which multiplies matrices.
    grid = torch.addcmul(maps[:, :, 1] * y[:, None] + maps[:, :, 2], maps[:, :, 0], x)
    return functional.grid_sample(planes, grid.permute(0, 2, 3, 1), align_corners=False)


def _affine_maps(shape: torch.Size, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Affine maps [batch, 2, 3] in the units of `grid_sample`, in which an image spans 2."""
    _, _, height, width = shape
    turn, size = (draws[:, 2:4].T * 2 - 1).unbind()
    turn = turn * math.radians(config.rotate)
    zoom = 1 + size * config.scale
    cosine, sine = zoom * turn.cos(), zoom * turn.sin()
    side = torch.where(_mirrored(config, draws), -1.0, 1.0)
    down, right = _shifts(config, draws)
    top = torch.stack([side * cosine, -sine * height / width, -right * 2 / width], dim=1)
    bottom = torch.stack([side * sine * width / height, cosine, -down * 2 / height], dim=1)
    return torch.stack([top, bottom], dim=1)


def _middles(side: int, device: torch.device) -> Tensor:
    """Where the middles of the pixels along one side are, from -1 to 1."""
    return (torch.arange(side, device=device) * 2 + 1) / side - 1


def _blank(planes: Tensor, side: int, draws: Tensor) -> Tensor:
    """Set a square to 0, whose middle is any pixel: what of it is outside blanks nothing."""
    height, width = planes.shape[2:]
    rows = _outside(height, side, draws[:, 5])
    columns = _outside(width, side, draws[:, 6])
    return planes * (rows[:, :, None] | columns[:, None, :])[:, None]


def _outside(length: int, side: int, drawn: Tensor) -> Tensor:
    """Which pixels of an axis the square leaves: bool [batch, length]."""
    start = (drawn * length).floor() - side // 2
    offset = torch.arange(length, device=drawn.device) - start[:, None]
    return (offset < 0) | (offset >= side)


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
