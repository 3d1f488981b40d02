"""A model in ONNX Runtime as a subject.

Run by `serving.measuring.subject`: python -m serving.measuring.onnx_subject
"""

import functools
import statistics
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Self

import numpy as np

from serving.bundles.bundle import model_source
from serving.errors import InputError
from serving.measuring.feeds import feeds_of, fixed_batch, read_rows, refuse_free_axes
from serving.measuring.meters import own_gpu_bytes
from serving.measuring.subject import Share, Started, SubjectSpec, serve
from serving.measuring.timing import NS_PER_MS, Call, digits
from serving.runtime.binding import Bound, bind
from serving.runtime.profiling import node_times
from serving.runtime.session import Session, open_session, share_of
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import Array

NUM_SESSIONS = 3
PROFILED_CALLS = 20
MOST_ROWS = 1024
"""Of a file of rows; larger batches are filled by going over them again."""


class OnnxSubject:
    """An ONNX file or a bundle on one provider."""

    def __init__(self, model: Path, provider: str, rows: Path | None) -> None:
        """Take the bytes of `model`, those of a bundle after its every file was checked."""
        self.model = model
        self.provider = provider
        self.rows_file = rows
        self.content, self.shared = model_source(model, provider)
        self.session: Session | None = None
        self.real_rows: Mapping[str, Array] = {}

    @classmethod
    def of(cls, setup: Mapping[str, Any]) -> Self:
        """The subject of a setup that `model_spec` made."""
        rows = setup["rows"]
        return cls(Path(setup["model"]), setup["provider"], Path(rows) if rows else None)

    def start(self, settings: SessionSettings) -> Started:
        """Make the session, three times to time it; only one lives at a time."""
        times: list[float] = []
        for _ in range(NUM_SESSIONS):
            self.session = None
            start = perf_counter_ns()
            self.session = self.open(settings)
            times.append((perf_counter_ns() - start) / NS_PER_MS)
        return self.started(self._ready(), ready_ms=digits(statistics.median(times)))

    def open(self, settings: SessionSettings) -> Session:
        """A session of the model, with what its bundle says of its inputs."""
        return open_session(
            self.content, provider=self.provider, settings=settings, shared=self.shared
        )

    def started(self, session: Session, *, ready_ms: float) -> Started:
        """Take a session that was made, with the rows that it is fed, which are read once."""
        if self.rows_file is None:
            refuse_free_axes(session.inputs)
        elif not self.real_rows:
            self.real_rows = read_rows(self.rows_file, session.inputs, self.model, MOST_ROWS)
        content = self.content
        return Started(
            ready_ms=ready_ms,
            sha256=session.sha256,
            file_bytes=len(content) if isinstance(content, bytes) else content.stat().st_size,
            proof=session.proof,
            fixed_batch=fixed_batch(session.inputs),
        )

    def call(self, batch_size: int) -> Call:
        """One batch through `session.run` as ferry calls it, or through bound memory."""
        session = self._ready()
        feeds = self.feeds(batch_size)
        session.run(feeds)  # refuses in ferry's own words what the model does not take
        if session.settings.binding:
            return functools.partial(_run_bound, bind(session, feeds), feeds)
        return functools.partial(session.run, feeds)

    def feeds(self, batch_size: int) -> dict[str, Array]:
        """The inputs of a batch: from the first rows of the file, or at random."""
        return feeds_of(self._ready().inputs, self.real_rows, batch_size)

    def answer(self, rows: Array) -> object:
        """Answer rows of the first input."""
        session = self._ready()
        if len(session.inputs) != 1:
            raise InputError(f"{self.model} has several inputs: scenarios feed one")
        return session.run({session.inputs[0].name: rows})

    def rows(self, count: int) -> Array:
        """So many rows of the first input."""
        return self.feeds(count)[self._ready().inputs[0].name]

    def share(self, batch_size: int) -> Share | None:
        """Profile some calls."""
        feeds = [self._ready().whole(self.feeds(batch_size))] * PROFILED_CALLS
        settings, asked = self._ready().settings, self._ready().proof.asked
        times: dict[str, float] = {}
        for node in node_times(self.content, feeds, settings=settings, provider=self.provider):
            times[node.provider] = times.get(node.provider, 0) + node.us
        return Share(time_us=times, share=share_of(times, asked))

    def gpu_bytes(self) -> int | None:
        """Memory of a GPU that this process holds."""
        return own_gpu_bytes() if self.provider != "cpu" else None

    def _ready(self) -> Session:
        if self.session is None:
            raise InputError(f"{self.model} was not started")
        return self.session


def model_spec(
    name: str, model: Path, provider: str, rows: Path | None, *, module: str = __name__
) -> SubjectSpec:
    """A model on a provider, to be measured in a process; `module` is its program."""
    setup = {
        "model": str(model.absolute()),
        "provider": provider,
        "rows": str(rows.absolute()) if rows else None,
    }
    return SubjectSpec(name=name, provider=provider, module=module, setup=setup)


def _run_bound(bound: Bound, feeds: Mapping[str, Array]) -> object:
    """A call with bound memory as a program makes it: new rows must be copied there."""
    for name, array in feeds.items():
        np.copyto(bound.inputs[name], array)
    return bound.run()


if __name__ == "__main__":
    serve(OnnxSubject.of)
