"""A benchmark's report with chosen figures, for tests of what reads one."""

from serving.machine.environment import Environment
from serving.measuring.meters import Growth, Load
from serving.measuring.pairing import ratio_of_turns
from serving.measuring.report import (
    BenchReport,
    BenchRow,
    ColdStart,
    Measurement,
    SkippedBatch,
    SkippedSubject,
)
from serving.measuring.subject import Share
from serving.measuring.timing import Clock, Timing
from serving.runtime.session import ProviderProof
from serving.runtime.settings import SessionSettings

__all__ = ["CPU", "MACHINE", "measured", "report", "row"]

CPU = "CPUExecutionProvider"
MACHINE = Environment(
    processor="AMD EPYC",
    architecture="x86_64",
    flags=("avx2",),
    cores=2,
    allowed_cores=2,
    quota_cores=None,
    governor=None,
    memory_bytes=16 * 2**30,
    load_average=(0.1, 0.1, 0.1),
    python="3.11.7",
    platform="Linux-6.1",
    onnxruntime="1.31.1",
    onnxruntime_package="onnxruntime-gpu",
    numpy="2.4.6",
    ferry="0.1.0",
    git_revision="ab" * 20,
    gpu=None,
    gpu_driver=None,
)
WEATHER = (1.0, 1.01, 0.99, 1.02, 1.0, 1.3, 1.0, 0.98)
"""How fast the machine was in each turn, for all that took turns."""


def row(milliseconds: float, *, batch_size: int = 1, over: float | None = None) -> BenchRow:
    """Calls of so many milliseconds, and the speedup over calls of `over` milliseconds."""
    turns = tuple(milliseconds * factor for factor in WEATHER)
    base = [over * factor for factor in WEATHER] if over else []
    return BenchRow(
        timing=Timing(
            batch_size=batch_size,
            p50_ms=milliseconds,
            p90_ms=1.1 * milliseconds,
            p99_ms=1.5 * milliseconds,
            p999_ms=3 * milliseconds,
            max_ms=9 * milliseconds,
            rows_per_second=1000 * batch_size / milliseconds,
            num_calls=1000,
            warmup_ms=50.0,
            steady=True,
            turns_ms=turns,
        ),
        first_call_ms=2 * milliseconds,
        speedup=ratio_of_turns(base, turns, seed=1) if base else None,
        millijoules_per_row=None,
    )


def measured(subject: str, *rows: BenchRow, threads: int = 1, provider: str = "cpu") -> Measurement:
    return Measurement(
        subject=subject,
        provider=provider,
        settings=SessionSettings(threads=threads),
        cores=(1,),
        sha256="cd" * 32,
        file_bytes=40_000,
        proof=ProviderProof(asked=CPU, nodes={CPU: 9}) if provider == "cpu" else None,
        share=Share(time_us={CPU: 900.0}, share=1.0) if provider == "cpu" else None,
        ready_ms=2.5,
        peak_memory_bytes=70 * 2**20,
        gpu_memory_bytes=None,
        growth=Growth(
            num_calls=10_000, batch_sizes=(1, 8), arena_bytes=5 * 2**20, drift_bytes=1024
        ),
        rows=rows,
        skipped=(),
    )


def report(*things: Measurement, **changes: object) -> BenchReport:
    values: dict[str, object] = {
        "model": "models/mnist-cnn/model.onnx",
        "rows": None,
        "baseline": things[0].label if things else "",
        "measured": things,
        "skipped": (),
        "cold_starts": (),
        "scenarios": (),
        "partial": False,
        "seed": 1,
        "num_rounds": len(WEATHER),
        "energy": "no counter",
        "clock": Clock(resolution_ns=40.0, reading_ns=50.0),
        "load": Load(seconds=9.0, own_cores=0.9, other_cores=0.0, stolen_cores=0.0, warning=None),
        "environment": MACHINE,
    }
    return BenchReport(**{**values, **changes})  # type: ignore[arg-type]


SKIPPED = (SkippedSubject(subject="fp32", provider="cuda", threads=None, skipped="no card"),)
SKIPPED_BATCH = (SkippedBatch(batch_size=8, skipped="batches of 4 and no other"),)
COLD = (ColdStart(subject="fp32 · cpu", p50_ms=310.0, runs_ms=(300.0, 310.0, 350.0)),)
