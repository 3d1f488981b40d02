"""What ferry aims at beside what its last run reached.

Run: python benchmarks/aims.py        (after `dvc repro`)

Every figure is read from reports/details/, where the stages left it.
"""

from collections.abc import Iterator

from benching import Line, show

from pipeline.config import params
from pipeline.records.benchmark import over_eager
from pipeline.stages.page.results import ExperimentResults, read_results

ACCURACIES = {
    "xor-mlp": 100.0,
    "moons-mlp": 97.0,
    "digits-cnn": 98.5,
    "mnist-mlp64": 97.3,
    "mnist-mlp128": 97.8,
    "mnist-mlp": 98.2,
    "mnist-cnn": 99.5,
    "mnist-tiny": 99.45,
    "mnist-gru": 98.5,
    "mnist-lstm": 98.5,
    "rt-lstm": 76.0,
    "cifar10-cnn": 77.0,
    "cifar10-resnet8": 87.0,
}
TRAINING_SECONDS = {"mnist-cnn": 120.0, "mnist-tiny": 600.0, "cifar10-resnet8": 3600.0}
TRACKING_PERCENT = {"digits-mlp": 30.0, "mnist-cnn": 3.0, "cifar10-resnet8": 3.0}
SQUARED_ERRORS = {"mnist-autoencoder": 0.004}
AUC = 0.99
FACTORS_OVER_EAGER = {1: 3.0, 64: 1.8}


def main() -> None:
    """Print the table."""
    lines = [line for name in params.load().experiments for line in lines_of(name)]
    show(lines)


def lines_of(name: str) -> Iterator[Line]:
    """All aims of one experiment that has run."""
    measured, _ = read_results(name)
    if measured is None:
        return
    yield from training(name, measured)
    yield from parity(name, measured)
    if measured.benchmark:
        for size, ratio in over_eager(measured.benchmark):
            if size in FACTORS_OVER_EAGER:
                aim = FACTORS_OVER_EAGER[size]
                what = f"{name}: speed at batch {size}, one thread, over PyTorch eager"
                yield Line(what, f"{ratio.median:.2f}", f"at least {aim}", ratio.median >= aim)


def training(name: str, measured: ExperimentResults) -> Iterator[Line]:
    """Accuracy, time and MLflow's share of it."""
    report = measured.training
    if name in SQUARED_ERRORS:
        met = report.loss <= SQUARED_ERRORS[name]
        what = f"{name}: test error, squared"
        yield Line(what, f"{report.loss:.5f}", f"at most {SQUARED_ERRORS[name]}", met)
    drawn = measured.inside.reconstruction if measured.inside else None
    if drawn and drawn.outliers:
        auc = drawn.outliers.auc
        what = f"{name}: AUC against {drawn.outliers.dataset}"
        yield Line(what, f"{auc:.4f}", f"at least {AUC}", auc >= AUC)
    if name in ACCURACIES and report.accuracy is not None:
        aim, reached = ACCURACIES[name], 100 * report.accuracy
        what = f"{name}: test accuracy, %"
        yield Line(what, f"{reached:.2f}", f"at least {aim}", reached >= aim)
    if name in TRAINING_SECONDS:
        aim = TRAINING_SECONDS[name]
        what = f"{name}: training, s"
        yield Line(what, f"{report.seconds:.1f}", f"at most {aim:.0f}", report.seconds <= aim)
    if name in TRACKING_PERCENT:
        most, share = TRACKING_PERCENT[name], 100 * report.tracking_seconds / report.seconds
        what = f"{name}: waiting for MLflow over training, %"
        yield Line(what, f"{share:.1f}", f"at most {most:.0f}", share <= most)


def parity(name: str, measured: ExperimentResults) -> Iterator[Line]:
    """How far fp32 and int8 are from the trained weights."""
    if measured.parity is None:
        return
    fp32, int8 = measured.parity.variants["fp32"], measured.parity.variants.get("int8")
    met = fp32.max_abs_diff <= 1e-4
    yield Line(f"{name}: largest difference", f"{fp32.max_abs_diff:.1e}", "at most 1e-4", met)
    if fp32.flips is not None:
        yield Line(f"{name}: flips of fp32", str(fp32.flips), "0", fp32.flips == 0)
    if name.startswith("mnist") and int8 and int8.accuracy_loss is not None:
        loss = int8.accuracy_loss
        what = f"{name}: int8 accuracy loss, points"
        yield Line(what, f"{loss:.2f}", "at most 0.1", loss <= 0.1)


if __name__ == "__main__":
    main()
