"""Reports as the stages write them, with chosen figures, beside the files that they are about."""

import functools
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import tries

from pipeline.config import layout
from pipeline.config.experiment import GateConfig
from pipeline.records.parity import (
    BatchDifference,
    Cell,
    ConfidenceInterval,
    Decisions,
    Divergence,
    Flip,
    HostileRow,
    McNemar,
    OnnxReferenceAnswer,
    OutputDifference,
    Quantile,
    SkippedCell,
    VariantParity,
)
from pipeline.records.quantize import QuantizeReport, Search
from pipeline.records.train import Epoch
from serving.drift.check import DriftReport
from serving.files import sha256_of_bytes, write_bytes, write_json
from serving.machine.environment import Environment, this_machine
from serving.measuring.meters import Growth, Load
from serving.measuring.pairing import ratio_of_turns
from serving.measuring.report import BenchReport, BenchRow, ColdStart, Measurement, SkippedSubject
from serving.measuring.subject import Share
from serving.measuring.timing import Clock, Timing
from serving.runtime.session import ProviderProof
from serving.runtime.settings import SessionSettings

LABELS = [str(digit) for digit in range(10)]
CPU = "CPUExecutionProvider"
WEIGHTS = sha256_of_bytes(b"weights")
MODEL = sha256_of_bytes(b"model")
"""Of each variant's file."""
HERE = this_machine("cpu")
MACHINE = Environment(
    processor=HERE.processor,
    architecture=HERE.architecture,
    flags=HERE.flags,
    cores=2,
    allowed_cores=HERE.allowed_cores,
    quota_cores=None,
    governor=None,
    memory_bytes=16 * 2**30,
    load_average=(0.5, 0.4, 0.3),
    python="3.11.7",
    platform="Linux-6.1 <Genoa>",
    onnxruntime="1.31.1",
    onnxruntime_package="onnxruntime-gpu",
    numpy="2.4.6",
    ferry="0.1.0",
    git_revision="4f0c1d2e",
    gpu=None,
    gpu_driver=None,
)


@dataclass(frozen=True, kw_only=True)
class PredictedRows:
    """What is read of a `PredictReport`."""

    model: Path = Path("models/digits-cnn/net.onnx")
    model_sha256: str = "ab" * 32
    rows: int = 1200
    errors: int = 3
    seconds: float = 2.5
    rows_per_second: float = 480.0
    drift: DriftReport | None = None


def epochs(count: int = 6) -> list[Epoch]:
    return [
        Epoch(
            epoch=number,
            lr=0.01,
            loss=2 * math.exp(-number / 3) + 0.3,
            accuracy=1 - 0.5 * math.exp(-number / 2),
            validation_loss=1.2 * math.exp(-number / 2) + 0.05,
            validation_accuracy=1 - 0.2 * math.exp(-number / 2) - 0.006,
            seconds=5.0,
            rows_per_second=9000.0,
        )
        for number in range(1, count + 1)
    ]


def confusion() -> list[list[int]]:
    matrix = [[95 if row == column else 0 for column in range(10)] for row in range(10)]
    matrix[4][9], matrix[9][4], matrix[7][2] = 7, 3, 2
    return matrix


def training(name: str) -> dict[str, object]:
    return {
        "experiment": name,
        "dataset": "digits",
        "accuracy": 0.9953,
        "loss": 0.02,
        "loss_name": "cross_entropy",
        "validation_accuracy": 0.9961,
        "validation_loss": 0.018,
        "parameters": 54321,
        "epochs": 6,
        "overrides": {},
        "best_epoch": 5,
        "stopped_after": None,
        "processes": 1,
        "init_from": None,
        "teacher": None,
        "seconds": 30.25,
        "rows_per_second": 9000.0,
        "tracking_seconds": 0.4,
        "device": "cpu",
        "threads": 2,
        "seed": 1,
        "data_sha256": "12" * 32,
        "machine": "AMD EPYC <Genoa>, 2 cores, avx2 avx512_vnni",
        "git_revision": "4f0c1d2e",
        "weights_sha256": WEIGHTS,
        "run_id": None,
        "labels": LABELS,
        "history": [asdict(epoch) for epoch in epochs()],
        "confusion": confusion(),
        "targets": (),
        "settings": {"train.lr": "0.01"},
    }


def cell(*, diff: float, flips: int, failures: tuple[str, ...] = (), size: int = 256) -> Cell:
    def output(name: str, worst: float) -> OutputDifference:
        return OutputDifference(
            output=name,
            values=3600,
            nonfinite=0,
            max_abs_diff=worst,
            max_abs_at=(812, 7),
            largest=20.0,
            max_rel_diff=1e-5,
            max_rel_at=(1, 2),
            max_scaled_diff=worst / 5,
            max_scaled_at=(812, 7),
            mean_abs_diff=1e-7,
            quantiles=(Quantile(part=0.5, diff=1e-8),),
            ulps=(1000, 2000, 500, 100),
            snr_db=60.0,
            cosine=0.99999,
        )

    named = tuple(
        Flip(row=12 + row, reference=3, other=5, margin=0.2, near_tie=False, label=3)
        for row in range(flips)
    )
    decisions = Decisions(
        output="logits",
        rows=360,
        flips=flips,
        near_ties=1,
        near_tie_rows=2,
        near_tie_margin=2e-4,
        flip_rate=ConfidenceInterval(low=0.0, high=0.015),
        classes={"3": flips} if flips else {},
        named=named,
        reference_accuracy=0.9953,
        accuracy=0.995,
        mcnemar=McNemar(lost=1, gained=0, p_value=1.0),
    )
    return Cell(
        exporter="dynamo",
        provider="cpu",
        level="all",
        batch_size=size,
        rows=360,
        passed=not failures,
        failures=failures,
        outputs=(output("logits", diff), output("probabilities", diff / 10)),
        decisions=(decisions,),
    )


def variant(*, passed: bool = True, diff: float = 3.1e-6, flips: int = 0) -> VariantParity:
    failures = () if passed else (f"{diff:.1e} at logits[812, 7], limit 1.0e-04",)
    node = Divergence(
        node="/conv2/Conv",
        operator="Conv",
        tensor="x",
        max_abs_diff=0.3,
        relative_diff=0.1,
        input_relative_diff=0.0,
        reference="PyTorch",
    )
    cuda = SkippedCell(exporter="dynamo", provider="cuda", level="", reason="no <card> here")
    return VariantParity(
        passed=passed,
        accuracy=0.995,
        flips=flips,
        near_ties=1,
        flip_rate=ConfidenceInterval(low=0.0, high=0.015),
        accuracy_loss=0.03,
        mcnemar_p=1.0,
        max_abs_diff=diff,
        max_abs_output="logits",
        max_abs_at=(812, 7),
        max_rel_diff=1e-5,
        max_scaled_diff=diff / 5,
        max_probability_diff=diff / 10,
        mean_abs_diff=1e-7,
        snr_db=60.0,
        kernel_snr_db=70.0,
        nonfinite=0,
        batch_diff=2e-6,
        batch_sizes=(1, 7, 256),
        limits=GateConfig(
            max_abs_diff=1e-4,
            max_scaled_diff=None,
            max_probability_diff=1e-3,
            min_snr_db=50.0,
            min_kernel_snr_db=40.0,
            flips=2,
            accuracy_loss=0.1,
            error_increase=None,
            batch_diff=1e-4,
        ),
        failures=failures,
        first_divergence=None if passed else node,
        first_nonfinite=None,
        notes=(),
        sha256=MODEL,
        zero_rows="answered 0 rows",
        hostile_max_abs_diff=2e-6,
        cells=(cell(diff=diff, flips=flips, failures=failures), cuda),
        batches=(
            BatchDifference(
                max_abs_diff=2e-6, max_scaled_diff=4e-7, where="alone and last of 7", rows=16
            ),
        ),
        hostile=(HostileRow(name="zeros", passed=True, max_abs_diff=2e-6, limit=1e-4, message=""),),
        onnx_reference=OnnxReferenceAnswer(rows=4, to_reference=1e-6, to_model=2e-6, skipped=None),
    )


TURNS = (1.0, 1.02, 0.98, 1.01)
"""What the machine did to each turn: the same to all that was compared."""


def timing(latency_ms: float, size: int, turns: tuple[float, ...] = TURNS) -> Timing:
    return Timing(
        batch_size=size,
        p50_ms=latency_ms,
        p90_ms=1.1 * latency_ms,
        p99_ms=1.4 * latency_ms,
        p999_ms=1.9 * latency_ms,
        max_ms=2.5 * latency_ms,
        rows_per_second=1000 * size / latency_ms,
        num_calls=4000 // size,
        warmup_ms=20.0,
        steady=True,
        turns_ms=tuple(latency_ms * turn for turn in turns),
    )


def timings(factor: float, threads: int = 2) -> tuple[Timing, ...]:
    """A sweep over batch sizes; what a second thread is worth grows with the batch."""
    return tuple(
        timing(factor * (0.05 + 0.012 * size * (1.8 if threads == 1 else 1)), size)
        for size in (1, 8, 32, 128)
    )


def measured(
    subject: str, factor: float, *, threads: int = 2, size: int | None = 1, provider: str = "cpu"
) -> Measurement:
    """What `timings` makes of a factor, beside a PyTorch eager of factor 3."""
    runs = provider != "torch"
    eager = timings(3.0, threads)
    return Measurement(
        subject=subject,
        provider=provider,
        settings=SessionSettings(threads=threads),
        cores=tuple(range(2 - threads, 2)),
        sha256=MODEL,
        file_bytes=size,
        proof=ProviderProof(asked=CPU, nodes={CPU: 12}) if runs else None,
        share=Share(time_us={CPU: 900.0}, share=1.0) if runs else None,
        ready_ms=12.5,
        peak_memory_bytes=(90 if runs else 400) * 2**20,
        gpu_memory_bytes=None,
        growth=Growth(
            num_calls=1000, batch_sizes=(1, 8, 32, 128), arena_bytes=3 * 2**20, drift_bytes=4096
        ),
        rows=tuple(
            BenchRow(
                timing=one,
                first_call_ms=0.4,
                speedup=None
                if subject == "PyTorch eager"
                else ratio_of_turns(beside.turns_ms, one.turns_ms, seed=1),
                millijoules_per_row=None,
            )
            for one, beside in zip(timings(factor, threads), eager, strict=True)
        ),
        skipped=(),
    )


@functools.cache
def bench_report(name: str) -> BenchReport:
    """Three variants and two baselines at one and two threads; one without a compiler, and CUDA."""
    sizes = {"fp32": (1.0, 220_000), "fp16": (1.15, 112_000), "int8": (0.6, 61_000)}
    found = []
    for threads in (1, 2):
        found += [
            measured("PyTorch eager", 3.0, threads=threads, size=218_000, provider="torch"),
            *(
                measured(variant, factor, threads=threads, size=size)
                for variant, (factor, size) in sizes.items()
            ),
            measured("MLflow pyfunc", 8.0, threads=threads, size=None, provider="torch"),
        ]
    skipped = [
        SkippedSubject(subject=variant, provider="cuda", threads=None, skipped="no <card> here")
        for variant in sizes
    ]
    compiler = "no C++ compiler is there"
    skipped += [
        SkippedSubject(subject="torch.compile", provider="torch", threads=threads, skipped=compiler)
        for threads in (1, 2)
    ]
    cold = {
        "PyTorch eager": 2100.0,
        "fp32 · cpu": 310.0,
        "int8 · cpu": 300.0,
        "MLflow pyfunc": 3900.0,
    }
    return BenchReport(
        model=name,
        rows="test_inputs.npy",
        baseline="PyTorch eager",
        measured=tuple(found),
        skipped=tuple(skipped),
        cold_starts=tuple(
            ColdStart(subject=subject, p50_ms=ms, runs_ms=(0.98 * ms, ms, 1.1 * ms))
            for subject, ms in cold.items()
        ),
        scenarios=(),
        partial=False,
        seed=1,
        num_rounds=4,
        energy="no counter of energy (RAPL) is there",
        clock=Clock(resolution_ns=30.0, reading_ns=40.0),
        load=Load(seconds=60.0, own_cores=1.4, other_cores=0.1, stolen_cores=0.0, warning=None),
        environment=MACHINE,
    )


def benchmark(name: str) -> dict[str, object]:
    return {
        "experiment": name,
        "torch_version": "2.13.0",
        "weights_sha256": WEIGHTS,
        "bench": bench_report(name),
    }


def parity(name: str) -> dict[str, object]:
    return {
        "experiment": name,
        "dataset": "digits",
        "rows": 360,
        "passed": True,
        "output": "logits",
        "torch_accuracy": 0.9953,
        "weights_sha256": WEIGHTS,
        "sample_rows": 360,
        "variants": {
            "fp32": variant(),
            "fp16": variant(diff=4.0e-3, flips=1, passed=False),
            "int8": variant(diff=9.0e-5, flips=2),
        },
    }


def quantized(name: str, model_sha256: str = MODEL) -> QuantizeReport:
    """A search that kept the faster of two recipes, on the file that `parity` is about."""
    search = Search(
        budget=tries.BUDGET,
        tries=(tries.attempt("static-u8s8", 1.7, 0.3), tries.attempt("dynamic", 0.6, 0.28)),
        not_tried={},
        chosen="static-u8s8",
        reason="the fastest inside both budgets",
        qat_epochs=0,
    )
    return QuantizeReport(
        experiment=name,
        model_sha256=model_sha256,
        goal="speed",
        judged_on="digits:validation",
        rows=180,
        calibration_rows=64,
        machine=HERE.processor,
        threads=1,
        seconds=2.0,
        variants={},
        skipped={},
        searches={"int8": search},
    )


def inside(name: str) -> dict[str, object]:
    """What a look inside found, with one picture and no attack on words."""
    attacks = [{"name": "PGD", "strength": 0.1, "accuracy": 0.4}]
    attacked = {"rows": 500, "largest": 255.0, "steps": 10, "seed": 1}
    return {
        "experiment": name,
        "dataset": "digits",
        "rows": 360,
        "weights_sha256": WEIGHTS,
        "classes": {
            "accuracy": 0.9953,
            "class_accuracy": {"one": 0.99, "nine": 0.96, "none": None},
            "calibration": {"error": 0.012, "mean_confidence": 0.98, "brier": 0.01, "bins": []},
            "robustness": {**attacked, "accuracy": 0.99, "attacks": attacks},
            "confident_mistakes": [],
            "worst_mistakes": [],
        },
        "reconstruction": None,
        "targets": {},
        "pictures": {"saliency": "where it looks"},
        "skipped": {"attacks": "a word cannot change a little"},
    }


def bundle(name: str) -> dict[str, object]:
    return {
        "experiment": name,
        "variant": "int8",
        "target": "cpu",
        "flash_bytes": None,
        "ram_bytes": None,
        "boards": None,
        "reason": "1.7 times the speed of fp32 & within its gate",
        "goal": "latency",
        "gains": {
            "fp32": {"times": 1.0, "low": 1.0, "high": 1.0},
            "int8": {"times": 1.7, "low": 1.6, "high": 1.8},
        },
        "sha256": "ab" * 32,
        "classes": 10,
        "golden_rows": 16,
        "reference_rows": 1257,
        "digest": "ef" * 32,
        "bytes": 65_000,
    }


def details(root: Path, name: str, stage: str) -> Path:
    """Where a stage's report lies below the folder of params.yaml."""
    return root / layout.details(name, stage)


def write_files(root: Path, name: str) -> None:
    """The weights, the models and the bundle that the reports are about."""
    write_bytes(root / layout.weights(name), b"weights")
    for variant_ in layout.VARIANTS:
        write_bytes(root / layout.variant(name, variant_), b"model")
    write_json(root / layout.bundle(name) / "manifest.json", {"digest": bundle(name)["digest"]})


def write_all(root: Path, name: str) -> None:
    """Those files, and the reports of training, parity, benchmark and bundle."""
    write_files(root, name)
    write_json(details(root, name, "train"), training(name))
    write_json(details(root, name, "parity"), parity(name))
    write_json(details(root, name, "benchmark"), benchmark(name))
    write_json(details(root, name, "bundle"), bundle(name))
