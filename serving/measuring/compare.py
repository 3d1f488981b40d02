"""`ferry bench --compare`: fail where a model is slower than before, beyond a limit and the noise.

It compares with a model, a saved report, or a git revision that has either. A model takes turns
with the one that is measured, and the ratios of their turns decide. The turns of a saved report are
hours apart and their medians decide: a weaker proof, made only on the same kind of machine, and the
comparison says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from serving.bundles.bundle import read_manifest
from serving.bundles.finding import located
from serving.console import table
from serving.errors import InputError, MissingInputError, SlowerError
from serving.files import read_json, read_record
from serving.machine.environment import output_of
from serving.measuring.pairing import PairedRatio, ratio_of_separate_turns, ratio_of_turns
from serving.measuring.report import BEFORE, BenchReport

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareTarget:
    """What `--compare` names: a model or a saved report."""

    name: str
    model: Path | None = None
    saved: BenchReport | None = None
    subject: str | None = None
    """Of the saved figures; None for the only one there."""


def compare(report: BenchReport, target: CompareTarget, limit: float) -> Comparison:
    """Compare each provider, setting and batch size that was measured both now and before.

    Raises InputError where there is none, and for saved figures that do not compare.
    """
    saved = target.saved
    before, subject = (saved, _subject_of(target, saved, report)) if saved else (report, BEFORE)
    ratio_of = ratio_of_separate_turns if saved else ratio_of_turns
    pairs = [
        (one, row.timing.turns_ms, then.timing.turns_ms, row.timing.batch_size)
        for one in report.measured
        if saved or one.subject != BEFORE
        for other in before.of(subject, one.provider)
        if other.settings == one.settings
        for row in one.rows
        if (then := other.row(row.timing.batch_size))
    ]
    if not pairs:
        raise InputError(
            f"nothing that was measured is in {target.name} too: no row of the same provider, "
            f"settings and batch size"
        )
    rows: list[ComparedRow] = []
    for one, now_ms, before_ms, batch_size in pairs:
        ratio = ratio_of(now_ms, before_ms, seed=report.seed)
        rows.append(
            ComparedRow(
                what=one.label,
                threads=one.settings.threads,
                batch_size=batch_size,
                now_ms=float(np.median(now_ms)),
                before_ms=float(np.median(before_ms)),
                ratio=ratio,
                slower=ratio.low > limit,
            )
        )
    method: Method = "with saved figures" if saved else "in turns"
    return Comparison(against=target.name, method=method, limit=limit, rows=tuple(rows))


def _subject_of(target: CompareTarget, saved: BenchReport, report: BenchReport) -> str:
    """The subject of the saved figures to compare with; InputError for another machine."""
    for name in SAME:
        now, before = getattr(report.environment, name), getattr(saved.environment, name)
        if now != before:
            raise InputError(
                f"{target.name} was measured on another machine ({name} {before}, here {now}): "
                f"figures of two machines do not compare"
            )
    known = sorted({one.subject for one in saved.measured})
    subject = known[0] if target.subject is None and len(known) == 1 else target.subject
    if subject not in known:
        raise InputError(
            f"{target.name} has {', '.join(known) or 'no rows'}, not {subject or 'one model'}"
        )
    return subject


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


def find_target(what: str, model: Path, folder: Path) -> CompareTarget:
    """Find what `--compare WHAT` of a benchmark of `model` means; files it needs go to `folder`.

    It is a saved report (.json), a model, or a git revision: the model as it was then, from git or
    from DVC's cache, or else its report. Raises MissingInputError when it is none of these.
    """
    path = located(what)
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
        return read_manifest(model).variant
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
