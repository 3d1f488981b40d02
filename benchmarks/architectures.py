"""Export image architectures that ferry did not make, and print how far each is from PyTorch.

Run: python benchmarks/architectures.py            # those of the tests and many more
     python benchmarks/architectures.py ViT Swin   # some of them

Each is exported at the standard settings of `ferry export --module` from random weights: opset 20,
a symbolic batch axis, 64 random images at batch sizes of 1, 2, 7 and 32, and a limit of 1e-4 on the
largest absolute difference of the logits.
"""

import sys
import tempfile
import time
from pathlib import Path

import onnx
import onnxruntime
import torch
import transformers

from pipeline.exporting.module import export_module
from pipeline.exporting.signatures import InputSpec
from serving.console import table
from serving.errors import FerryError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pipeline"))

from architectures import MORE, UNLIKE, Architecture

HEADER = ("architecture", "parameters", "nodes", "exported", "max diff", "of", "flips", "s")


def main(names: list[str]) -> int:
    """Export each and print the table; the number of those that failed."""
    packages = (torch, transformers, onnx, onnxruntime)
    print(", ".join(f"{one.__name__} {one.__version__}" for one in packages), flush=True)
    chosen = [one for one in (*UNLIKE, *MORE) if not names or one.name in names]
    lines, reasons = [], list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for architecture in chosen:
            print(architecture.name, file=sys.stderr, flush=True)
            start = time.perf_counter()
            try:
                cells = measured(architecture, Path(folder) / "model.onnx")
            except FerryError as error:
                cells = ("–", "–", "NO", "–", "–", "–")
                reasons.append(f"{architecture.name}: {error}")
            lines.append((architecture.name, *cells, f"{time.perf_counter() - start:.1f}"))
    print(table(HEADER, lines))
    print("\n".join([f"{len(chosen) - len(reasons)} of {len(chosen)} with parity", *reasons]))
    return len(reasons)


def measured(architecture: Architecture, path: Path) -> tuple[str, ...]:
    """The cells of one architecture."""
    axes = (3, architecture.pixels, architecture.pixels)
    images = InputSpec(name="pixel_values", dtype="float32", axes=axes)
    report = export_module(architecture.build(), [images], path, opset=20, limit=1e-4)
    result = report.parity.result
    largest = max(one.largest for cell in result.run for one in cell.outputs)
    return (
        f"{report.parameters:,}",
        str(report.nodes),
        "yes",
        f"{result.max_abs_diff:.1e}",
        f"{largest:.2g}",
        str(result.flips),
    )


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
