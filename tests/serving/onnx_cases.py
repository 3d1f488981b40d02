"""The cases of `onnx.backend.test` through our session layer, beside bare ONNX Runtime.

Each is a model of a node or of a few, with inputs and the outputs that ONNX defines.
`benchmarks/onnx_cases.py` runs all of them, the tests a sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from serving.errors import FerryError
from serving.runtime.providers import ORT_ERRORS
from serving.runtime.session import open_session

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
"""Those whose models come with onnx; the others are downloaded."""
SAMPLE = {"node": 190, "simple": 20, "pytorch-converted": 60, "pytorch-operator": 30}
SEED = 1
REFUSED = (*ORT_ERRORS, ValueError, TypeError)
Feeds = dict[str, Any]


@dataclass(frozen=True)
class Case:
    name: str
    folder: Path
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    name: str
    ours: str
    """What we say where there is no answer; "" for an answer."""
    bare: str
    """The same of bare ONNX Runtime."""
    same_bits: bool
    """Whether both answered the very same, or neither answered."""
    as_stored: bool
    """Whether our answers are those that came with the case."""
    bare_as_stored: bool

    @property
    def right(self) -> bool:
        """Whether ferry changes nothing: it answers and refuses as the runtime does."""
        return bool(self.ours) == bool(self.bare) and self.same_bits


def cases(kind: str) -> list[Case]:
    found = load_model_tests(kind=kind)
    return sorted(
        (Case(one.name, Path(one.model_dir), one.rtol, one.atol) for one in found),
        key=lambda case: case.name,
    )


def sample() -> list[Case]:
    """300 cases, the same each time."""
    generator = np.random.default_rng(SEED)
    found = []
    for kind, count in SAMPLE.items():
        known = cases(kind)
        found += [known[at] for at in sorted(generator.choice(len(known), count, replace=False))]
    return found


def outcome(case: Case) -> Outcome:
    """Run a case in both ways, on all of its data."""
    content = (case.folder / "model.onnx").read_bytes()
    model = onnx.load_from_string(content)
    data = [_data(folder, model) for folder in sorted(case.folder.glob("test_data_set_*"))]
    bare, why_not = _answers(lambda: _bare(content), data, REFUSED)
    ours, reason = _answers(lambda: _ours(content), data, (FerryError,))
    stored = [outputs for _, outputs in data]
    return Outcome(
        name=case.name,
        ours=reason,
        bare=why_not,
        same_bits=_alike(ours, bare, _same_bits),
        as_stored=_alike(ours, stored, lambda one, other: _near(one, other, case)),
        bare_as_stored=_alike(bare, stored, lambda one, other: _near(one, other, case)),
    )


def _ours(content: bytes) -> Callable[[Feeds], list[Any]]:
    session = open_session(content, threads=1)
    return lambda feeds: list(session.run(feeds).values())


def _bare(content: bytes) -> Callable[[Feeds], list[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    return lambda feeds: list(session.run(None, feeds))


def _answers(
    make: Callable[[], Callable[[Feeds], list[Any]]],
    data: Sequence[tuple[Feeds, list[Any]]],
    refused: tuple[type[Exception], ...],
) -> tuple[list[list[Any]], str]:
    """The outputs for each data set, or in words why there are none."""
    try:
        run = make()
        return [run(feeds) for feeds, _ in data], ""
    except refused as error:
        return [], str(error)


def _data(folder: Path, model: onnx.ModelProto) -> tuple[Feeds, list[Any]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    taken = [one for one in model.graph.input if one.name not in weights]
    feeds = {one.name: _loaded(folder / f"input_{at}.pb", one) for at, one in enumerate(taken)}
    given = enumerate(model.graph.output)
    return feeds, [_loaded(folder / f"output_{at}.pb", one) for at, one in given]


def _loaded(path: Path, value: onnx.ValueInfoProto) -> Any:
    content = path.read_bytes()
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _alike(one: Any, other: Any, equal: Callable[[Any, Any], bool]) -> bool:
    """Whether two answers are, within lists and maps as well."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            _alike(left, right, equal) for left, right in zip(one, other, strict=True)
        )
    if one is None or other is None:
        return one is other
    return equal(np.asarray(one), np.asarray(other))


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool((one == other).all()) if one.dtype.hasobject else one.tobytes() == other.tobytes()


def _near(one: np.ndarray, other: np.ndarray, case: Case) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind in "OUS" or other.dtype.kind in "OUS":
        return bool((one.astype(object) == other.astype(object)).all())
    left, right = one.astype(np.float64), other.astype(np.float64)
    return np.allclose(right, left, rtol=case.rtol, atol=case.atol, equal_nan=True)
