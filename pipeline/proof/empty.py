"""`python -m pipeline.proof.empty PROVIDER INPUTS < model.onnx`: feed a model a batch without rows.

In a process of its own, because some kernels, the recurrent ones of ONNX Runtime 1.31 among them,
divide by the number of rows in a thread and take the whole process down with them.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import FerryError

SECONDS = 60
REFUSED = 3
"""The exit status for a model that refuses in words, which are on stdout."""


def ask_nothing(
    model: bytes,
    provider: str,
    example: Mapping[str, npt.NDArray[Any]],
    shared: Mapping[str, str] | None = None,
) -> tuple[str, bool]:
    """What becomes of a batch without rows, in words, and whether that is sane.

    `example` is a row for each input, [1, ...], `shared` as `open_session` takes it. An answer of
    no rows is sane, and a refusal too.
    """
    inputs = {name: [str(row.dtype), [0, *row.shape[1:]]] for name, row in example.items()}
    given = (json.dumps(inputs), json.dumps(shared or {}))
    command = [sys.executable, "-P", "-m", "pipeline.proof.empty", provider, *given]
    try:
        done = subprocess.run(
            command, input=model, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {SECONDS} s", False
    answer = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"ends the process with {name}", False
    if done.returncode == REFUSED:
        return f"refused: {answer}", True
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return f"fails without a clear word: {lines[-1] if lines else done.returncode}", False
    return f"answered {answer} rows", answer == "0"


def _main() -> int:
    """Run in the other process: print the rows that were answered, or why none were."""
    from serving.runtime.guard import be_killed_with_parent

    be_killed_with_parent()
    from serving.runtime.session import open_session

    provider, inputs, shared = sys.argv[1], *map(json.loads, sys.argv[2:])
    try:
        content = sys.stdin.buffer.read()
        session = open_session(content, provider=provider, threads=1, shared=shared)
        feeds = {
            name: np.zeros(shape, object if dtype.startswith("<U") else dtype)
            for name, (dtype, shape) in inputs.items()
        }
        found = session.run(feeds)
    except FerryError as error:
        sys.stdout.write(str(error))
        return REFUSED
    counts = sorted({len(found[info.name]) for info in session.answered("the model")})
    sys.stdout.write(", ".join(str(count) for count in counts))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
