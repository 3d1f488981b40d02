"""The record of a benchmark: what `ferry bench --json` prints and the pipeline keeps.

Only plain values, so that a report goes through JSON and back without loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.files import read_record
from serving.machine.environment import Environment
from serving.measuring.client import label_of
from serving.measuring.meters import Growth, Load
from serving.measuring.pairing import PairedRatio
from serving.measuring.scenarios.records import ScenarioResult
from serving.measuring.timing import Clock, Timing
from serving.measuring.worker import Share
from serving.runtime.session import ProviderProof
from serving.runtime.settings import SessionSettings

AGAINST = "before"
"""The subject that a model is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing at one batch size."""

    timing: Timing
    first_call_ms: float
    speedup: PairedRatio | None
    """How many times as fast as the report's baseline, turn by turn; None for the baseline."""
    millijoules_per_row: float | None
    """Of the whole device, idle parts included; None where nothing counts energy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedBatch:
    """A batch size that was not measured."""

    batch_size: int
    skipped: str
    """The reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A subject that was not measured at all."""

    subject: str
    provider: str
    threads: int | None
    """None for any number."""
    skipped: str
    """The reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One thing with its settings, measured in a process of its own."""

    subject: str
    """For instance "fp32" or "PyTorch eager"."""
    provider: str
    """A key of `serving.runtime.session.PROVIDERS`, or "torch"."""
    settings: SessionSettings
    cores: tuple[int, ...]
    """The numbers of the cores that the process was pinned to."""
    sha256: str | None
    """Of the model's file; None where there is no single one."""
    file_bytes: int | None
    proof: ProviderProof | None
    """Which nodes ONNX Runtime gave to which provider; None for what it does not run."""
    share: Share | None
    """Where the time went, at the first batch size."""
    ready_ms: float
    """Time to read, check and optimise the model: of ONNX Runtime the median of three sessions."""
    peak_memory_bytes: int
    """The most memory that the process ever held, whole, over all batch sizes."""
    gpu_memory_bytes: int | None
    growth: Growth | None
    """What calls of mixed batch sizes left behind; None where that was not asked for."""
    rows: tuple[Row, ...]
    skipped: tuple[SkippedBatch, ...]

    @property
    def label(self) -> str:
        """The subject, with its provider where that is one of ONNX Runtime's."""
        return label_of(self.subject, self.provider)

    def row(self, batch_size: int) -> Row | None:
        """The figures of one batch size, or None if it was not measured."""
        return next((row for row in self.rows if row.timing.batch_size == batch_size), None)

    @property
    def fastest(self) -> Timing:
        """The batch size with the most rows per second."""
        return max((row.timing for row in self.rows), key=lambda timing: timing.rows_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """From starting a process to its first answer."""

    subject: str
    p50_ms: float
    runs_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All that one run measured."""

    model: str
    rows: str | None
    """The name of the file whose rows were fed, or None for random inputs."""
    baseline: str
    """The label of what speedups are over."""
    measured: tuple[Measured, ...]
    skipped: tuple[Skipped, ...]
    cold_starts: tuple[ColdStart, ...]
    scenarios: tuple[ScenarioResult, ...]
    partial: bool
    """Whether it was interrupted; what had been measured by then is here."""
    seed: int
    num_rounds: int
    energy: str
    """The counter that energy was read from, or why there is none."""
    clock: Clock
    load: Load
    environment: Environment

    def of(self, subject: str, provider: str = "cpu") -> Iterator[Measured]:
        """What was measured of a subject on a provider, one for each setting."""
        return (m for m in self.measured if (m.subject, m.provider) == (subject, provider))


def report_from(raw: object, where: str = "the report") -> BenchReport:
    """Read a report back from its JSON; IntegrityError when it is not one."""
    return read_record(BenchReport, raw, where)
