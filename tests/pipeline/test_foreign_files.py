"""The files of other makers through `predict`, `parity`, `quantize` and `bundle`.

Each step is right, or refuses in one line. What the processes beside a step do has tests of its
own, so none is started here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from foreign_files import FILES, ForeignFile
from tries import generous

from pipeline.proof import hostile
from pipeline.proof.pair import compare, limits_of_pair
from pipeline.proof.rows import open_rows
from pipeline.proof.sides import model_side, open_side
from pipeline.records.parity import PairReport
from pipeline.records.quantize import QuantizeReport
from pipeline.stages.bundle import bundle_file
from pipeline.stages.quantize import quantize_file
from serving import open_model
from serving.bundles import verify
from serving.bundles.bundle import open_bundle
from serving.errors import FerryError
from serving.files import write_json
from serving.runtime.session import open_session


@dataclass(frozen=True)
class Journey:
    """A file on its way, beside its rows."""

    file: ForeignFile
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "net.onnx"

    @property
    def rows(self) -> str:
        return str(self.folder / "rows.npz")

    def predict(self) -> None:
        model = open_model(self.path)
        (fed,) = self.file.rows.values()
        found = model.answers(fed, batch_rows=7)
        size = model.fixed_batch or len(fed)
        bare = onnxruntime.InferenceSession(self.path.read_bytes())
        for name, answered in found.items():
            wanted = bare.run([name], {model.input.name: fed[:size]})[0]
            if isinstance(wanted, list):  # of ZipMap: from each class to its score
                wanted = np.array([list(row.values()) for row in wanted])
            if wanted.dtype.kind == "O":
                assert answered[:size].tolist() == wanted.tolist()
            else:
                np.testing.assert_allclose(answered[:size], wanted, rtol=1e-5, atol=1e-6)

    def parity(self) -> PairReport:
        side = open_side(str(self.path), lambda _: pytest.fail("it is a file"))
        rows = open_rows(self.rows, side.inputs)
        limits = limits_of_pair(1e-4)
        report = compare(side, side, rows, limits=limits, batch_sizes=(1, 7))
        assert report.passed
        assert report.result.onnx_reference.warning is None
        write_json(self.folder / "proof.json", report)
        return report

    def quantize(self) -> QuantizeReport:
        report = quantize_file(
            self.path,
            self.rows,
            self.folder / "out",
            config=generous(recipes=("static-u8s8-reduced", "weights-int8", "half"), seconds=0.001),
            variants=("int8", "fp16"),
            min_snr_db={},
        )
        whole = open_session(self.path)
        for variant in report.variants:
            made = open_session(self.folder / "out" / f"net.{variant}.onnx")
            assert [info.name for info in made.inputs] == [info.name for info in whole.inputs]
        tries = [one for search in report.searches.values() for one in search.tries]
        assert not [one.verdict for one in tries if "ferry's own" in one.verdict]
        return report

    def bundle(self) -> None:
        folder = self.folder / "bundle"
        proof = self.folder / "proof.json"
        bundle_file(self.path, folder, rows=self.rows, parity=proof, golden_rows=3)
        assert open_bundle(folder).model == self.path.read_bytes()


STEPS: tuple[Callable[[Journey], Any], ...] = (
    *(Journey.predict, Journey.parity, Journey.quantize, Journey.bundle),
)


def outcome(step: Callable[[Journey], Any], journey: Journey) -> str:
    """ "right", or the one line of a refusal."""
    try:
        step(journey)
    except FerryError as error:
        return str(error)
    return "right"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.maker}: {file.name}")
def test_a_foreign_file_is_right_or_refused_in_one_line(
    file: ForeignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "ask_nothing", lambda *_: ("answered 0 rows", True))
    monkeypatch.setattr(verify, "_runner", lambda *_: "")
    journey = Journey(file, tmp_path)
    journey.path.write_bytes(file.content())
    np.savez(journey.rows, **{name: _plain(rows) for name, rows in file.rows.items()})
    found = {step.__name__: outcome(step, journey) for step in STEPS}
    assert all(len(one.splitlines()) == 1 for one in found.values())
    wrong = {name for name, one in found.items() if one != "right"}
    assert wrong == AWKWARD.get(file.name, set()), found


def _plain(rows: np.ndarray) -> np.ndarray:
    return rows.astype(str) if rows.dtype.hasobject else rows


SEVERAL = {"predict", "bundle"}
ALL = {step.__name__ for step in STEPS}
AWKWARD = {
    "two_inputs_of_keras": SEVERAL,
    "three_inputs": SEVERAL,
    "missing_values": {"bundle"},
    "a_sequence_beside_an_array": {"bundle"},
    "an_optional_output": {"bundle"},
    "names_in_another_encoding": ALL - {"predict"},
    "brain_floats_out": ALL,
    "eight_bit_floats_out": ALL,
    "four_bit_integers_out": ALL,
    "shapes_without_a_rank": ALL,
    "one_number_for_all_rows": ALL,
    "time_before_rows": ALL,
    "no_inputs": ALL,
}
"""What is refused, of which file; all else is right."""


def test_what_is_no_array_is_not_counted_in_a_batch_without_rows() -> None:
    (file,) = [one for one in FILES if one.name == "a_sequence_beside_an_array"]
    side = model_side("net.onnx", file.content())
    rows = {name: array[:1] for name, array in file.rows.items()}
    assert hostile.zero_rows(side, rows) == ("answered 0 rows", True)


def test_there_are_files_of_many_makers() -> None:
    assert len(FILES) >= 40
    assert len({file.maker for file in FILES}) >= 8
    assert {file.name for file in FILES} >= AWKWARD.keys()
