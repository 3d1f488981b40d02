"""What proves an ONNX file that is to be bundled: the report of a comparison with its reference.

`ferry parity A B` and `ferry export --module` leave such a report, of one form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import GateError
from pipeline.proof.gate import QUANTITIES
from pipeline.records import read
from pipeline.records.parity import PairReport, VariantParity
from serving.bundles.bundle import Gate
from serving.errors import IntegrityError


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityProof:
    """A comparison of a file, the candidate, with a reference."""

    name: str
    """The candidate, as it was called then."""
    sha256: str
    """Of the candidate."""
    reference: str
    reference_sha256: str
    data: str
    passed: bool
    failures: tuple[str, ...]
    gates: Mapping[str, Gate]
    limit: float | None
    """The largest absolute difference that the gate allowed; None where it looked at others."""
    accuracy: float | None


def read_proof(path: Path, model: Path, sha256: str) -> ParityProof:
    """Read the report `path` about the file `model`, whose sum is `sha256`.

    Raises MissingInputError without it, IntegrityError for what is no such report or one about
    another file, and GateError for one that did not pass.
    """
    again = f"ferry parity REFERENCE {model} --data ROWS --output {path}"
    proof = _proof_of(read(PairReport, path, again))
    if proof.sha256 != sha256:
        raise IntegrityError(
            f"{model} has sha256 {sha256[:12]}…, but {path} proves {proof.name} of sha256 "
            f"{proof.sha256[:12]}…; `{again}` proves this one"
        )
    if not proof.passed:
        raise GateError(
            f"{model} did not pass its gate, so it is not bundled: "
            f"{'; '.join(proof.failures) or 'no reason is given'}; see {path}"
        )
    return proof


def _proof_of(report: PairReport) -> ParityProof:
    result = report.result
    limits = result.limits
    known = [one for one in (limits.max_abs_diff, limits.max_probability_diff) if one is not None]
    return ParityProof(
        name=report.other.name,
        sha256=report.other.sha256,
        reference=report.reference.name,
        reference_sha256=report.reference.sha256,
        data=report.data,
        passed=report.passed and result.passed,
        failures=result.failures,
        gates=gates_of(result),
        limit=max(known, default=None),
        accuracy=result.accuracy,
    )


def gates_of(result: VariantParity) -> dict[str, Gate]:
    """The quantities that must be small, each beside its limit; a gate holds nothing else."""
    known = {
        one.name: (one.measured(result), one.allowed(result.limits))
        for one in QUANTITIES
        if not one.least
    }
    return {
        name: Gate(measured=measured, limit=limit)
        for name, (measured, limit) in known.items()
        if measured is not None and limit is not None
    }
