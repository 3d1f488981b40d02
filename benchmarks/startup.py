"""How long `ferry --help`, a misspelt name, `ferry lineage` and a bundle's runner take to start.

Run: python benchmarks/startup.py [--publish docs/results]

Whole processes in interleaved pairs, after a warm-up; a figure is the median of the ratios. The
help is held against `python -c "import argparse"`, and the misspelt experiment of a command against
that of `ferry train`, which has nothing to import before it looks the name up. A lineage is that of
the first bundle of this checkout, or of a small ONNX file where there is none. The first answer of
a bundle's runner, with all that it checks before, is held against the shortest script that loads
the same model and answers the same row; it needs a bundle.
"""

import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from benching import Line, parser, show

from serving.measuring.pairing import paired_ratio

SECONDS = 8.0
# An installed package is compiled once; so may ours be.
COMPILED = {key: os.environ[key] for key in os.environ if key != "PYTHONDONTWRITEBYTECODE"}
HEAVY = ("numpy", "torch", "onnxruntime", "mlflow")
ARGPARSE = [sys.executable, "-c", "import argparse"]
TYPO = "mnist-cn"
BARE = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
rows = np.load(sys.argv[2])
print(session.run(None, {session.get_inputs()[0].name: rows})[0].argmax(axis=1))
"""
PROBE = Path("serving/runtime/probe.onnx")
NUM_RUNS = 9


def main() -> None:
    """Print the table of aims."""
    given = parser(__doc__).parse_args()
    show(list(lines()), given.publish)


def lines() -> Iterator[Line]:
    """The help, and the commands that a misspelt name is given."""
    ferry = shutil.which("ferry") or sys.exit("ferry is not on PATH")
    yield held("ferry --help over `import argparse`", [ferry, "--help"], ARGPARSE, 2.5)
    heavy = imported()
    yield Line("heavy packages that it imports", ", ".join(heavy) or "none", "none", not heavy)
    train = [ferry, "train", TYPO]
    for name in ("parity", "quantize", "results"):
        what = f"ferry {name} {TYPO} over ferry train {TYPO}"
        yield held(what, [ferry, name, TYPO], train, 1.2)
    yield traced(ferry)
    yield from first_answers()


def first_answers() -> Iterator[Line]:
    """A bundle's runner over a bare script, and what the bundle weighs."""
    bundles = [manifest.parent for manifest in sorted(Path("bundles").glob("*/manifest.json"))]
    bundle = next((one for one in bundles if one.name == "mnist-tiny"), None)
    if bundle is None:
        reason = "bundles/mnist-tiny is not there: `dvc repro bundle@mnist-tiny`"
        yield Line("a runner's first answer over a bare script", f"skipped: {reason}", "1.15", None)
        return
    with tempfile.TemporaryDirectory() as folder, np.load(bundle / "golden.npz") as golden:
        row = str(Path(folder) / "row.npy")
        np.save(row, golden["input"][:1])
        bare = [sys.executable, "-c", BARE, str(bundle / "model.onnx"), row]
        ours = [sys.executable, str(bundle / "runner.py"), "predict", row]
        what = f"{bundle.name}: its runner's first answer over a bare script"
        yield held(what, ours, bare, 1.15, seconds=4 * SECONDS)
    size = sum(path.stat().st_size for path in bundle.rglob("*")) / 1000
    yield Line(f"{bundle.name}: the bundle", f"{size:.1f} KB", "at most 100 KB", size <= 100)


def held(
    what: str, ours: list[str], other: list[str], aim: float, seconds: float = SECONDS
) -> Line:
    """How many times as long one program takes as another one."""
    first, second = functools.partial(run, ours), functools.partial(run, other)
    ratio = paired_ratio(first, second, seconds=seconds, seed=0)
    found = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}, {ratio.num_pairs} pairs)"
    return Line(what, found, f"at most {aim}", ratio.median <= aim)


def traced(ferry: str) -> Line:
    """The seconds that a lineage takes, the median of whole processes."""
    bundles = [manifest.parent for manifest in sorted(Path("bundles").glob("*/manifest.json"))]
    command = [ferry, "lineage", str(next(iter(bundles), PROBE))]
    taken = []
    for _ in range(NUM_RUNS + 1):
        start = time.perf_counter()
        run(command)
        taken.append(time.perf_counter() - start)
    found = statistics.median(taken[1:])
    what = f"ferry lineage of {'a bundle' if bundles else 'an ONNX file'}"
    return Line(what, f"{found:.2f} s ({NUM_RUNS} runs)", "at most 0.5 s", found <= 0.5)


def run(command: list[str]) -> None:
    """Run a program to its end and throw away what it prints."""
    quiet = subprocess.DEVNULL
    subprocess.run(command, check=False, stdout=quiet, stderr=quiet, env=COMPILED)


def imported() -> list[str]:
    """The heavy packages that `ferry --help` imports."""
    script = "import sys, pipeline.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return [name for name in HEAVY if name in done.stdout.split()]


if __name__ == "__main__":
    main()
