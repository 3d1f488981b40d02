"""Whether a browser decides as ONNX Runtime does here, and how quickly a page answers.

Run: python benchmarks/web.py [--publish docs/results]

Needs `dvc repro quantize@mnist-tiny quantize@cifar10-resnet8 quantize@rt-lstm` and Chromium. Each
variant answers 1,000 test rows in the page of its bundle, one by one. A flip is a row whose label
is another one than on x86, unless its two best scores lie within what right kernels differ by. The
first answer is that of a new browser, from opening the address on. While a digit is drawn, every
point of the stroke is drawn, run and shown before the next one.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from benching import Line, parser, show

from pipeline.config import layout
from pipeline.config.params import load
from pipeline.proof.sameness import compare_answers
from pipeline.records.ready import open_split
from serving.bundles.bundle import Bundle
from serving.runtime.tensors import PROBABILITIES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from chromium import chromium, find
from model_pages import ModelPage, answers_here, served, write_web_bundle
from strokes import DIGITS, moved, photographed

EXPERIMENTS = ("mnist-tiny", "cifar10-resnet8", "rt-lstm")
DRAWN = "mnist-tiny"
ROWS = 1000
STARTS = 5
SECONDS = 3
# As large as the surface, small in a corner, upright and slanted.
PLACES = (
    {"size": 1.0, "x": 0.5, "y": 0.5, "slant": 0.0},
    {"size": 0.6, "x": 0.3, "y": 0.35, "slant": 0.15},
    {"size": 1.2, "x": 0.5, "y": 0.5, "slant": -0.1},
    {"size": 0.35, "x": 0.7, "y": 0.7, "slant": 0.25},
)
SHADOWS = (0, 40, 90)
# A browser may paint between two points: a message, unlike a promise, lets it.
SCRIBBLE = """(async (seconds) => {
  const surface = document.getElementById("surface"), box = surface.getBoundingClientRect();
  const { port1, port2 } = new MessageChannel();
  const painted = () => new Promise((resolve) => {
    port1.onmessage = resolve;
    port2.postMessage(0);
  });
  const point = (kind, angle) => surface.dispatchEvent(new PointerEvent(kind, {
    clientX: box.x + box.width * (0.5 + 0.2 * Math.cos(angle)),
    clientY: box.y + box.height * (0.5 + 0.3 * Math.sin(angle)), buttons: 1, bubbles: true }));
  point("pointerdown", 0);
  const start = performance.now();
  let count = 0;
  for (; performance.now() - start < 1000 * seconds; count++) {
    if (count % 100 === 99) point("pointerdown", 0);
    point("pointermove", count / 16);
    await page.answered;
    await painted();
  }
  return count / seconds;
})"""


def main() -> None:
    """Print the table of aims."""
    given = parser(__doc__).parse_args()
    if find() is None:
        sys.exit("Chromium is not on PATH")
    with tempfile.TemporaryDirectory() as name:
        show([line for one in EXPERIMENTS for line in lines(one, Path(name))], given.publish)


def lines(name: str, folder: Path) -> Iterator[Line]:
    """The decisions of an experiment's variants; of the one that is drawn for, also how quickly."""
    for variant, model in layout.models(name).items():
        if not model.exists():
            yield Line(f"{name} {variant}", f"skipped: {model} is not there", "0 real flips", None)
            continue
        rows = test_rows(name)
        bundle = write_web_bundle(folder / f"{name}.{variant}", model, variant, rows)
        yield decisions(bundle, rows[:ROWS])
        if (name, variant) == (DRAWN, "fp32"):
            yield first_answer(bundle)
            yield from drawing(bundle)


def test_rows(name: str) -> np.ndarray:
    """The test rows of an experiment."""
    data = layout.ready(load(Path("params.yaml")).experiment(name).dataset)
    return np.array(open_split(data, "test").inputs)


def decisions(bundle: Bundle, rows: np.ndarray) -> Line:
    """The rows that a browser decides otherwise."""
    manifest = bundle.manifest
    expected = answers_here(bundle, rows)
    with chromium() as browser, served(bundle.folder) as address, browser.open(address) as tab:
        page = ModelPage(tab)
        found = page.answers(rows)
        latency, verdict = page.latency_ms(), page.text("verdict")
        errors = tab.errors()
    same = compare_answers(expected, found, scores=PROBABILITIES, tie=manifest.golden.tie)
    reached = (
        f"{same.flips} of {same.rows}, {same.near_ties} more near a tie; difference "
        f"{same.largest_diff:.1e}; {latency:.2f} ms; {verdict.lower()}"
    )
    met = same.flips == 0 and verdict == "Selftest passed" and not errors
    return Line(f"{manifest.name} {manifest.variant}: real flips", reached, "0", met)


def first_answer(bundle: Bundle) -> Line:
    """Seconds until a new browser has its first answer, the median."""
    taken = []
    for _ in range(STARTS):
        with chromium() as browser, served(bundle.folder) as address, browser.open(address) as tab:
            taken.append(ModelPage(tab).first_answer_seconds())
    found = statistics.median(taken)
    reached = f"{found:.2f} s (median of {STARTS} new browsers, worst {max(taken):.2f})"
    return Line(f"{bundle.manifest.name}: first answer on loopback", reached, "2 s", found <= 2)


def drawing(bundle: Bundle) -> Iterator[Line]:
    """Answers while a stroke is drawn, and what is made of digits by a mouse and on paper."""
    name = bundle.manifest.name
    with chromium() as browser, served(bundle.folder) as address, browser.open(address) as tab:
        page = ModelPage(tab)
        rate = float(tab.run(f"{SCRIBBLE}({SECONDS})"))
        read = [
            page.draw(moved(strokes, **place)).split()[0] == digit
            for digit, strokes in DIGITS.items()
            for place in PLACES
        ]
        taken = [
            page.drop(photographed(strokes, shadow=shadow, seed=seed), "photo.jpg").split()[0]
            == digit
            for seed, (digit, strokes) in enumerate(DIGITS.items())
            for shadow in SHADOWS
        ]
    yield Line(f"{name}: answers while drawing", f"{rate:.0f} a second", "60 a second", rate >= 60)
    reached = f"{sum(read)} of {len(read)}"
    yield Line(f"{name}: drawn digits that are read", reached, "9 in 10", np.mean(read) >= 0.9)
    reached = f"{sum(taken)} of {len(taken)}"
    what = f"{name}: photographed digits that are read"
    yield Line(what, reached, "9 in 10", np.mean(taken) >= 0.9)


if __name__ == "__main__":
    main()
