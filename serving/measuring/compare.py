"""`ferry bench --compare`: fail where a model is slower than before, beyond a limit and the noise.

It compares with a model, a saved report, or a git revision that has either. A model takes turns
with the one that is measured, and the ratios of their turns decide. The turns of a saved report are
hours apart and their medians decide: a weaker proof, made only on the same kind of machine, and the
comparison says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from serving.console import table
from serving.errors import InputError, MissingInputError, SlowerError
from serving.files import read_json, read_record
from serving.machine.environment import output_of
from serving.measuring.pairing import PairedRatio, ratio_of_separate_turns, ratio_of_turns
from serving.measuring.report import BEFORE, BenchReport, Measurement

HEADER = ("what", "threads", "batch", "now ms", "before ms", "now / before", "95 % interval", "")
MODEL = "model.onnx"
GIT_SECONDS, DVC_SECONDS = 60, 600

Method = Literal["in turns", "with saved figures"]

SAME = ("processor", "architecture", "allowed_cores", "gpu")
"""What two machines must share for their figures to be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """One provider, setting and batch size, now and before."""

    what: str
    threads: int
    batch_size: int
    now_ms: float
    before_ms: float
    ratio: PairedRatio
    """Time now over time before: above 1 is slower."""
    slower: bool
    """Whether the whole interval is above the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every row that was measured both now and before."""

    against: str
    method: Method
    limit: float
    """How many times as long as before a row may take."""
    rows: tuple[ComparedRow, ...]

    @property
    def passed(self) -> bool:
        """Whether no row is slower than the limit."""
        return not any(row.slower for row in self.rows)

    def require(self) -> None:
        """Raise SlowerError, naming the worst row, if one is slower than the limit."""
        slower = [row for row in self.rows if row.slower]
        if slower:
            worst = max(slower, key=lambda row: row.ratio.median)
            raise SlowerError(
                f"{worst.what} at batch {worst.batch_size}, threads {worst.threads}, takes "
                f"{worst.ratio.median:.2f} ({worst.ratio.low:.2f} to {worst.ratio.high:.2f}) times "
                f"as long as {self.against}, the limit is {self.limit:g}; {len(slower)} of "
                f"{len(self.rows)} rows are slower"
            )


def compare_turns(report: BenchReport, limit: float, *, name: str) -> Comparison:
    """Compare the two models of a report that `ferry bench` made with `against`."""
    pairs = [
        (one, other)
        for one in report.measured
        if one.subject != BEFORE
        for other in report.of(BEFORE, one.provider)
    ]
    return _compare(pairs, "in turns", against=name, limit=limit, seed=report.seed)


def compare_saved(
    report: BenchReport, saved: BenchReport, *, subject: str | None, where: str, limit: float
) -> Comparison:
    """Compare with a saved report, of `subject` there, or of its only one.

    Raises InputError when they are of different machines, or share no row.
    """
    for name in SAME:
        now, before = getattr(report.environment, name), getattr(saved.environment, name)
        if now != before:
            raise InputError(
                f"{where} was measured on another machine ({name} {before}, here {now}): figures "
                f"of two machines do not compare"
            )
    known = sorted({one.subject for one in saved.measured})
    subject = known[0] if subject is None and len(known) == 1 else subject
    if subject not in known:
        raise InputError(
            f"{where} has {', '.join(known) or 'no rows'}, not {subject or 'one model'}"
        )
    pairs = [(one, other) for one in report.measured for other in saved.of(subject, one.provider)]
    method: Method = "with saved figures"
    return _compare(pairs, method, against=where, limit=limit, seed=report.seed)


def as_text(comparison: Comparison) -> str:
    """Lay a comparison out for a terminal."""
    lines = [
        (
            row.what,
            str(row.threads),
            str(row.batch_size),
            f"{row.now_ms:.3f}",
            f"{row.before_ms:.3f}",
            f"{row.ratio.median:.3f}",
            f"{row.ratio.low:.3f}–{row.ratio.high:.3f}",
            "SLOWER" if row.slower else "",
        )
        for row in comparison.rows
    ]
    verdict = "passed" if comparison.passed else "FAILED"
    message = f"{verdict}: compared {comparison.method}, limit {comparison.limit:g}"
    if comparison.method == "with saved figures":
        message += "; of another time: name a model file instead to measure both in turns"
    return f"{table(HEADER, lines)}\n\n{message}"


def _compare(
    pairs: Iterable[tuple[Measurement, Measurement]],
    method: Method,
    *,
    against: str,
    limit: float,
    seed: int,
) -> Comparison:
    """Compare each pair, now and before, at the batch sizes that both were measured at."""
    ratio_of = ratio_of_turns if method == "in turns" else ratio_of_separate_turns
    same = [
        (one, row.timing.turns_ms, other.timing.turns_ms, row.timing.batch_size)
        for one, before in pairs
        if one.settings == before.settings
        for row in one.rows
        if (other := before.row(row.timing.batch_size))
    ]
    rows: list[ComparedRow] = []
    for one, now, before, batch_size in same:
        ratio = ratio_of(now, before, seed=seed)
        rows.append(
            ComparedRow(
                what=one.label,
                threads=one.settings.threads,
                batch_size=batch_size,
                now_ms=float(np.median(now)),
                before_ms=float(np.median(before)),
                ratio=ratio,
                slower=ratio.low > limit,
            )
        )
    if not rows:
        raise InputError(
            f"nothing that was measured is in {against} too: no row of the same provider, settings "
            f"and batch size"
        )
    return Comparison(against=against, method=method, limit=limit, rows=tuple(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareTarget:
    """What `--compare` names: a model or a saved report."""

    name: str
    model: Path | None = None
    saved: BenchReport | None = None
    subject: str | None = None
    """Of the saved figures; None for the only one there."""


def find_target(what: str, model: Path, folder: Path) -> CompareTarget:
    """Find what `--compare WHAT` of a benchmark of `model` means; files it needs go to `folder`.

    It is a saved report (.json), a model, or a git revision: the model as it was then, from git or
    from DVC's cache, or else its report. Raises MissingInputError when it is none of these.
    """
    path = Path(what)
    if path.suffix == ".json":
        if not path.exists():
            raise MissingInputError(f"{what} is not there; `ferry bench -o {path.name}` writes one")
        return _saved(what, path, model)
    if path.exists():
        return CompareTarget(name=what, model=path)
    revision = ("git", "rev-parse", "--verify", "--quiet", f"{what}^{{commit}}")
    if not output_of(revision, seconds=GIT_SECONDS):
        raise MissingInputError(
            f"{what} is neither a file nor a revision of git: --compare takes a saved report "
            f"(.json), a model, or a revision"
        )
    then = _file_then(what, model / MODEL if model.is_dir() else model, folder)
    if then:
        return CompareTarget(name=f"{model} at {what}", model=then)
    home = model.absolute() if model.is_dir() else model.absolute().parent
    experiment = home.parent.name if home.name == "quantized" else home.name
    saved = Path("reports/details") / experiment / "benchmark.json"
    report = _file_then(what, saved, folder)
    if report:
        return _saved(f"{saved} at {what}", report, model)
    raise MissingInputError(
        f"{what} has neither {model}, in git or in DVC's cache, nor {saved} to compare with"
    )


def _saved(name: str, file: Path, model: Path) -> CompareTarget:
    """The figures in a report of `ferry bench`, alone or inside of one of `ferry benchmark`."""
    raw = read_json(file)
    if isinstance(raw, dict) and isinstance(raw.get("bench"), dict):
        raw = raw["bench"]
    report = read_record(BenchReport, raw, name)
    subjects = {one.subject for one in report.measured}
    known = [one for one in (_variant(model), model.name) if one in subjects]
    return CompareTarget(name=name, saved=report, subject=known[0] if known else None)


def _variant(model: Path) -> str:
    """The variant that a model is by its name: fp32, fp16 or int8; of a bundle by its manifest."""
    if model.is_dir():
        return str(read_json(model / "manifest.json")["variant"])
    return model.suffixes[-2][1:] if len(model.suffixes) > 1 else "fp32"


def _file_then(revision: str, file: Path, folder: Path) -> Path | None:
    """A file as it was at a revision, written into `folder`; None if nobody has it."""
    target = folder / file.name
    try:
        relative = file.absolute().relative_to(Path().absolute()).as_posix()
    except ValueError as error:
        raise InputError(f"{file} is outside of this folder: no revision has it") from error
    content = output_of(("git", "show", f"{revision}:./{relative}"), seconds=GIT_SECONDS)
    if content:
        target.write_bytes(content)
        return target
    get = ("dvc", "get", "--quiet", ".", relative, "--rev", revision, "--out", str(target))
    output_of(get, seconds=DVC_SECONDS)
    return target if target.is_file() else None
