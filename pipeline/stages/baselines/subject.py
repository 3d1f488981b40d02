"""A baseline as the subject of a benchmark.

Run by `serving.measuring.subject`: python -m pipeline.stages.baselines.subject
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from pipeline.records.ready import open_split
from pipeline.stages.baselines.opening import Answer, Array, batch_of, opener
from serving.errors import InputError
from serving.files import sha256_of_file
from serving.measuring.subject import Share, Started, serve
from serving.measuring.timing import NS_PER_MS, Call, digits
from serving.runtime.settings import SessionSettings


class BaselineSubject:
    """What `opener` opens of a setup, fed with rows of the test set."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        """Import what it needs, which its start does not count."""
        self.model = Path(setup["model"])
        self.test = open_split(Path(setup["data"]), "test").inputs
        self.opener = opener(setup)
        self.opened: Answer | None = None

    def start(self, settings: SessionSettings) -> Started:
        """Open the model; of the settings the baselines know the threads."""
        start = perf_counter_ns()
        self.opened, proof = self.opener(settings.threads)
        return Started(
            ready_ms=digits((perf_counter_ns() - start) / NS_PER_MS),
            sha256=sha256_of_file(self.model),
            file_bytes=self.model.stat().st_size,
            proof=proof,
            fixed_batch=None,
        )

    def call(self, batch_size: int) -> Call:
        """One batch, from the rows to answers."""
        return functools.partial(self._ready(), self.rows(batch_size))

    def answer(self, rows: Array) -> object:
        """Answer rows."""
        return self._ready()(rows)

    def rows(self, count: int) -> Array:
        """The first rows of the test set, over and over again to fill a batch."""
        return batch_of(self.test, count)

    def share(self, _batch_size: int) -> Share | None:
        """Nothing: ONNX Runtime's profile covers no PyTorch, and MLflow does not let it profile."""
        return None

    def gpu_bytes(self) -> int | None:
        """Nothing: it runs on the CPU."""
        return None

    def _ready(self) -> Answer:
        if self.opened is None:
            raise InputError(f"{self.model} was not started")
        return self.opened


def main() -> None:
    """Measure what the parent process asks for."""
    serve(BaselineSubject)


if __name__ == "__main__":
    main()
