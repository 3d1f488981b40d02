"""What ferry aims at beside what its last run reached.

Run: python benchmarks/aims.py        (after `dvc repro`)

Every figure is read from metrics/, where the stages left it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import layout
from pipeline.measured import Measured, read_measured
from serving.console import table

ACCURACIES = {"mnist-cnn": 99.5, "mnist-mlp": 98.2, "digits-cnn": 98.5}
TRAINING_SECONDS = {"mnist-cnn": 120.0}
EXPERIMENTS = ("digits-mlp", "digits-cnn", "mnist-mlp", "mnist-cnn")


@dataclass(frozen=True)
class Line:
    """One aim."""

    what: str
    reached: str
    aim: str
    met: bool


def main() -> None:
    """Print the table."""
    lines = [line for name in EXPERIMENTS for line in lines_of(name)]
    rows = [(line.what, line.reached, line.aim, "yes" if line.met else "NO") for line in lines]
    print(table(("what", "reached", "aim", "met"), rows))


def lines_of(name: str) -> Iterator[Line]:
    """All aims of one experiment that has run."""
    measured = read_measured(layout.METRICS, name)
    if measured is None:
        return
    yield from training(name, measured)
    yield from parity(name, measured)
    if measured.benchmark:
        ratio = measured.benchmark.eager_ratio
        what = f"{name}: speed at batch 1, one thread, over PyTorch eager"
        yield Line(what, f"{ratio.median:.2f}", "at least 3", ratio.median >= 3)


def training(name: str, measured: Measured) -> Iterator[Line]:
    """Accuracy, time and MLflow's share of it."""
    report = measured.training
    if name in ACCURACIES:
        aim, reached = ACCURACIES[name], 100 * report.accuracy
        what = f"{name}: test accuracy, %"
        yield Line(what, f"{reached:.2f}", f"at least {aim}", reached >= aim)
    if name in TRAINING_SECONDS:
        aim = TRAINING_SECONDS[name]
        what = f"{name}: training, s"
        yield Line(what, f"{report.seconds:.1f}", f"at most {aim:.0f}", report.seconds <= aim)
        share = 100 * report.tracking_seconds / report.seconds
        yield Line(f"{name}: MLflow's share of it, %", f"{share:.1f}", "at most 3", share <= 3)


def parity(name: str, measured: Measured) -> Iterator[Line]:
    """How far fp32 and int8 are from the trained weights."""
    if measured.parity is None:
        return
    fp32, int8 = measured.parity.variants["fp32"], measured.parity.variants["int8"]
    met = fp32.max_abs_diff <= 1e-4
    yield Line(f"{name}: largest logit difference", f"{fp32.max_abs_diff:.1e}", "at most 1e-4", met)
    yield Line(f"{name}: flips of fp32", str(fp32.flips), "0", fp32.flips == 0)
    if name.startswith("mnist"):
        loss = int8.accuracy_loss
        what = f"{name}: int8 accuracy loss, points"
        yield Line(what, f"{loss:.2f}", "at most 0.1", loss <= 0.1)


if __name__ == "__main__":
    main()
