"""Serving runs where nothing of training is installed, and starts as fast as what it needs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_classifier import images

ROOT = Path(__file__).parents[2]
TRAINING = {
    "dvc",
    "matplotlib",
    "mlflow",
    "onnx",
    "pandas",
    "pipeline",
    "pydantic",
    "sklearn",
    "torch",
    "yaml",
}
HEAVY = TRAINING | {"numpy", "onnxruntime", "PIL", "psutil", "pyarrow", "tqdm"}


def loaded(code: str) -> set[str]:
    """The top-level packages in memory after some code ran in a process of its own."""
    tail = "import sys, json\nprint(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module", ["serving", "serving.cli", "serving.errors", "serving.console", "serving.files"]
)
def test_what_the_command_line_needs_is_light(module: str) -> None:
    assert not loaded(f"import {module}") & HEAVY


def test_no_module_of_serving_needs_training_packages() -> None:
    paths = sorted((ROOT / "serving").rglob("[!_]*.py"))
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    assert "serving.bundles.runner" in modules
    code = "\n".join(f"import {module}" for module in modules)
    assert not loaded(code) & TRAINING


def test_help_is_light() -> None:
    code = "from serving.cli import serving\nserving(['predict', '--help'], standalone_mode=False)"
    assert not loaded(code) & HEAVY


def test_a_prediction_needs_no_training_packages(built_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", images(3))
    code = (
        "from pathlib import Path\n"
        "from serving.batch.predict import predict\n"
        f"predict(Path({str(built_bundle)!r}), [Path({str(tmp_path / 'rows.npy')!r})],"
        f" output=Path({str(tmp_path / 'out.csv')!r}))"
    )
    packages = loaded(code)
    assert not packages & (TRAINING | {"pyarrow"})
    assert {"onnxruntime", "numpy"} <= packages


def test_the_first_row_waits_for_nothing_that_it_does_not_need(
    model_file: Path, tmp_path: Path
) -> None:
    """Of a `.npy` to stdout: no Arrow, no journal, no bundle, no report, no version of a wheel."""
    np.save(tmp_path / "rows.npy", images(3))
    code = (
        "import os, sys\n"
        "from serving.cli import serving\n"
        "class Out:\n"
        "    def write(self, text):\n"
        "        sys.__stdout__.write(' '.join(sys.modules))\n"
        "        sys.__stdout__.flush()\n"
        "        os._exit(0)\n"
        "    def __getattr__(self, name):\n"
        "        return getattr(sys.__stdout__.buffer, name)\n"
        "sys.stdout = type('Text', (), {'buffer': Out(), 'flush': lambda self: None})()\n"
        f"serving(['predict', {str(model_file)!r}, {str(tmp_path / 'rows.npy')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    modules = done.stdout.split()
    assert "serving.inputs.arrays" in modules, done.stderr
    late = ("serving.batch.journal", "serving.batch.report", "serving.bundles.bundle")
    late += ("serving.drift.", "serving.machine", "importlib.metadata", "zipfile", "pyarrow", "PIL")
    late += ("serving.inputs.tables",)
    assert not [name for name in modules if name.startswith(late)]


def test_verify_needs_no_training_packages(built_bundle: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from serving.bundles.verify import verify\n"
        f"assert verify(Path({str(built_bundle)!r})).passed"
    )
    assert not loaded(code) & (TRAINING | {"pyarrow", "PIL"})
