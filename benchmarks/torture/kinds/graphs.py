"""Hostile graphs, to every command that runs a model which ferry did not make."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cases import Case, Outcome, Task, ferry
from odd_models import endless_for_white, reshaping_to_two_rows

GRAPHS = {
    "two rows": (reshaping_to_two_rows, np.zeros((3, 4), np.float32)),
    "endless": (endless_for_white, np.full((1, 4, 5, 1), 255, np.uint8)),
}


def cases(task: Task) -> Iterator[Case]:
    """Each graph through each command."""
    for name, (make, rows) in list(GRAPHS.items())[: 1 if task.short else None]:
        folder = task.scratch / name.replace(" ", "-")
        folder.mkdir()
        (folder / "model.onnx").write_bytes(make())
        np.save(folder / "rows.npy", rows)

        def run(folder: Path = folder) -> Outcome:
            return ferry("predict", "model.onnx", "rows.npy", folder=folder).judged()

        yield Case(f"predict, {name}", run)
