"""What a model takes on a microcontroller, and whether it decides alike there.

Run: python benchmarks/microcontroller.py mnist-tiny cifar10-resnet8   (after `dvc repro quantize`)
     python benchmarks/microcontroller.py --publish docs/results

Each variant that C can compute is written as C99 and answers test rows on this processor: fp32
against ONNX Runtime with all its optimizations, int8 against the graph as it is written. A flip
counts where the margin is larger than what ONNX Runtime's own kernels differ by. Some rows are
answered by an emulated Cortex-M4 as well (QEMU, which counts no cycles). Flash and RAM are of the
program with what it needs of libm, compiled with -Os for a Cortex-M4F; RAM is its static memory and
the stack that a call was seen to use, without the row and the answers of the caller.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from benching import Line, parser, show

from pipeline.config import layout, params
from pipeline.proof.differences import decided_by
from pipeline.proof.rows import rows_of_split
from pipeline.targets.c99 import CModel, emit
from serving.errors import ModelError
from serving.runtime.session import open_session
from serving.runtime.settings import Level
from serving.runtime.tensors import Array

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import c_toolchain

ROWS, EMULATED = 1000, 20
EXPERIMENTS = ("mnist-tiny", "cifar10-resnet8")
KIB = 1024
AIMS = {
    ("mnist-tiny", "int8"): (12, 6),
    ("mnist-tiny", "fp32"): (40, 20),
    ("cifar10-resnet8", "int8"): (110, 60),
}
"""KiB of flash and of RAM."""
LEVELS: dict[str, Level] = {"fp32": "all", "int8": "none"}
Answers = dict[str, Array]


def main() -> None:
    """Print the table of aims."""
    arguments = parser(__doc__)
    arguments.add_argument("experiment", nargs="*", default=EXPERIMENTS)
    given = arguments.parse_args()
    if lacking := c_toolchain.missing("host"):
        sys.exit(f"{lacking} is not installed")
    show([line for name in given.experiment for line in of(name)], given.publish)


def of(name: str) -> Iterator[Line]:
    """The figures of one experiment."""
    models = layout.models(name)
    data = layout.ready(params.load().experiment(name).dataset)
    for variant in (one for one in LEVELS if one in models):
        content = models[variant].read_bytes()
        what = f"{name} {variant} in C"
        try:
            program = emit(onnx.load_model_from_string(content), name)
        except ModelError as error:
            yield Line(what, f"skipped: {error}", "a program", None)
            continue
        info = open_session(content, threads=1).inputs[0]
        rows = np.array(rows_of_split(data, "test", info).slice(0, ROWS)[info.name])
        with tempfile.TemporaryDirectory() as folder:
            yield from decisions(what, content, program, rows, Path(folder), LEVELS[variant])
            yield from room(what, program, Path(folder), AIMS.get((name, variant)))


def decisions(
    what: str, content: bytes, program: CModel, rows: Array, folder: Path, level: Level
) -> Iterator[Line]:
    """The rows that C decides otherwise, here and on a Cortex-M4."""
    found = by_name(content, c_toolchain.answers(program, {program.inputs[0].name: rows}, folder))
    against = {"none": "the graph unoptimised", "all": "all optimizations"}[level]
    other: Level = "all" if level == "none" else "none"
    wanted, others = runtime(content, rows, level), runtime(content, rows, other)
    yield compared(f"{what}, {against}", wanted, found, tie(wanted, others))
    if lacking := c_toolchain.missing("cortex-m4"):
        yield Line(f"{what}, Cortex-M4 emulated", f"skipped: no {lacking}", "0 real flips", None)
        return
    few = {program.inputs[0].name: rows[:EMULATED]}
    there = by_name(content, c_toolchain.answers(program, few, folder, machine="cortex-m4"))
    here = {name: values[:EMULATED] for name, values in found.items()}
    yield compared(f"{what}, Cortex-M4 emulated, this processor's C", here, there, 0.0)


def runtime(content: bytes, rows: Array, level: Level) -> Answers:
    """What ONNX Runtime answers."""
    session = open_session(content, threads=1, optimize=level)
    return session.run({session.inputs[0].name: rows})


def by_name(content: bytes, found: Answers) -> Answers:
    """Answers of a program by the names that the outputs have in the graph."""
    outputs = onnx.load_model_from_string(content).graph.output
    return {one.name: values for one, values in zip(outputs, found.values(), strict=True)}


def tie(wanted: Answers, others: Answers) -> float:
    """The margin below which kernels of the runtime itself may decide differently."""
    before, after = decided_by(wanted), decided_by(others)
    if before is None or after is None or before.scores is None or after.scores is None:
        return 0.0
    return 2 * float(np.abs(before.scores - after.scores).max())


def compared(what: str, wanted: Answers, found: Answers, near: float) -> Line:
    """How many rows are decided otherwise, and the largest difference of any output."""
    apart = max(float(np.abs(wanted[name] - found[name]).max()) for name in wanted)
    before, after = decided_by(wanted), decided_by(found)
    if before is None or after is None:
        return Line(what, f"up to {apart:.1e}", "no classes", None)
    flipped = before.classes != after.classes
    real = int((flipped & (before.margins() > near)).sum())
    near_ties = int(flipped.sum()) - real
    others = f" and {near_ties} near-ties" if near_ties else ""
    reached = f"{real} flips{others} of {len(flipped):,}, up to {apart:.1e}"
    return Line(what, reached, "0 real flips", real == 0)


def room(what: str, program: CModel, folder: Path, aim: tuple[int, int] | None) -> Iterator[Line]:
    """Flash and RAM on a Cortex-M4F."""
    if lacking := c_toolchain.missing("cortex-m4"):
        yield Line(f"{what}, flash and RAM", f"skipped: no {lacking}", "", None)
        return
    found = c_toolchain.measure(program, folder)
    stack = found.stack_bytes or 0
    flash, ram = found.flash_bytes, found.arena_bytes + stack
    limits = [f"{one} KiB" for one in aim] if aim else ["", ""]
    met = (
        [size <= limit * KIB for size, limit in zip((flash, ram), aim, strict=True)] if aim else []
    )
    yield Line(f"{what}, flash", f"{flash:,} bytes", limits[0], met[0] if met else None)
    reached = f"{ram:,} bytes, {stack} of them stack"
    yield Line(f"{what}, RAM", reached, limits[1], met[1] if met else None)


if __name__ == "__main__":
    main()
