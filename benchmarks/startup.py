"""How long `ferry --help` takes beside the smallest command line there is.

Run: python benchmarks/startup.py

Whole processes in interleaved pairs, after a warm-up; the figure is the median of the ratios. Aim:
at most 2.5 times `python -c "import argparse"`, with none of the heavy packages imported.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time

from serving.measuring.pairing import paired_ratio

AIM = 2.5
SECONDS = 8.0
# An installed package is compiled once; so may ours be.
ENVIRONMENT = {key: os.environ[key] for key in os.environ if key != "PYTHONDONTWRITEBYTECODE"}
HEAVY = ("numpy", "torch", "onnxruntime", "mlflow")


def main() -> None:
    """Print both medians, their ratio and what was imported."""
    ferry = [shutil.which("ferry") or sys.exit("ferry is not on PATH"), "--help"]
    argparse = [sys.executable, "-c", "import argparse"]
    ratio = paired_ratio(lambda: run(ferry), lambda: run(argparse), seconds=SECONDS, seed=0)
    print(f"ferry --help               {median_ms(ferry):6.1f} ms")
    print(f"python -c import argparse  {median_ms(argparse):6.1f} ms")
    print(
        f"ratio                      {ratio.median:6.2f}    aim at most {AIM} "
        f"(95 % interval {ratio.low:.2f} to {ratio.high:.2f}, {ratio.num_pairs} pairs)"
    )
    print(f"heavy packages imported    {', '.join(imported()) or 'none'}")


def run(command: list[str]) -> None:
    """Run a command to its end and throw away what it prints."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)


def median_ms(command: list[str]) -> float:
    """Median of ten runs."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        run(command)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def imported() -> list[str]:
    """The heavy packages that `ferry --help` imports."""
    script = "import sys, pipeline.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return [name for name in HEAVY if name in done.stdout.split()]


if __name__ == "__main__":
    main()
