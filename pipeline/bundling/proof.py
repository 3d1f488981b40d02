"""What proves an ONNX file that is to be bundled: the report of `ferry parity`, or of its export.

Both are read into one record, which says of which file it is, what it was held against and how far
it may be off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import GateError
from pipeline.records import read
from pipeline.records.module import ModuleReport
from pipeline.records.parity import PairReport, VariantParity
from serving.bundles.bundle import Gate
from serving.errors import IntegrityError
from serving.files import read_json, require

MODULE = "module"
"""A key that only the report of `ferry export --module` has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
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


def read_proof(path: Path, model: Path, sha256: str) -> Proof:
    """Read the report `path` about the file `model`, whose sum is `sha256`.

    Raises MissingInputError without it, IntegrityError for what is no such report or one about
    another file, and GateError for one that did not pass.
    """
    again = f"ferry parity REFERENCE {model} --data ROWS --output {path}"
    raw = read_json(require(path, again))
    if isinstance(raw, dict) and MODULE in raw:
        proof = _of_module(read(ModuleReport, path, again))
    else:
        proof = _of_pair(read(PairReport, path, again))
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


def _of_pair(report: PairReport) -> Proof:
    result = report.result
    limits = result.limits
    known = [one for one in (limits.max_abs_diff, limits.max_probability_diff) if one is not None]
    return Proof(
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
    limits = result.limits
    gates = {
        "max_abs_diff": (result.max_abs_diff, limits.max_abs_diff),
        "max_probability_diff": (result.max_probability_diff, limits.max_probability_diff),
        "flips": (result.flips, limits.flips),
        "accuracy_loss": (result.accuracy_loss, limits.accuracy_loss),
        "batch_diff": (result.batch_diff, limits.batch_diff),
    }
    return {
        name: Gate(measured=measured, limit=limit)
        for name, (measured, limit) in gates.items()
        if measured is not None and limit is not None
    }


def _of_module(report: ModuleReport) -> Proof:
    gates = {"max_abs_diff": Gate(measured=report.max_abs_diff, limit=report.limit)}
    if report.flips is not None:
        gates["flips"] = Gate(measured=report.flips, limit=0)
    return Proof(
        name=report.model,
        sha256=report.sha256,
        reference=report.module,
        reference_sha256=report.weights_sha256,
        data=report.data,
        passed=report.passed,
        failures=report.failures,
        gates=gates,
        limit=report.limit,
        accuracy=None,
    )
