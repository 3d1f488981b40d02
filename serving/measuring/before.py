"""What `ferry bench --compare` names: a model, saved figures, or a git revision that has either."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from serving.bench_report import BenchReport, report_from
from serving.errors import InputError, MissingInputError
from serving.files import read_json

__all__ = ["Before", "find_before"]

MODEL = "model.onnx"
GIT_SECONDS = 60
DVC_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What to compare with: one of the two."""

    name: str
    model: Path | None
    saved: BenchReport | None
    subject: str | None
    """Of the saved figures; None for the only one there."""


def find_before(what: str, model: Path, folder: Path) -> Before:
    """Find what `--compare WHAT` of a benchmark of `model` means; files it needs go to `folder`.

    A file ending in .json is what `ferry bench --json` or `ferry benchmark` wrote; another path
    that is there is a model. Anything else is a git revision: the model as it was then, from git
    or from DVC's cache, or else what `ferry benchmark` wrote of it then. Raises MissingInputError
    when it is none of these.
    """
    path = Path(what)
    if path.suffix == ".json":
        if not path.exists():
            raise MissingInputError(f"{what} is not there; `ferry bench -o {path.name}` writes one")
        return _saved(what, _report(read_json(path), what), model)
    if path.exists():
        return Before(name=what, model=path, saved=None, subject=None)
    if not _git("rev-parse", "--verify", "--quiet", f"{what}^{{commit}}"):
        raise MissingInputError(
            f"{what} is neither a file nor a revision of git: --compare takes a saved report "
            f"(.json), a model, or a revision"
        )
    then = _model_then(what, model, folder)
    if then:
        return Before(name=f"{model} at {what}", model=then, saved=None, subject=None)
    metrics = f"metrics/{_experiment(model)}/benchmark.json"
    text = _git("show", f"{what}:./{metrics}")
    if text:
        name = f"{metrics} at {what}"
        return _saved(name, _report(json.loads(text), name), model)
    raise MissingInputError(
        f"{what} has neither {model}, in git or in DVC's cache, nor {metrics} to compare with"
    )


def _saved(name: str, report: BenchReport, model: Path) -> Before:
    subjects = {one.subject for one in report.measured}
    known = [one for one in (_variant(model), model.name) if one in subjects]
    return Before(name=name, model=None, saved=report, subject=known[0] if known else None)


def _report(raw: object, where: str) -> BenchReport:
    """A report of `ferry bench`, alone or inside of one of `ferry benchmark`."""
    if isinstance(raw, dict) and isinstance(raw.get("bench"), dict):
        raw = raw["bench"]
    return report_from(raw, where)


def _experiment(model: Path) -> str:
    """The experiment that a model of the pipeline belongs to, by the folder that it lies in."""
    folder = model.absolute() if model.is_dir() else model.absolute().parent
    return folder.parent.name if folder.name == "quantized" else folder.name


def _variant(model: Path) -> str:
    """The variant that a model is by its name: fp32, fp16 or int8; of a bundle by its manifest."""
    if model.is_dir():
        variant: str = read_json(model / "manifest.json")["variant"]
        return variant
    suffixes = model.suffixes
    return suffixes[-2][1:] if len(suffixes) > 1 else "fp32"


def _model_then(revision: str, model: Path, folder: Path) -> Path | None:
    """The model's file as it was at a revision, written into `folder`; None if nobody has it."""
    file = model / MODEL if model.is_dir() else model
    target = folder / file.name
    try:
        relative = file.absolute().relative_to(Path().absolute()).as_posix()
    except ValueError as error:
        raise InputError(f"{file} is outside of this folder: no revision has it") from error
    content = _run(["git", "show", f"{revision}:./{relative}"], GIT_SECONDS)
    if content:
        target.write_bytes(content)
        return target
    _run(
        ["dvc", "get", "--quiet", ".", relative, "--rev", revision, "--out", str(target)],
        DVC_SECONDS,
    )
    return target if target.is_file() else None


def _git(*arguments: str) -> str:
    return _run(["git", *arguments], GIT_SECONDS).decode(errors="replace").strip()


def _run(command: list[str], seconds: int) -> bytes:
    """What a program prints; nothing when it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
