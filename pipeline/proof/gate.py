"""What a gate looks at, and whether a model meets it.

`QUANTITIES` is the one list: the limits of params.yaml, the worst of each quantity in a report, the
verdict and the columns of the tables follow from it. A new quantity is an entry of that list, a
limit of `GateConfig` and a figure of `VariantParity`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.experiment import LIMITS_OF_CLASSES, GateConfig
from pipeline.records.parity import BatchDifference, Cell, OutputDifference, VariantParity
from serving.console import DASH
from serving.runtime.settings import Level
from serving.runtime.tensors import LOGITS, PROBABILITIES

SHIPPED: Level = "all"
"""The level of optimization that sessions have unless they are asked for another."""
DIGITS = 9
"""Of an accuracy loss: beyond them a difference of two shares is rounding, and no loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the quantities of a gate are taken from."""

    cells: Sequence[Cell]
    rows: int
    """Of the whole set: a loss of accuracy on a sample is chance."""
    batches: Sequence[BatchDifference] = ()
    kernels: Sequence[OutputDifference] = ()
    """How far the answers of optimized kernels are from those of the graph as it is written."""


@dataclass(frozen=True, slots=True)
class Worst:
    """The worst value of a quantity."""

    value: float
    words: str
    """What a message says behind the value: the tensor, the place and how the model was run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateQuantity:
    """One quantity that is measured, and that a gate may limit."""

    name: str
    """The field of `VariantParity` that has the worst value."""
    worst: Callable[[Evidence], Worst | None]
    """None where there is nothing to measure."""
    title: str
    """What a page calls it."""
    heading: str = ""
    """Of its column in the tables of a terminal; "" for no column."""
    form: str = "{:.1e}"
    """How a value is written."""
    absent: str = DASH
    """What a table says where there is no value."""
    least: bool = False
    """Whether the limit is the least that is allowed, and not the most."""

    @property
    def of_classes(self) -> bool:
        """Whether it needs a model that predicts a class."""
        return self.limit in LIMITS_OF_CLASSES

    @property
    def limit(self) -> str:
        """The field of `GateConfig` that has the limit."""
        return f"min_{self.name}" if self.least else self.name

    def measured(self, result: VariantParity) -> float | None:
        """The worst value of a model."""
        value: float | None = getattr(result, self.name)
        return value

    def allowed(self, limits: GateConfig) -> float | None:
        """The limit of a gate; None where it does not look at this quantity."""
        value: float | None = getattr(limits, self.limit)
        return value

    def met(self, value: float, limit: float) -> bool:
        """Whether a value is within a limit; at the limit is within it."""
        return value >= limit if self.least else value <= limit

    def text(self, value: float | None) -> str:
        """A value as a person reads it."""
        return self.absent if value is None else self.form.format(value)

    def failure(self, evidence: Evidence, limits: GateConfig) -> str | None:
        """One line that names the worst value, its place and the limit; None if it is met."""
        worst, limit = self.worst(evidence), self.allowed(limits)
        if worst is None or limit is None or self.met(worst.value, limit):
            return None
        return f"{self.text(worst.value)} {worst.words}, limit {self.text(limit)}"


def _snr_db(evidence: Evidence) -> Worst | None:
    known = [
        (one.snr_db, cell, one) for cell, one in _all(evidence.cells) if one.snr_db is not None
    ]
    if not known:
        return None
    snr_db, cell, one = min(known, key=lambda found: found[0])
    return Worst(snr_db, f"of {one.output} over the noise{_way(cell)}")


def _flips(evidence: Evidence) -> Worst | None:
    decided = [(one, cell) for cell in evidence.cells for one in cell.decisions]
    if not decided:
        return None
    worst, cell = max(decided, key=lambda pair: pair[0].flips)
    output = "" if worst.output in (LOGITS, PROBABILITIES) else f" of {worst.output}"
    return Worst(worst.flips, f"flips{output}{_way(cell)}")


def _accuracy_loss(evidence: Evidence) -> Worst | None:
    found = _least_accurate(evidence)
    return None if found is None else Worst(found[0], f"points of accuracy lost{_way(found[1])}")


def _error_increase(evidence: Evidence) -> Worst | None:
    found = _largest_error(evidence)
    if found is None or found.errors is None:
        return None
    return Worst(found.errors.increase, f"more mean squared error{_way(found)}")


def _batch_diff(evidence: Evidence) -> Worst | None:
    worst = max(evidence.batches, key=lambda one: one.max_abs_diff, default=None)
    return None if worst is None else Worst(worst.max_abs_diff, worst.where)


def _kernel_snr_db(evidence: Evidence) -> Worst | None:
    known = {one.output: one.snr_db for one in evidence.kernels if one.snr_db is not None}
    if not known:
        return None
    output = min(known, key=lambda name: known[name])
    return Worst(known[output], f"of {output} between optimized kernels and the graph as written")


def _max_scaled_diff(evidence: Evidence) -> Worst | None:
    worst = max(_all(evidence.cells), key=lambda one: one[1].max_scaled_diff, default=None)
    between = max(evidence.batches, key=lambda one: one.max_scaled_diff, default=None)
    if between and (worst is None or between.max_scaled_diff > worst[1].max_scaled_diff):
        return Worst(between.max_scaled_diff, f"of an output's scale {between.where}")
    if worst is None:
        return None
    cell, one = worst
    place = f"{one.output}{list(one.max_scaled_at)}{_way(cell)}"
    return Worst(one.max_scaled_diff, f"of its scale at {place}")


QUANTITIES = (
    GateQuantity(
        name="max_abs_diff",
        worst=lambda evidence: _largest(values(evidence.cells)),
        title="largest difference",
        heading="max diff",
    ),
    GateQuantity(
        name="max_scaled_diff",
        worst=_max_scaled_diff,
        title="largest difference in parts of what it varies by",
        heading="of scale",
    ),
    GateQuantity(
        name="max_probability_diff",
        worst=lambda evidence: _largest(probabilities(evidence.cells)),
        title="of a probability",
        heading="probability",
    ),
    GateQuantity(
        name="snr_db",
        worst=_snr_db,
        title="signal to noise",
        heading="SNR",
        form="{:.0f} dB",
        absent="exact",
        least=True,
    ),
    GateQuantity(
        name="kernel_snr_db",
        worst=_kernel_snr_db,
        title="signal to noise of optimized kernels",
        form="{:.0f} dB",
        absent="exact",
        least=True,
    ),
    GateQuantity(
        name="flips",
        worst=_flips,
        title="real flips",
        heading="flips",
        form="{:.0f}",
    ),
    GateQuantity(
        name="accuracy_loss",
        worst=_accuracy_loss,
        title="accuracy lost, points",
        form="{:.2f}",
    ),
    GateQuantity(
        name="error_increase",
        worst=_error_increase,
        title="mean squared error grown by",
        heading="error",
        form="{:.2f} %",
    ),
    GateQuantity(
        name="batch_diff",
        worst=_batch_diff,
        title="difference between batch sizes",
        heading="between batches",
    ),
)


def failures(evidence: Evidence, limits: GateConfig) -> Iterator[str]:
    """What is outside of its limit, one line for each quantity; NaN is outside of all of them."""
    broken = max(_all(evidence.cells), key=lambda found: found[1].nonfinite, default=None)
    if broken is not None and broken[1].nonfinite:
        cell, found = broken
        yield f"{found.nonfinite} values are NaN or infinite, first at {_place(cell, found)}"
    for quantity in QUANTITIES:
        failure = quantity.failure(evidence, limits)
        if failure is not None:
            yield failure


def failures_as_shipped(evidence: Evidence, limits: GateConfig) -> list[str]:
    """What fails as the model ships; other ways are named only where that does not fail."""
    cells, rows = evidence.cells, evidence.rows
    plain = [cell for cell in cells if cell.level == SHIPPED and cell.provider == "cpu"]
    found = list(failures(Evidence(cells=plain, rows=rows), limits))
    found = found or list(failures(Evidence(cells=cells, rows=rows), limits))
    others = Evidence(cells=(), rows=rows, batches=evidence.batches, kernels=evidence.kernels)
    return [*found, *failures(others, limits)]


def worst_of(evidence: Evidence) -> dict[str, Any]:
    """The fields of `VariantParity` that sum up the cells: the worst of every quantity."""
    cells = evidence.cells
    found = {one.name: one.worst(evidence) for one in QUANTITIES}
    # A model of probabilities alone has no other values.
    _, worst = max(values(cells) or probabilities(cells), key=lambda pair: pair[1].max_abs_diff)
    every = [one for _, one in _all(cells)]
    broken = max(every, key=lambda one: one.nonfinite)
    decided = [one for cell in cells for one in cell.decisions]
    flips = max(decided, key=lambda one: (one.flips, one.near_ties), default=None)
    least = _least_accurate(evidence)
    decisions = least[1].decisions[0] if least else None
    largest = _largest_error(evidence)
    place = broken if broken.nonfinite else worst
    return {
        **{name: None if one is None else one.value for name, one in found.items()},
        "max_abs_diff": worst.max_abs_diff,
        "accuracy": decisions.accuracy if decisions else None,
        "r2": 1 - largest.errors.other if largest and largest.errors else None,
        "near_ties": flips.near_ties if flips else None,
        "flip_rate": flips.flip_rate if flips else None,
        "mcnemar_p": decisions.mcnemar.p_value if decisions and decisions.mcnemar else None,
        "max_abs_output": place.output,
        "max_abs_at": place.max_abs_at,
        "max_rel_diff": max(one.max_rel_diff for one in every),
        "mean_abs_diff": max(cell.outputs[0].mean_abs_diff for cell in cells),
        "nonfinite": broken.nonfinite,
    }


def accuracy_loss(cell: Cell) -> float | None:
    """Percentage points that are lost, negative for a gain; None where no accuracy is known."""
    for one in cell.decisions:
        if one.accuracy is not None and one.reference_accuracy is not None:
            return round(100 * (one.reference_accuracy - one.accuracy), DIGITS)
    return None


def _least_accurate(evidence: Evidence) -> tuple[float, Cell] | None:
    """The largest loss of accuracy over all rows, and the cell that has it."""
    losses = [(accuracy_loss(cell), cell) for cell in evidence.cells if cell.rows == evidence.rows]
    known = [(loss, cell) for loss, cell in losses if loss is not None]
    return max(known, key=lambda pair: pair[0], default=None)


def _largest_error(evidence: Evidence) -> Cell | None:
    """The cell whose mean squared error over all rows is the largest; None without targets."""
    known = [
        (cell.errors.other, cell)
        for cell in evidence.cells
        if cell.errors and cell.rows == evidence.rows
    ]
    return max(known, key=lambda pair: pair[0], default=(0.0, None))[1]


def values(cells: Sequence[Cell]) -> list[tuple[Cell, OutputDifference]]:
    """Every output but the probabilities, beside its cell."""
    return [found for found in _all(cells) if found[1].output != PROBABILITIES]


def probabilities(cells: Sequence[Cell]) -> list[tuple[Cell, OutputDifference]]:
    """The probabilities, beside their cells."""
    return [found for found in _all(cells) if found[1].output == PROBABILITIES]


def _all(cells: Sequence[Cell]) -> list[tuple[Cell, OutputDifference]]:
    return [(cell, output) for cell in cells for output in cell.outputs]


def _largest(found: Sequence[tuple[Cell, OutputDifference]]) -> Worst | None:
    worst = max(found, key=lambda pair: pair[1].max_abs_diff, default=None)
    return None if worst is None else Worst(worst[1].max_abs_diff, f"at {_place(*worst)}")


def _place(cell: Cell, found: OutputDifference) -> str:
    return f"{found.output}{list(found.max_abs_at)}{_way(cell)}"


def _way(cell: Cell) -> str:
    """How the model was run, where that is not as it ships."""
    parts = [cell.provider] if cell.provider != "cpu" else []
    if cell.level != SHIPPED:
        parts.append(f"optimization {cell.level}")
    return f" ({', '.join(parts)})" if parts else ""
