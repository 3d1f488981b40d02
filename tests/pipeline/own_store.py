"""A folder with a store of runs of its own, into which this process sends."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.tracking import journal, sending
from pipeline.tracking.sending import send
from pipeline.tracking.store import store_root


class SenderHere:
    """Sends at the end, in this process, which has imported MLflow already."""

    silent = False

    def __init__(self, program: str = "main", runs: Sequence[str] = ()) -> None:
        self._runs = [*runs]
        self._again = program != "main"

    def follow(self, run_id: str) -> None:
        self._runs.append(run_id)

    def says(self, _seconds: float) -> str:
        return ""

    def finish(self, _seconds: float) -> str:
        while self._runs:
            send(journal.of_run(store_root(), self._runs.pop(0)), again=self._again)
        return ""


def use_store(folder: Path, empty_store: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a folder the working directory, with an empty store of its own."""
    shutil.copy(empty_store, folder)
    patch.chdir(folder)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for module in (tracking, sending):
        patch.setattr(module, "Sender", SenderHere)
