"""A run of `ferry predict` before it begins: the opened model, its inputs, and how they are cut."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from serving.batch.engine import Answering
from serving.batch.journal import Journal, Provenance
from serving.batch.options import PredictOptions, RunKey
from serving.batch.writers import format_of
from serving.errors import OutputError, UsageError
from serving.inputs.inputs import Inputs, Place, open_inputs
from serving.inputs.items import Chunk
from serving.inputs.kinds import ReadOptions
from serving.machine.versions import ferry_version, runtime_wheels
from serving.model import Model, open_model
from serving.runtime.cores import allowed_cores
from serving.runtime.settings import GPU_PROVIDERS, SessionSettings

CHUNK_ROWS = 1024
CHUNK_BYTES = 8 * 2**20
TEXT_BYTES = 256
"""What a text is taken to need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is to be done."""

    model: Model
    inputs: Inputs
    names: tuple[str, ...]
    """Of the inputs, as they were given."""
    options: PredictOptions
    form: str
    """Of the output."""

    @property
    def batch_rows(self) -> int:
        """Rows that the model is given at a time."""
        return self.model.fixed_batch or self.options.batch_rows or self.model.batch_rows

    @property
    def workers(self) -> int:
        """Batches at a time, and processes that decode."""
        return self.model.parallel

    @property
    def chunk_rows(self) -> int:
        """Rows that are cut off the input at a time: whole batches, as a chunk has its own cost."""
        info = self.model.input
        values = math.prod(axis if isinstance(axis, int) else 1 for axis in info.shape[1:])
        size = TEXT_BYTES if info.is_text else np.dtype(info.dtype).itemsize
        rows = min(CHUNK_ROWS, CHUNK_BYTES // max(1, values * size))
        return self.batch_rows * max(1, rows // self.batch_rows)

    @property
    def how(self) -> Answering:
        """How batches are answered."""
        return Answering(
            batch_rows=self.batch_rows,
            probabilities=self.options.probabilities,
            top_k=self.options.top_k,
            keep_rows=self.options.reference,
        )

    def count(self, done: int) -> int | None:
        """The rows that are left after `done`, None where only reading them all would tell."""
        total, limit = self.inputs.count, self.options.limit
        if limit is not None:
            total = limit if total is None else min(limit, total)
        return None if total is None else max(0, total - done)

    def chunks(self, journal: Journal | None) -> Iterator[tuple[int, Chunk]]:
        """The chunks that no shard holds yet.

        Raises OutputError when a stream is not the one that the shards were made of.
        """
        if journal is None or not journal.shards:
            chunks = self.inputs.chunks(self.chunk_rows)
        elif journal.provenance.key.fingerprint is None:
            chunks = self._later_of_stream(journal)
        else:
            chunks = self.inputs.chunks(self.chunk_rows, journal.end)
        if self.options.limit is None:
            return chunks
        done = journal.rows + journal.errors if journal else 0
        return _limited(chunks, self.options.limit - done)

    def provenance(self) -> Provenance:
        """Which run it is."""
        options = self.options
        key = RunKey(
            model_sha256=self.model.session.sha256,
            provider=options.provider,
            batch_rows=self.batch_rows,
            inputs=self.names,
            fingerprint=self.inputs.fingerprint(),
            array=options.array,
            columns=options.columns,
            input_format=options.input_format,
            resize=options.resize,
            limit=options.limit,
            probabilities=options.probabilities,
            top_k=options.top_k,
            format=self.form,
            reference=options.reference,
        )
        return Provenance(
            key=key,
            model=str(self.model.path),
            ferry_version=ferry_version(),
            onnxruntime=next(iter(runtime_wheels().values()), None),
        )

    def metadata(self) -> dict[str, str]:
        """What the file of the rows says of itself, where its format has a place for it."""
        return {
            "ferry.model": str(self.model.path),
            "ferry.model_sha256": self.model.session.sha256,
            "ferry.version": ferry_version() or "unknown",
            "ferry.provider": self.options.provider,
            "ferry.batch_rows": str(self.batch_rows),
        }

    def _later_of_stream(self, journal: Journal) -> Iterator[tuple[int, Chunk]]:
        chunks = self.inputs.chunks(self.chunk_rows)
        for number, chunk in chunks:
            end = Place(number, chunk.start + chunk.count)
            if end == journal.end and (journal.digest in (None, chunk.digest)):
                return chunks
            if (end.source, end.row) >= (journal.end.source, journal.end.row):
                break
        raise OutputError(
            "the stream is not the one that this output was begun with; --overwrite begins again"
        )


def prepare(
    path: Path, inputs: Sequence[Path | str], output: Path | None, options: PredictOptions
) -> Run:
    """Open the model and look at the inputs; raises what is wrong with them, and writes nothing."""
    if not inputs:
        raise UsageError("there is no input to predict")
    form = format_of(output, options.format, default=options.default_format)
    model = _open(path, options)
    if (options.probabilities or options.top_k) and model.kind != "classifier":
        flag = "--probabilities" if options.probabilities else "--top-k"
        raise UsageError(f"{flag} is for classifiers, {path} gives no scores of classes")
    reading = ReadOptions(
        array=options.array,
        columns=options.columns,
        resize=options.resize,
        input_format=options.input_format,
    )
    names = tuple(str(one) for one in inputs)
    return Run(
        model=model,
        inputs=open_inputs(names, model, reading),
        names=names,
        options=options,
        form=form,
    )


def _limited(chunks: Iterator[tuple[int, Chunk]], most: int) -> Iterator[tuple[int, Chunk]]:
    """The first `most` rows of chunks; the last one says how many of its rows count."""
    while most > 0:
        number, chunk = next(chunks, (0, None))
        if chunk is None:
            return
        yield number, replace(chunk, count=min(chunk.count, most))
        most -= chunk.count


def _open(path: Path, options: PredictOptions) -> Model:
    """The model with the settings asked for, its profile's, or a batch on every core."""
    threads = options.threads or 1
    side_by_side = 1 if options.provider in GPU_PROVIDERS else allowed_cores() // threads
    parallel = options.workers or max(1, side_by_side)
    settings = SessionSettings(threads=threads, parallel=parallel)
    if options.threads or options.workers:
        return open_model(path, provider=options.provider, settings=settings)
    return open_model(path, provider=options.provider, untuned=settings)
