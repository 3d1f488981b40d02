"""What a challenger must hold to become the champion, measured now and on this machine.

Both answer the same test rows: those of the data set that the challenger was trained with. They are
timed in turns, each in a process of its own. A champion that was trained on other data may have
seen some of the rows, which is to its advantage and never to that of the challenger.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from math import erfc, isfinite, sqrt
from pathlib import Path

from pipeline.config import layout
from pipeline.config.params import RegistryConfig
from pipeline.proof.differences import mcnemar
from pipeline.proof.rows import Rows, rows_of_split
from pipeline.quantization.quality import Z, compare_answers
from pipeline.records import ready
from pipeline.records.quantize import Quality
from serving.bundles.bundle import read_manifest
from serving.bundles.finding import folder_of
from serving.bundles.registry import PromotionGate, Registered, Registry
from serving.bundles.verify import FAILED, Trust, check_parity, verify
from serving.errors import FerryError, IntegrityError, ModelError
from serving.measuring.bench import bench
from serving.measuring.compare import CompareTarget, compare
from serving.measuring.feeds import fixed_batch
from serving.measuring.rounds import BenchOptions, Log
from serving.model import open_model
from serving.runtime.tensors import Arrays

TEST = "test"
FEED = "test_inputs.npy"
THREADS = 1
"""Of the benchmark: steadier than all cores, and the ratio of two models is much the same."""
TRUTHS = ("accuracy", "mean error")
"""The measures of `Quality` that tell a better answer from another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutcome:
    """What a gate came to."""

    passed: bool
    detail: str
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A challenger beside the champion, if there is one."""

    registry: Registry
    version: int
    champion: int | None
    config: RegistryConfig

    @property
    def registered(self) -> Registered:
        """What is known of the challenger."""
        return self.registry.versions[self.version]

    @property
    def data(self) -> Path:
        """The preprocessed data set of the challenger."""
        return layout.ready(self.registered.dataset)

    def folder(self) -> Path:
        """The challenger's bundle; raises as `folder_of` does, as does the next."""
        return folder_of(self.registry, self.version)

    def folder_of_champion(self) -> Path:
        """The champion's."""
        if self.champion is None:  # whose gates are skipped
            raise ModelError(f"{self.registry.name} has no champion")
        return folder_of(self.registry, self.champion)


def judge(contest: Contest, log: Log) -> tuple[PromotionGate, ...]:
    """Try every gate; those that need a champion are skipped where there is none."""
    found = []
    for name, (check, needs_champion) in GATES.items():
        log(f"{contest.registry.name}/{contest.version}: {name}")
        if needs_champion and contest.champion is None:
            gate = PromotionGate(name=name, status="skipped", detail="no champion yet", figures={})
        else:
            gate = _gate(name, check, contest)
        found.append(gate)
    return tuple(found)


def _gate(name: str, check: "Check", contest: Contest) -> PromotionGate:
    """What cannot be measured is not passed."""
    try:
        one = check(contest)
    except FerryError as error:
        # It is kept in git: where this checkout lies is nobody's business.
        one = GateOutcome(passed=False, detail=str(error).replace(f"{Path.cwd()}/", ""))
    return PromotionGate(
        name=name,
        status="passed" if one.passed else "failed",
        detail=one.detail,
        figures=one.figures,
    )


def _verified(contest: Contest) -> GateOutcome:
    # A runner of an older ferry is vouched for by the digest that was registered.
    report = verify(contest.folder(), trust=Trust(digest=contest.registered.digest))
    failed = [f"{one.name}: {one.detail}" for one in report.checks if one.status == FAILED]
    return GateOutcome(
        passed=report.passed, detail="; ".join(failed) or f"{len(report.checks)} checks passed"
    )


def _parity(contest: Contest) -> GateOutcome:
    manifest = read_manifest(contest.folder())
    figures = {name: gate.measured for name, gate in manifest.parity.items()}
    return GateOutcome(passed=True, detail=check_parity(manifest), figures=figures)


def _rows(contest: Contest) -> GateOutcome:
    """The rows are those of the data set that the challenger was trained on."""
    wanted, data = contest.registered.data_sha256, contest.data
    found = ready.digest(ready.open_manifest(data))
    if found != wanted:
        known = (
            f"was trained on {wanted[:12]}…" if wanted else "does not say what it was trained on"
        )
        raise IntegrityError(f"{data} is {found[:12]}…, the challenger {known}")
    detail = f"{len(_test_rows(contest))} test rows of {data}, {found[:12]}…"
    if contest.champion is not None:
        before = contest.registry.versions[contest.champion].data_sha256
        detail += "" if before == found else "; the champion was trained on other data"
    return GateOutcome(passed=True, detail=detail)


def _test_rows(contest: Contest) -> Rows:
    info = read_manifest(contest.folder()).inputs[0]
    return rows_of_split(contest.data, TEST, info)


def _quality(contest: Contest) -> GateOutcome:
    """The challenger is not worse than the champion, beyond noise."""
    rows = _test_rows(contest)
    folders = contest.folder_of_champion(), contest.folder()
    labels = [read_manifest(folder).labels for folder in folders]
    for before, now in zip_longest(*labels):
        if before != now:
            raise ModelError(f"the classes are others: {before!r} before, {now!r} now")
    array = next(iter(rows.inputs.values()))
    answers = _common(*(open_model(folder).answers(array) for folder in folders))
    quality = compare_answers(*answers, rows.labels)
    p_value = p_value_of(quality)
    figures = {
        "rows": quality.rows,
        "champion": quality.reference,
        "challenger": quality.value,
        "loss": quality.loss,
        "low": quality.low,
        "high": quality.high,
        "p_value": p_value,
    }
    return GateOutcome(
        passed=is_as_good(quality, contest.config.significance),
        detail=_described(quality, p_value),
        figures={name: one for name, one in figures.items() if one is not None and isfinite(one)},
    )


def _common(before: Arrays, now: Arrays) -> tuple[Arrays, Arrays]:
    """The outputs that both give, of one type and shape."""
    names = [
        name
        for name, array in before.items()
        if name in now and (now[name].shape, now[name].dtype) == (array.shape, array.dtype)
    ]
    if not names:
        raise ModelError(
            f"they have no output in common: {', '.join(before)} of the champion, "
            f"{', '.join(now)} of the challenger"
        )
    return {name: before[name] for name in names}, {name: now[name] for name in names}


def is_as_good(quality: Quality, significance: float) -> bool:
    """Whether there is no loss beyond noise; not where the rows do not tell, or it is no number."""
    if quality.measure not in TRUTHS or quality.loss is None:
        return False
    return quality.loss <= 0 or p_value_of(quality) >= significance


def p_value_of(quality: Quality) -> float:
    """How likely so large a difference is if both are equally good.

    By McNemar's exact test of the rows that one of them alone gets right, else by a paired z-test
    of the changes of the errors.
    """
    if quality.rows_lost is not None and quality.rows_gained is not None:
        return mcnemar(quality.rows_lost, quality.rows_gained).p_value
    if quality.loss is None or quality.low is None or quality.high is None:
        return 0.0
    deviation = (quality.high - quality.low) / (2 * Z)
    if not deviation:
        return 0.0 if quality.loss else 1.0
    return erfc(abs(quality.loss) / deviation / sqrt(2))


def _described(quality: Quality, p_value: float) -> str:
    if quality.measure not in TRUTHS:
        return f"the test rows do not tell which of the two is right ({quality.measure})"
    if quality.reference is None or quality.value is None:
        return "no number"
    scale, unit = (100, " %") if quality.counts else (1, "")
    return (
        f"{quality.measure} {scale * quality.value:.4g}{unit}, the champion "
        f"{scale * quality.reference:.4g}{unit}, on {quality.rows:,} rows (p {p_value:.2g})"
    )


def _latency(contest: Contest) -> GateOutcome:
    """The challenger does not take longer than it may, beyond noise."""
    config = contest.config
    challenger, champion = contest.folder(), contest.folder_of_champion()
    fixed = [fixed_batch(read_manifest(folder).inputs) for folder in (challenger, champion)]
    sizes = (next(filter(None, fixed)),) if any(fixed) else config.batch_sizes
    options = BenchOptions(
        threads=(THREADS,),
        batch_sizes=sizes,
        seconds=config.seconds,
        rows=contest.data / FEED,
    )
    report = bench(challenger, options, against=champion)
    if report.partial:  # Ctrl-C is no result
        raise KeyboardInterrupt
    if report.skipped:
        raise ModelError("; ".join(one.skipped for one in report.skipped))
    target = CompareTarget(name="the champion", model=champion)
    compared = compare(report, target, config.max_slowdown)
    ratios = {row.batch_size: row.ratio for row in compared.rows}
    missing = [f"batch {size} was not measured" for size in sizes if size not in ratios]
    measured = [
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) times as long at batch {size}"
        for size, ratio in ratios.items()
    ]
    figures = {
        f"batch_{size}_{name}": getattr(ratio, name)
        for size, ratio in ratios.items()
        for name in ("median", "low", "high")
    }
    return GateOutcome(
        passed=compared.passed and not missing,
        detail=f"{', '.join([*measured, *missing])}; {config.max_slowdown:g} allowed",
        figures=figures,
    )


Check = Callable[[Contest], GateOutcome]
GATES: Mapping[str, tuple[Check, bool]] = {
    "verified": (_verified, False),
    "parity": (_parity, False),
    "rows": (_rows, False),
    "quality": (_quality, True),
    "latency": (_latency, True),
}
"""Each with whether it needs a champion."""
