"""What a run of `ferry predict` did, for people and for programs."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.bundles.profiles import Profile
from serving.runtime.session import ProviderProof

if TYPE_CHECKING:
    # What only keeps reports, as a training does, needs no drift check.
    from serving.drift.check import DriftReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Where the time of a run went, in seconds of work; stages work side by side."""

    decode_seconds: float
    inference_seconds: float
    write_seconds: float

    @property
    def shares(self) -> Mapping[str, float]:
        """The part of the work, 0 to 1, of each stage."""
        work = {
            "decode": self.decode_seconds,
            "inference": self.inference_seconds,
            "write": self.write_seconds,
        }
        total = sum(work.values())
        return {name: seconds / total if total else 0.0 for name, seconds in work.items()}

    @property
    def bottleneck(self) -> str:
        """The stage with the most work."""
        return max(self.shares, key=lambda name: self.shares[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictReport:
    """What a run did."""

    model: Path
    model_sha256: str
    output: Path | None
    rows: int
    """In the output, with those of the runs that this one went on from."""
    resumed_rows: int
    """How many of them were there when this run began."""
    errors: int
    errors_file: Path | None
    """Where the unreadable inputs are listed."""
    first_error: str
    """The first of them that this run met, with the reason; "" where there was none."""
    seconds: float
    """From the first row that this run read to the last one it wrote."""
    rows_per_second: float
    """The speed of this run alone."""
    batch_rows: int
    workers: int
    threads: int
    profile: Profile | None
    """The profile of the bundle that gave the settings; None where none was used."""
    proof: ProviderProof
    stages: Stages
    drift: "DriftReport | None"
    """How the rows are distributed beside the training data, where that was asked."""
    unlike: str | None
    """What the first rows warn of; None for nothing, and where they were not looked at."""
    stopped: str | None
    """The signal that ended the run before its input did, None where none did."""


WORTH_SECONDS = 2.0
"""A shorter run needs no advice."""
ADVICE = {
    "decode": "decode once into .npy",
    "inference": "`ferry bench --tune` finds the best settings, a GPU or int8 may be faster",
    "write": "write Parquet, on a faster disk",
}


def summary(report: PredictReport) -> str:
    """Some lines for a person."""
    where = f" to {report.output}" if report.output else ""
    before = f" ({report.resumed_rows:,} of them before)" if report.resumed_rows else ""
    errors = f", {report.errors} not read" if report.errors else ""
    first = f", the first {report.first_error}" if report.first_error else ""
    listed = f" (see {report.errors_file}{first})" if report.errors_file else ""
    text = f"{report.rows:,} rows{where}{before}{errors}{listed}; "
    if not report.seconds:
        text += "the run was complete already"
    else:
        speed = f"{report.rows_per_second:,.0f} rows/s on {report.proof.asked}"
        profile = f", {report.profile.describe()}" if report.profile else ""
        shares = ", ".join(f"{name} {share:.0%}" for name, share in report.stages.shares.items())
        text += f"{report.seconds:.2f} s, {speed}{profile}\n{shares}"
        if report.seconds >= WORTH_SECONDS:
            stage = report.stages.bottleneck
            text += f"; most by {stage}: {ADVICE[stage]}"
            if stage == "decode" and importlib.util.find_spec("cv2") is None:
                text += ", or pip install 'onnx-ferry[images]'"
    lines = [text, *(report.drift.lines() if report.drift else ())]
    if report.stopped:
        again = "; the same command goes on" if report.output else ""
        lines.append(f"stopped by {report.stopped}{again}")
    return "\n".join(lines)
