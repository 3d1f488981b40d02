"""The training loop itself: epochs, batches, the loss, the step, and how one goes on after a stop.

Every random draw of an epoch comes from the seed and the epoch's number, so that a resumed
training draws what an uninterrupted one would have drawn.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from pipeline.augment import augment
from pipeline.checkpoint import Checkpoint
from pipeline.classifier import Classifier
from pipeline.config import Experiment, TrainConfig
from pipeline.epoch import Epoch
from pipeline.errors import DivergedError
from pipeline.ready import Split

__all__ = ["Epoch", "Evaluation", "Loop", "Rows", "evaluate"]

EVALUATION_BATCH = 1000
STEPS_BETWEEN_CHECKS = 25
"""How often the loss is read back, which makes a GPU wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How a classifier does on one split."""

    loss: float
    """Mean cross-entropy in nats, without label smoothing."""
    accuracy: float
    predicted: Tensor
    """int64 [rows], on the CPU."""


class Rows:
    """A split as tensors on the training device."""

    def __init__(self, split: Split, device: torch.device) -> None:
        """Copy the memory-mapped rows: they are read once per epoch in random order."""
        self.images = torch.from_numpy(split.inputs.copy()).to(device)
        self.labels = torch.from_numpy(split.labels.copy()).to(device)

    def __len__(self) -> int:
        return len(self.labels)


class Loop:
    """A classifier, its optimizer and its schedule on the way through the epochs."""

    def __init__(
        self, classifier: Classifier, experiment: Experiment, train: Split, validation: Split
    ) -> None:
        """Train on the device that the classifier's weights are on."""
        self.config: TrainConfig = experiment.train
        self.name = experiment.name
        self.device = classifier.mean.device
        self.classifier = classifier
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
        self.train_rows = Rows(train, self.device)
        self.validation_rows = Rows(validation, self.device)
        self.batch_size = min(self.config.batch_size, len(self.train_rows))
        self.steps = len(self.train_rows) // self.batch_size
        self.optimizer = _optimizer(classifier, self.config)
        self.scheduler = _scheduler(self.optimizer, self.config, self.steps * experiment.epochs)
        self.precision = _precision(self.device)
        self.scaler = torch.amp.GradScaler(enabled=self.precision == torch.float16)
        self.average = _average(classifier, self.config.ema)
        self.history: list[Epoch] = []
        self.best = self.weights()

    def run_epoch(self, bar: "tqdm[Any]") -> Epoch:
        """Train one epoch more, validate, and keep the weights if none were better.

        Raises DivergedError when the loss is not a number.
        """
        number = len(self.history) + 1
        start = time.perf_counter()
        loss, accuracy = self._train(number, bar)
        seconds = time.perf_counter() - start
        checked = evaluate(self.served(), self.validation_rows)
        epoch = Epoch(
            epoch=number,
            lr=float(self.scheduler.get_last_lr()[0]),
            loss=loss,
            accuracy=accuracy,
            validation_loss=checked.loss,
            validation_accuracy=checked.accuracy,
            seconds=seconds,
            rows_per_second=self.steps * self.batch_size / seconds,
        )
        if not self.history or _rank(epoch) >= max(_rank(done) for done in self.history):
            self.best = self.weights()
        self.history.append(epoch)
        return epoch

    def served(self) -> Classifier:
        """The classifier whose weights are kept: the moving average where there is one."""
        if self.average is None:
            return self.classifier
        return cast("Classifier", self.average.module)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that are kept."""
        return {key: value.clone() for key, value in self.served().state_dict().items()}

    def best_epoch(self) -> Epoch:
        """The epoch whose weights are kept: the last of the most accurate ones on validation."""
        return max(self.history, key=lambda epoch: (*_rank(epoch), epoch.epoch))

    def checkpoint(self, fingerprint: str, run_id: str | None) -> Checkpoint:
        """All that the next epoch depends on."""
        return Checkpoint(
            fingerprint=fingerprint,
            history=[asdict(epoch) for epoch in self.history],
            run_id=run_id,
            model=self.classifier.state_dict(),
            best=self.best,
            average=self.average.state_dict() if self.average else {},
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict() | {"scaler": self.scaler.state_dict()},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on after the checkpoint's last epoch."""
        self.classifier.load_state_dict(checkpoint.model)
        if self.average:
            self.average.load_state_dict(checkpoint.average)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        _match_layouts(self.optimizer)
        schedule = dict(checkpoint.scheduler)
        self.scaler.load_state_dict(schedule.pop("scaler"))
        self.scheduler.load_state_dict(schedule)
        self.history = [Epoch(**epoch) for epoch in checkpoint.history]
        self.best = {key: value.to(self.device) for key, value in checkpoint.best.items()}

    def _train(self, number: int, bar: "tqdm[Any]") -> tuple[float, float]:
        """One pass over the training rows; returns mean loss and accuracy."""
        torch.manual_seed(self.config.seed * 100_003 + number)  # dropout draws from it
        generator = torch.Generator().manual_seed(self.config.seed * 100_003 + number)
        order = torch.randperm(len(self.train_rows), generator=generator).to(self.device)
        losses = torch.zeros(self.steps, device=self.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        self.classifier.train()
        for step in range(self.steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            labels = self.train_rows.labels[rows]
            logits, losses[step] = self._step(self.train_rows.images[rows], labels, generator)
            hits += (logits.argmax(1) == labels).sum()
            bar.update(len(rows))
            if step % STEPS_BETWEEN_CHECKS == 0 or step == self.steps - 1:
                self._check(losses[: step + 1], number)
                seen = (step + 1) * self.batch_size
                bar.set_postfix(loss=f"{losses[step]:.3f}", accuracy=f"{hits / seen:.4f}")
        return float(losses.mean()), float(hits) / (self.steps * self.batch_size)

    def _step(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """One step of the optimizer; returns the logits and the loss, both detached."""
        planes = augment(self.classifier.planes(images), self.config.augment, generator)
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            logits = self.classifier.logits(planes)
            loss = functional.cross_entropy(
                logits, labels, label_smoothing=self.config.label_smoothing
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.average:
            self.average.update_parameters(self.classifier)
        return logits.detach(), loss.detach()

    def _check(self, losses: Tensor, number: int) -> None:
        if losses.isfinite().all():
            return
        step = int((~losses.isfinite()).nonzero()[0])
        raise DivergedError(
            f"{self.name}: the loss is {float(losses[step])} at epoch {number}, step {step + 1} of "
            f"{self.steps}, learning rate {self.scheduler.get_last_lr()[0]:.2e}; "
            f"lower experiments.{self.name}.train.lr (now {self.config.lr:.1e})"
        )


def evaluate(classifier: Classifier, rows: Rows) -> Evaluation:
    """Loss and accuracy in full precision and in evaluation mode."""
    was_training = classifier.training
    classifier.eval()
    losses, predicted = [], []
    with torch.inference_mode():
        for start in range(0, len(rows), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            logits, _ = classifier(rows.images[part])
            losses.append(functional.cross_entropy(logits, rows.labels[part], reduction="sum"))
            predicted.append(logits.argmax(1))
    classifier.train(was_training)
    classes = torch.cat(predicted)
    return Evaluation(
        loss=float(torch.stack(losses).sum()) / len(rows),
        accuracy=float((classes == rows.labels).sum()) / len(rows),
        predicted=classes.cpu(),
    )


def _rank(epoch: Epoch) -> tuple[float, float]:
    return epoch.validation_accuracy, -epoch.validation_loss


def _optimizer(classifier: Classifier, config: TrainConfig) -> torch.optim.Optimizer:
    weights = classifier.parameters()
    lr, decay, momentum = config.lr, config.weight_decay, config.momentum
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(
                weights, lr, momentum=momentum, nesterov=momentum > 0, weight_decay=decay
            )
        case "adam":
            return torch.optim.Adam(
                weights, lr, betas=(momentum, 0.99), weight_decay=decay, fused=True
            )
        case "adamw":
            return torch.optim.AdamW(
                weights, lr, betas=(momentum, 0.99), weight_decay=decay, fused=True
            )
        case "rmsprop":
            return torch.optim.RMSprop(weights, lr, momentum=momentum, weight_decay=decay)


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Lay moments out in memory as their weights are.

    A file keeps rows in order and the weights are channels last; torch's fused optimizers walk both
    by address and would pair the wrong elements.
    """
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            if value.shape == weight.shape:
                state[key] = torch.empty_like(weight).copy_(value)


def _scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    # One step more than there are: OneCycleLR refuses to be asked after its last one.
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=steps + 1, cycle_momentum=False
    )


def _precision(device: torch.device) -> torch.dtype:
    """What the forward pass computes in: half precision on CUDA, as the card has it."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _average(classifier: Classifier, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    return AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
