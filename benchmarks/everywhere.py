"""Whether int8 decides alike everywhere: with other kernels, and on processors of other kinds.

Run: python benchmarks/everywhere.py        (after `dvc repro quantize`)
     python benchmarks/everywhere.py --publish docs/results

Every int8 variant answers test rows with the optimized kernels of this processor, without any
optimization, and on an emulated x86 processor without VNNI (Debian's qemu-user-static). Where
ARM_PYTHON is the command of an emulated Arm's Python that has numpy and onnxruntime, there too;
qemu wants `-cpu cortex-a76`, for with the SME that it emulates products come out wrong.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from benching import Line, parser, show

from pipeline.config import layout, params
from pipeline.proof.differences import decided_by
from pipeline.proof.rows import rows_of_split
from serving.runtime.session import open_session
from serving.runtime.settings import Level
from serving.runtime.tensors import Array, as_fed

ROWS = 1000
PROGRAM = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rows = dict(numpy.load(sys.argv[2]))
feeds = {name: array.astype(object) if array.dtype.kind == "U" else array
         for name, array in rows.items()}
names = [output.name for output in session.get_outputs()]
numpy.savez(sys.argv[3], **dict(zip(names, session.run(names, feeds))))
"""
Answers = dict[str, Array]


def main() -> None:
    """Print the table of aims."""
    publish = parser(__doc__).parse_args().publish
    made = [name for name in params.load().experiments if "int8" in layout.models(name)]
    show([line for name in made for line in of(name)], publish)


def of(name: str) -> Iterator[Line]:
    """The rows of one experiment that are decided otherwise anywhere."""
    model = layout.models(name)["int8"]
    data = layout.ready(params.load().experiment(name).dataset)
    rows = rows_of_split(data, "test", open_session(model, threads=1).inputs[0]).slice(0, ROWS)
    usual = answers(model, rows, "all")
    yield line(f"{name}: without optimization", usual, answers(model, rows, "none"))
    for processor, command in emulated():
        what = f"{name}: {processor}, emulated"
        if isinstance(command, str):
            yield Line(what, f"skipped: {command}", "0 flips", None)
        else:
            yield line(what, usual, elsewhere(command, model, rows))


def answers(model: Path, rows: Answers, level: Level) -> Answers:
    """What this processor answers."""
    session = open_session(model, threads=1, optimize=level)
    return session.run({name: as_fed(array) for name, array in rows.items()})


def emulated() -> Iterator[tuple[str, list[str] | str]]:
    """The commands of Python on other processors, or why there is none."""
    x86 = shutil.which("qemu-x86_64-static")
    yield "x86 without VNNI", [x86, "-cpu", "Haswell", sys.executable] if x86 else "no qemu"
    arm = os.environ.get("ARM_PYTHON", "")
    yield "64-bit Arm", shlex.split(arm) or "ARM_PYTHON names no Python"


def elsewhere(python: list[str], model: Path, rows: Answers) -> Answers:
    """What another processor answers, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "rows.npz", Path(folder) / "answers.npz"
        plain = {n: a.astype(str) if a.dtype == object else np.array(a) for n, a in rows.items()}
        np.savez(asked, **plain)  # type: ignore[arg-type]  # names of inputs, not of options
        command = [*python, "-c", PROGRAM, str(model), str(asked), str(told)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return dict(np.load(told))


def line(what: str, usual: Answers, others: Answers) -> Line:
    """How many rows are decided otherwise, and the largest difference of any output."""
    apart = max(float(np.abs(usual[name] - others[name]).max()) for name in usual)
    before, after = decided_by(usual), decided_by(others)
    if before is None or after is None:
        return Line(what, f"up to {apart:.1e}", "no classes", None)
    flips = int((before.classes != after.classes).sum())
    rows = len(before.classes)
    return Line(what, f"{flips} flips of {rows:,}, up to {apart:.1e}", "0 flips", flips == 0)


if __name__ == "__main__":
    main()
