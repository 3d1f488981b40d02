"""The page of a web bundle in a browser, and the answers that its model gives there.

with served(folder) as address:
    with browser.open(address) as tab:
        ModelPage(tab).answers(rows)["probabilities"]
"""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from chromium import Page

from pipeline.targets.web import web_page
from serving.bundles.bundle import Bundle, Gate, ModelOrigin, open_bundle
from serving.bundles.golden import hardest
from serving.bundles.writing import BundleContents, write_bundle
from serving.edge.demo import WEB, serving
from serving.runtime.session import open_session
from serving.runtime.tensors import as_fed

START = """
new Promise((resolve) => (document.readyState === "complete" ? resolve() : onload = resolve))
  .then(() => import("/app.js"))
  .then(({ started }) => started)
  .then((page) => { globalThis.page = page; })
"""
ANSWERS = """
(async (rows) => {
  const found = [];
  for (const row of rows) {
    const outputs = await page.model.answer(row);
    const flat = ([name, { dims, data }]) => [name, dims, Array.from(data)];
    found.push(Object.entries(outputs).map(flat));
  }
  return found;
})
"""

DROP = """
(async (text, name) => {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name));
  const note = document.getElementById("note");
  note.textContent = "waiting";
  dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
  while (note.textContent === "waiting") await new Promise((resolve) => setTimeout(resolve, 5));
  await page.answered;
})
"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a bundle as `ferry demo` does."""
    with serving(folder, 0) as (server, address):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()


class ModelPage:
    """The page in a tab, after its selftest."""

    def __init__(self, tab: Page) -> None:
        self.tab = tab
        tab.wait("location.protocol === 'http:'")
        tab.run(START)

    def text(self, name: str) -> str:
        """What is to be read in an element."""
        return str(self.tab.run(f"document.getElementById('{name}').innerText"))

    def first_answer_seconds(self) -> float:
        """From the beginning of the navigation to the first answer."""
        script = "performance.getEntriesByName('first answer')[0].startTime / 1000"
        return float(self.tab.run(script))

    def latency_ms(self) -> float:
        """The median of the last answers."""
        return float(self.tab.run("page.model.latency.median"))

    def answers(self, rows: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Every output of some rows, one row after the other, as a person gives them."""
        given = rows.reshape(len(rows), -1).tolist()
        found = [
            {name: np.array(data).reshape(dims) for name, dims, data in row}
            for row in self.tab.run(f"{ANSWERS}({json.dumps(given)})")
        ]
        return {name: np.concatenate([row[name] for row in found]) for name in found[0]}

    def draw(self, strokes: Sequence[Sequence[tuple[float, float]]]) -> str:
        """Draw with the mouse on an empty surface, from 0 to 1; returns what the page says then."""
        box: Mapping[str, float] = self.tab.run(
            "document.getElementById('clear').click(),"
            "document.getElementById('surface').getBoundingClientRect().toJSON()"
        )
        for stroke in strokes:
            places = [
                (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke
            ]
            self._mouse("mousePressed", *places[0])
            for place in places[1:]:
                self._mouse("mouseMoved", *place)
            self._mouse("mouseReleased", *places[-1])
        self.tab.wait("!document.querySelector('#said.blank')")
        self.tab.run("page.answered.then(() => null)")
        return self.text("said")

    def drop(self, content: bytes, name: str) -> str:
        """Drop a file on the page; returns what it says of the answer then."""
        text = base64.b64encode(content).decode()
        self.tab.run(f"{DROP}('{text}', '{name}')")
        return self.text("said")

    def _mouse(self, kind: str, x: float, y: float) -> None:
        held = {"button": "left", "buttons": 0 if kind == "mouseReleased" else 1}
        self.tab.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, clickCount=1, **held)


def write_web_bundle(folder: Path, model: Path, variant: str, rows: npt.NDArray[Any]) -> Bundle:
    """The bundle for the web of an exported model, with the hardest of some rows as golden ones."""
    content = model.read_bytes()
    told = {
        key.removeprefix("ferry."): value
        for key, value in open_session(content, threads=1).metadata.items()
    }
    labels = tuple(json.loads(told["labels"]))
    golden, tie = hardest(content, rows, 64, labels)
    contents = BundleContents(
        name=told["experiment"],
        variant=variant,
        target=WEB,
        model=content,
        labels=labels,
        golden_input=golden,
        golden_tie=tie,
        golden_max_abs_diff=0.1,
        metrics={"accuracy": float(told["accuracy"])},
        parity={"flips": Gate(measured=0, limit=0)},
        source=ModelOrigin(
            dataset=told["dataset"],
            weights_sha256=told["weights_sha256"],
            git_revision=told["git_revision"],
            ferry_version=told["version"],
        ),
        parts=(web_page,),
    )
    write_bundle(folder, contents)
    return open_bundle(folder)


def answers_here(bundle: Bundle, rows: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Every output of some rows by ONNX Runtime on this machine, one row after the other."""
    session = open_session(bundle.model, threads=1)
    fed = [{session.inputs[0].name: as_fed(rows[at : at + 1])} for at in range(len(rows))]
    found = [session.run(one) for one in fed]
    return {name: np.concatenate([row[name] for row in found]) for name in found[0]}
