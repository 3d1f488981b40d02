"""Which versions of ONNX Runtime take a model, and which are known to do it badly.

What is known of a bad one stands in `BAD_RUNTIMES`, with the upstream issues that tell of it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.exporting.onnxmodel import DOMAINS
from pipeline.targets.lint.findings import FEW, UPSTREAM, LintFinding, LintModel
from serving.errors import UsageError
from serving.runtime.onnxfile import IR_RUNTIME, ML_DOMAIN, OPSET_RUNTIME, minimum_runtime
from serving.runtime.providers import onnxruntime

Version = tuple[int, ...]
VERSION = re.compile(r"1\.(\d{1,3})(?:\.(\d{1,3}))?")
OLDEST = 10
"""The first ONNX Runtime, 1.10, that `minimum_runtime` knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRuntime:
    """Versions of ONNX Runtime that are known to go wrong."""

    first: Version
    last: Version
    """The last one that is known to; (1, 999) where no release mends it yet."""
    what: str
    cure: str
    issues: tuple[int, ...]
    concerns: Callable[[LintModel], bool] = lambda _model: True
    on_arm: bool = True
    """Whether it goes wrong on 64-bit Arm alone."""

    def reaches(self, version: Version) -> bool:
        """Whether the version, or a patch release of "1.21" where it says no more, is one."""
        length = len(version)
        return self.first[:length] <= version <= self.last[:length]

    def span(self) -> str:
        """Its versions in words."""
        first, last = (".".join(map(str, one)) for one in (self.first, self.last))
        if self.last[1] == OPEN[1]:
            return f"{first} and later"
        return first if first == last else f"{first} to {last}"


OPEN: Version = (1, 999, 0)
BAD_RUNTIMES = (
    BadRuntime(
        first=(1, 15, 0),
        last=(1, 18, 1),
        what="answers wrong where a convolution in half precision has a bias, on 64-bit Arm Linux",
        cure="use 1.19 or later there, or ship fp32",
        issues=(18992,),
        concerns=lambda model: model.halves and any(n.op_type == "Conv" for n in model.nodes()),
    ),
    BadRuntime(
        first=(1, OLDEST, 0),
        last=(1, 18, 1),
        what="does not start beside numpy 2",
        cure="install 'numpy<2' with it, or 1.19 or later",
        issues=(21063,),
        on_arm=False,
    ),
    BadRuntime(
        first=(1, 21, 0),
        last=(1, 21, 0),
        what=(
            "ends with an illegal instruction when imported on Arm processors without half "
            "precision, such as those of a Raspberry Pi 3 and 4"
        ),
        cure="use 1.20.1, or 1.21.1 or later",
        issues=(23957, 24112, 24512),
    ),
    BadRuntime(
        first=(1, 22, 0),
        last=(1, 22, 0),
        what=(
            "is aborted on some Arm boards, in the setup of its processor information (seen on "
            "Jetson Orin and Raspberry Pi Zero 2 W)"
        ),
        cure="use another version, and run the bundle's selftest on the very board",
        issues=(25103, 25290, 25472),
    ),
    BadRuntime(
        first=(1, 24, 1),
        last=OPEN,
        what=(
            "overflows to NaN on 64-bit Arm Linux where sums in half precision come near 65504, "
            "which 1.23.2 does not"
        ),
        cure="prove it there with the bundle's selftest, or ship fp32 or int8",
        issues=(32600,),
        concerns=lambda model: model.halves,
    ),
)


def as_version(text: str) -> Version:
    """The version that "1.17" or "1.21.0" means; UsageError for one that nothing is known of."""
    newest = minor_of(onnxruntime.__version__)
    found = VERSION.fullmatch(text)
    if found is None or not OLDEST <= int(found[1]) <= newest:
        raise UsageError(
            f"--ort {text}: nothing is known of that ONNX Runtime; known are 1.{OLDEST} to "
            f"1.{newest}, written as 1.17 or 1.21.0"
        )
    return (1, *(int(part) for part in found.groups() if part is not None))


def of_runtime(model: LintModel, version: Version) -> Iterator[LintFinding]:
    """What stands against a version of ONNX Runtime; `version` as `as_version` gives it."""
    name = f"onnxruntime {'.'.join(map(str, version))}"
    least = minimum_runtime(model.header)
    if version[1] < minor_of(least):
        yield _too_old(model, name, version[1], least)
    else:
        yield LintFinding(place=name, severity="note", what=f"takes it: it needs {least}", cure="")
    yield from _other_domains(model, name)
    for bad in BAD_RUNTIMES:
        if bad.reaches(version) and bad.concerns(model):
            yield _bad(model, name, bad, asked=len(version) == 3)


def _too_old(model: LintModel, place: str, minor: int, least: str) -> LintFinding:
    """What is newer than a runtime takes: operators, the format of the file, or both."""
    header = model.header
    newest = {
        what: max((one for one, since in table.items() if since <= minor), default=min(table) - 1)
        for what, table in (("opset", OPSET_RUNTIME), ("IR", IR_RUNTIME))
    }
    found = {"opset": header.opset, "IR": header.ir_version}
    above = [f"{what} {found[what]}" for what in found if found[what] > newest[what]]
    above += [f"{ML_DOMAIN} opset {header.opsets[ML_DOMAIN]}"] if not above else []
    cure = f"install 'onnxruntime>={least}' there"
    # Strings are split by an operator of opset 20, and ferry exports from opset 18 on.
    ours = "ferry.version" in header.metadata
    if above[0].startswith("opset") and not model.texts and not (ours and newest["opset"] < 18):
        cure += f", or export with opset {newest['opset']}"
    elif above[0].startswith("IR"):
        cure += f", or save the model with ir_version {newest['IR']} and prove that file"
    what = f"is too old for {' and '.join(above)}: it needs {least}"
    return LintFinding(place=place, severity="error", what=what, cure=cure)


def _other_domains(model: LintModel, place: str) -> Iterator[LintFinding]:
    """Operators that are not ONNX's own: no table says which runtime brought them."""
    found = sorted(
        {f"{n.domain}.{n.op_type}" for n in model.nodes() if n.domain not in (*DOMAINS, "ai.onnx")}
    )
    if found:
        yield LintFinding(
            place=place,
            severity="warning",
            what=f"may lack what is not ONNX's own: {', '.join(found[:FEW])}",
            cure="run it there once, by the bundle's selftest",
        )


def minor_of(version: str) -> int:
    """The 17 of "1.17"."""
    return int(version.split(".")[1])


def of_runtimes(model: LintModel) -> Iterator[LintFinding]:
    """The versions of ONNX Runtime that take a model, and those that do it badly."""
    header, least = model.header, minimum_runtime(model.header)
    what = f"{least} or later takes it: opset {header.opset}, IR {header.ir_version}"
    yield LintFinding(place="onnxruntime", severity="note", what=what, cure="")
    yield from _other_domains(model, "onnxruntime")
    for bad in BAD_RUNTIMES:
        taken = bad.last[1] >= minor_of(least)
        if taken and bad.concerns(model) and (bad.on_arm or model.target != "arm64"):
            yield _bad(model, "onnxruntime", bad, asked=False)


def _bad(model: LintModel, place: str, bad: BadRuntime, *, asked: bool) -> LintFinding:
    """A bad runtime: an error where that very version is to run on Arm."""
    certain = asked and bad.on_arm and model.target == "arm64" and bad.last != OPEN
    return LintFinding(
        place=place,
        severity="error" if certain else "warning",
        what=bad.what if asked else f"{bad.span()} {bad.what}",
        cure=bad.cure,
        see=tuple(f"{UPSTREAM}{number}" for number in bad.issues),
    )
