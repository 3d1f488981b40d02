"""Hold an exported model against the module it was made of, on the CPU.

Every row is asked at several batch sizes. On a failure the operator that makes the difference is
named, or the exporter, where the graph that it traced is already another one than the module.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.exporting.exporter import Exported
from pipeline.exporting.signatures import FlatModule
from pipeline.proof.differences import DecisionCount, Differences
from pipeline.proof.rows import Rows
from pipeline.proof.tracing.divergence import first_divergence, first_nonfinite
from pipeline.proof.tracing.torch_values import TorchValues
from pipeline.records.module import OutputProof
from pipeline.records.parity import Divergence
from serving.errors import ModelError
from serving.runtime.session import Session
from serving.runtime.tensors import answer_in_batches

Array = npt.NDArray[Any]
CHUNK = 64
"""Rows whose answers are held at once, unless a batch is larger."""
NEAR_TIE = 1e-6
"""Two scores are nearly tied within this part of the largest one: about eight roundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was measured, over all rows and batch sizes."""

    outputs: tuple[OutputProof, ...]
    failures: tuple[str, ...]
    worst_row: int


def prove(
    flat: FlatModule, session: Session, rows: Rows, batch_sizes: Sequence[int], limit: float
) -> Proof:
    """Compare the module's answers to all rows with the session's, at each batch size.

    `limit` is the largest absolute difference of any output. Raises InputError for rows that the
    model does not take, and ModelError for those that the module does not.
    """
    outputs = {name: _Compared(name) for name in flat.outputs}
    chunk = max(CHUNK, *batch_sizes)
    for start in range(0, len(rows), chunk):
        feeds = rows.slice(start, start + chunk)
        wanted = flat.answer(feeds)
        for size in batch_sizes:
            found = answer_in_batches(session.run, feeds, size, name="the model")
            for name, compared in outputs.items():
                compared.add(wanted[name], found[name], start)
    proofs = tuple(compared.report(limit) for compared in outputs.values())
    failures = tuple(failure for proof in proofs for failure in proof.failures)
    worst = max(proofs, key=lambda one: (one.nonfinite > 0, one.max_abs_diff))
    return Proof(outputs=proofs, failures=failures, worst_row=next(iter(worst.max_abs_at), 0))


def explain(
    flat: FlatModule, exported: Exported, rows: Rows, row: int, limit: float
) -> Divergence | str | None:
    """Where the model leaves the module on one row, or in words why no operator is to blame."""
    feeds = {name: np.array(one) for name, one in rows.slice(row, row + 1).items()}
    if found := first_nonfinite(exported.model, feeds):
        return found.describe()
    wanted = flat.answer(feeds)
    traced = TorchValues(traced=exported.traced, feeds=feeds).fetch(flat.outputs)
    for name, array in wanted.items():
        apart = float(np.abs(array.astype(np.float64) - traced[name]).max(initial=0.0))
        if not apart <= limit:
            return (
                f"torch's exporter traced another computation than the module's: the two differ by "
                f"{apart:.1e} at {name} before anything is made ONNX of"
            )
    return first_divergence(exported.traced, exported.model, feeds, limit)


def rounding(flat: FlatModule, rows: Rows) -> float | None:
    """How far the module's answers to the first rows are from those it gives in float64.

    That much of a difference is PyTorch's own, and no exporter's. None for a module that does not
    run in float64.
    """
    feeds = rows.slice(0, CHUNK)
    exact = {
        name: one.astype(np.float64) if one.dtype.kind == "f" else one
        for name, one in feeds.items()
    }
    wide = copy.deepcopy(flat).double()
    try:
        answers = wide.answer(exact)
    except ModelError:
        return None
    with np.errstate(invalid="ignore"):  # infinities on both sides
        apart = [
            float(np.abs(one - answers[name]).max(initial=0.0))
            for name, one in flat.answer(feeds).items()
            if one.dtype.kind == "f"
        ]
    return max(apart, default=None)


class _Compared:
    """One output, of all rows and batch sizes that were added so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.differences = Differences(name)
        self.decisions: DecisionCount | None = None
        self.largest = 0.0
        self.first: Array | None = None
        self.spread = 0.0

    def add(self, wanted: Array, found: Array, start: int) -> None:
        numbers = np.arange(start, start + len(wanted))
        if wanted.shape != found.shape:
            raise ModelError(
                f"output {self.name}: the module answers {list(wanted.shape)}, the model "
                f"{list(found.shape)}"
            )
        self.differences.add(wanted, found, numbers)
        finite = np.nan_to_num(wanted.astype(np.float64), posinf=0, neginf=0)
        self.largest = max(self.largest, float(np.abs(finite).max(initial=0.0)))
        self.first = finite[:1] if self.first is None else self.first
        self.spread = max(self.spread, self._apart(finite))
        if wanted.dtype.kind == "f" and wanted.ndim == 2 and wanted.shape[1] > 1:
            if self.decisions is None:
                self.decisions = DecisionCount(NEAR_TIE * self.largest)
            self.decisions.add({"logits": wanted}, {"logits": found}, numbers, None)

    def report(self, limit: float) -> OutputProof:
        found = self.differences.report()
        decided = self.decisions.report() if self.decisions else None
        failures = []
        if found.nonfinite:
            failures.append(
                f"{found.nonfinite} values of {self.name} are NaN or infinite, the first at "
                f"{list(found.max_abs_at)}"
            )
        if not found.max_abs_diff <= limit:
            failures.append(
                f"{found.max_abs_diff:.1e} at {self.name}{list(found.max_abs_at)}, "
                f"limit {limit:.1e}"
            )
        if decided and decided.flips:
            failures.append(f"{decided.flips} flips of {self.name}'s largest value, limit 0")
        return OutputProof(
            name=self.name,
            values=found.values,
            nonfinite=found.nonfinite,
            max_abs_diff=found.max_abs_diff,
            max_abs_at=found.max_abs_at,
            largest=self.largest,
            spread=self.spread,
            snr_db=found.snr_db,
            flips=None if decided is None else decided.flips,
            near_ties=None if decided is None else decided.near_ties,
            failures=tuple(failures),
        )

    def _apart(self, values: Array) -> float:
        """How far the answer to a row is from that to the first one; axes may change in length."""
        if self.first is None or self.first.shape[1:] != values.shape[1:]:
            return self.largest
        return float(np.abs(values - self.first).max(initial=0.0))
