"""What it brings to fold the standardisation into the first layer, beside the same graph without.

Run: python benchmarks/folding.py      (after `dvc repro export@digits-mlp export@mnist-mlp
     export@digits-cnn export@cifar10-cnn`)
     python benchmarks/folding.py --publish docs/results

Medians of paired ratios on one thread; the largest difference of the logits and the flips are on
all test rows. digits-mlp is 64-128-10, mnist-mlp 784-512-10; of digits-cnn, which pads, the scale
alone is folded, of cifar10-cnn all.
"""

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from benching import Line, describe, parser, show

from pipeline.config import layout, params
from pipeline.exporting.exporter import to_onnx
from pipeline.models.parts.graph import load_graph
from pipeline.proof.sameness import compare_answers
from pipeline.records import ready
from serving.measuring.pairing import paired_ratio
from serving.runtime.binding import bind
from serving.runtime.session import Session, open_session

NAMES = ("digits-mlp", "mnist-mlp", "digits-cnn", "cifar10-cnn")
BATCH_SIZES = (1, 32)
SECONDS = 4.0
LIMIT = 1e-5
NOISE = 0.01
"""By which a ratio that is no loss may be below 1."""

Rows = npt.NDArray[np.uint8]


def main() -> None:
    """Print the table of aims."""
    publish = parser(__doc__).parse_args().publish
    show([line for name in NAMES for line in lines_of(name)], publish)


def lines_of(name: str) -> Iterator[Line]:
    """All figures of one experiment."""
    plain, folded, rows = both(name)
    for size in BATCH_SIZES:
        yield speed(f"{name}: folded, batch {size}", plain, folded, rows[:size])
    yield same(name, plain, folded, rows)
    yield bound(name, plain, folded, rows[:1])


def both(name: str) -> tuple[Session, Session, Rows]:
    """The trained model without and with folding, and the test rows."""
    experiment = params.load().experiment(name)
    data = layout.ready(experiment.dataset)
    graph = load_graph(layout.weights(name), experiment, ready.open_manifest(data))
    rows = np.array(ready.open_split(data, "test").inputs)
    plain, folded = (
        open_session(
            to_onnx(graph, rows[:2], experiment.export.opset, fold=fold).SerializeToString(),
            threads=1,
        )
        for fold in (False, True)
    )
    return plain, folded, rows


def speed(what: str, plain: Session, folded: Session, rows: Rows) -> Line:
    """How many times as fast the folded graph answers a batch."""
    feeds = {plain.inputs[0].name: rows}
    calls = (
        functools.partial(session.raw.run, session.output_names, feeds)
        for session in (plain, folded)
    )
    ratio = paired_ratio(*calls, seconds=SECONDS, seed=1)
    return Line(what, describe(ratio), "at least 1", ratio.median >= 1 - NOISE)


def same(name: str, plain: Session, folded: Session, rows: Rows) -> Line:
    """How far apart the logits are, and how many rows are decided otherwise."""
    left, right = (session.run({session.inputs[0].name: rows}) for session in (plain, folded))
    found = compare_answers(left, right, scores="logits", tie=0)
    reached = f"{found.largest_diff:.1e}, {found.flips} flips of {len(rows):,}"
    met = found.largest_diff <= LIMIT and found.flips == 0
    return Line(f"{name}: largest difference", reached, f"at most {LIMIT:.0e}, 0 flips", met)


def bound(name: str, plain: Session, folded: Session, rows: Rows) -> Line:
    """How many times as fast the folded graph is with bound memory as the other one without."""
    feeds = {plain.inputs[0].name: rows}
    memory = bind(folded, feeds)

    def with_binding() -> None:
        np.copyto(memory.inputs[folded.inputs[0].name], rows)
        memory.run()

    bare = functools.partial(plain.raw.run, plain.output_names, feeds)
    ratio = paired_ratio(bare, with_binding, seconds=SECONDS, seed=1)
    what = f"{name}: folded with bound memory, batch 1"
    return Line(what, describe(ratio), "at least 1", ratio.median >= 1 - NOISE)


if __name__ == "__main__":
    main()
