"""Bind the inputs and outputs of one batch size once, so that a call allocates and copies nothing.

    bound = bind(session, feeds)
    bound.inputs["images"][:] = images      # where the next call reads
    bound.run()["probabilities"]            # where it wrote; the next call overwrites it

ONNX Runtime's own `run` makes new arrays for every answer; with memory that is bound beforehand
(its IOBinding) a call on a small model takes half as long. CUDA graphs need it. A `BoundPool` lends
such memory to one thread at a time: any number of threads ask, and each gets its own copy.
"""

import functools
import itertools
import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.errors import InputError
from serving.runtime import guard
from serving.runtime.providers import ORT_ERRORS, onnxruntime, runtime_reason
from serving.runtime.session import GRAPH_KEY, Session
from serving.runtime.settings import GPU_PROVIDERS
from serving.runtime.tensors import Array

DEVICE = "cuda"
"""Where the providers of GPUs keep their memory."""
GRAPH_NUMBERS = itertools.count(1)
"""No two bindings share a captured graph: a replay reads the memory that it was captured with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A session with bound memory; one thread at a time may use it."""

    inputs: Mapping[str, Array]
    """Where a call reads, by input name; write into these."""
    outputs: Mapping[str, Array]
    """Where a call leaves its answers, by output name."""
    call: Callable[[], object]
    """What runs the model, in the memory of its device."""

    def run(self) -> Mapping[str, Array]:
        """Run the model on `inputs`, or raise InputError; the answers hold until the next call."""
        try:
            self.call()
        except ORT_ERRORS as error:
            raise InputError(f"the model refused its input: {runtime_reason(error)}") from error
        return self.outputs


def bind(session: Session, feeds: Mapping[str, Array]) -> Bound:
    """Bind a session to the shapes of `feeds`, its inputs by name, and to those of its answers.

    The model is run once to learn the latter. Raises InputError for texts, which have no memory
    that could be bound, and for what the model refuses.
    """
    texts = [info.name for info in (*session.inputs, *session.outputs) if info.is_text]
    if texts:
        raise InputError(f"{texts[0]!r} holds texts, which cannot be bound: use binding=off")
    whole = session.whole(feeds)
    inputs = {name: np.array(array, order="C") for name, array in whole.items()}
    outputs = {name: np.zeros_like(array) for name, array in session.run(inputs).items()}
    binding = session.raw.io_binding()
    options = session.run_options
    if session.settings.cuda_graph:
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(GRAPH_KEY, str(next(GRAPH_NUMBERS)))
    run: Callable[[], object] = functools.partial(session.raw.run_with_iobinding, binding, options)
    run = guard.watched(run)
    if session.provider in GPU_PROVIDERS:
        run = _on_device(binding, run, inputs, outputs)
        return Bound(inputs=inputs, outputs=outputs, call=run)
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    return Bound(inputs=inputs, outputs=outputs, call=run)


def _on_device(
    binding: Any,
    run: Callable[[], object],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
) -> Callable[[], object]:
    """Make a call that copies the inputs to a GPU, runs there, and copies the answers back."""
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array, DEVICE, 0)
        for name, array in {**inputs, **outputs}.items()
    }
    for name in inputs:
        binding.bind_ortvalue_input(name, values[name])
    for name in outputs:
        binding.bind_ortvalue_output(name, values[name])

    def call() -> None:
        for name, array in inputs.items():
            values[name].update_inplace(array)
        run()
        for name, array in outputs.items():
            np.copyto(array, values[name].numpy())

    return call


def can_bind(session: Session) -> bool:
    """Whether memory can be bound once: arrays of numbers, free in the first axis and no other."""
    # An output with another free axis may have another shape for other rows.
    return (
        not (session.maps or session.shared)
        and all(
            info.shape
            and not info.is_text
            and "(" not in info.dtype  # as in "seq(map(int64,tensor(float)))"
            and all(isinstance(axis, int) for axis in info.shape[1:])
            for info in (*session.inputs, *session.outputs)
        )
    )


class BoundPool:
    """A session with memory for as many calls at a time as its settings say."""

    def __init__(self, session: Session, batch_size: int) -> None:
        self.batch_size = batch_size
        self._session = session
        self._idle: queue.LifoQueue[Bound | None] = queue.LifoQueue()
        for _ in range(session.settings.parallel):
            self._idle.put(None)

    def run(self, name: str, rows: Array) -> dict[str, Array]:
        """The outputs for a full batch of the input `name`; waits while all memory is in use."""
        bound = self._idle.get()
        try:
            if bound is None:
                bound = bind(self._session, {name: rows})
            bound.inputs[name][...] = rows
            return {output: array.copy() for output, array in bound.run().items()}
        finally:
            self._idle.put(bound)
