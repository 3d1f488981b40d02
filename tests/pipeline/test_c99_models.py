"""Trained and drawn networks as C: the same decisions, on this processor and on a Cortex-M4."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from c_cases import raw_bytes, residual
from c_toolchain import STRICT, answers, measure, missing
from project import Project
from small_models import rows_for

from pipeline.config.experiment import Params
from pipeline.exporting.exporter import to_onnx
from pipeline.models.parts.graph import build_graph
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.recipes import parse
from pipeline.records.ready import open_manifest, open_split
from pipeline.targets.boards import BOARDS, KnownBoard, boards
from pipeline.targets.c99 import CModel, emit
from pipeline.targets.c99.emitting import selftest
from serving.runtime.session import open_session
from serving.runtime.settings import Level
from serving.runtime.tensors import Array

ROWS, EMULATED = 1000, 20
"""Rows that are decided on this processor, and on the emulated one."""


def rows_of(data: Path) -> Array:
    """Digits of all splits: the test set alone has fewer."""
    splits = [np.array(open_split(data, name).inputs) for name in ("test", "validation", "train")]
    return np.concatenate(splits)[:ROWS]


def logits(content: bytes, rows: Array, level: Level) -> Array:
    session = open_session(content, threads=1, optimize=level)
    return session.run({"images": rows})["logits"]


def real_flips(content: bytes, found: Array, rows: Array, level: Level) -> int:
    """Rows that are decided otherwise although no kernel could."""
    none, all_ = (logits(content, rows, one) for one in ("none", "all"))
    wanted = none if level == "none" else all_
    tie = 2 * float(np.abs(none - all_).max())
    best = np.sort(wanted, axis=1)
    clear = best[:, -1] - best[:, -2] > tie
    return int(((wanted.argmax(1) != found.argmax(1)) & clear).sum())


@pytest.fixture(scope="module")
def contents(exported: Project, params: Params) -> Mapping[str, bytes]:
    """A trained network of digits, and one with branches of drawn weights, as they are shipped."""
    found = {name: exported.models[name].read_bytes() for name in ("fp32", "int8")}
    experiment = params.experiment("cifar10-resnet8")
    small = {**experiment.model.settings, "widths": [4, 8]}
    graph = build_graph(
        replace(experiment, model=replace(experiment.model, settings=small)),
        open_manifest(exported.data),
    )
    digits = rows_of(exported.data)
    branched = to_onnx(graph, digits[:2], 20)
    calibration = replace(rows_for(branched), inputs={"images": digits[:64]})
    recipe = parse("static-u8s8-raw-reduced")
    found["branched-fp32"] = branched.SerializeToString()
    made = Quantizer(branched, calibration).apply(recipe)
    found["branched-int8"] = made.SerializeToString()
    return found


@pytest.mark.parametrize("name", ["fp32", "int8", "branched-fp32", "branched-int8"])
def test_a_network_decides_alike_as_c_in_the_room_that_was_told(
    contents: Mapping[str, bytes], exported: Project, name: str, tmp_path: Path
) -> None:
    if lacking := missing("host"):
        pytest.skip(f"no {lacking} here")
    content, rows = contents[name], rows_of(exported.data)
    program = emit(onnx.load_model_from_string(content), name)
    found = answers(program, {"images": rows}, tmp_path)
    level: Level = "none" if name.endswith("int8") else "all"
    assert len(rows) == ROWS
    assert real_flips(content, found["logits"], rows, level) == 0
    if lacking := missing("cortex-m4"):
        pytest.skip(f"no {lacking} here")
    few = {"images": rows[:EMULATED]}
    emulated = answers(program, few, tmp_path, machine="cortex-m4")
    for output, values in emulated.items():
        np.testing.assert_allclose(values, found[output][:EMULATED], rtol=1e-5, atol=1e-5)
    assert (emulated["logits"].argmax(1) == found["logits"][:EMULATED].argmax(1)).all()
    room = measure(program, tmp_path)
    assert room.arena_bytes == program.arena_bytes
    assert program.flash_bytes == pytest.approx(room.flash_bytes, rel=0.1)
    assert room.stack_bytes
    assert 0 <= program.ram_bytes - room.arena_bytes - room.stack_bytes < 200


SECOND = """#include <stdint.h>
#include <stdio.h>

void second(const uint8_t *images, float *logits, float *probabilities);

int main(void)
{
    static uint8_t row[64];
    float logits[10], probabilities[10];
    FILE *rows = fopen("rows.bin", "rb"), *answers = fopen("second.bin", "wb");
    while (fread(row, sizeof row, 1, rows) == 1) {
        second(row, logits, probabilities);
        fwrite(logits, sizeof logits, 1, answers);
    }
    return fclose(answers);
}
"""


def test_a_generator_of_others_gives_the_same_answers(
    contents: Mapping[str, bytes], exported: Project, tmp_path: Path
) -> None:
    if lacking := missing("host"):
        pytest.skip(f"no {lacking} here")
    pytest.importorskip("emx_onnx_cgen", reason="emx-onnx-cgen is not installed")
    rows = rows_of(exported.data)[:50]
    program = emit(onnx.load_model_from_string(contents["fp32"]), "digits")
    found = answers(program, {"images": rows}, tmp_path)["logits"]
    (tmp_path / "model.onnx").write_bytes(contents["fp32"])
    (tmp_path / "second_main.c").write_text(SECOND)
    generate = [sys.executable, "-m", "emx_onnx_cgen", "compile", "--input-dim", "batch=1"]
    for command in (
        [*generate, "--model-name", "second", "model.onnx", "second.c"],
        ["gcc", "-std=c99", "-O1", "-w", "second.c", "second_main.c", "-o", "second", "-lm"],
        ["./second"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    second = np.fromfile(tmp_path / "second.bin", np.float32).reshape(len(rows), 10)
    np.testing.assert_allclose(found, second, rtol=1e-5, atol=1e-5)


def test_whole_numbers_take_a_quarter_of_the_memory(contents: Mapping[str, bytes]) -> None:
    made = {name: emit(onnx.load_model_from_string(one), name) for name, one in contents.items()}
    for before, after in (("fp32", "int8"), ("branched-fp32", "branched-int8")):
        assert made[after].arena_bytes * 4 <= made[before].arena_bytes
        assert made[after].constant_bytes * 3 < made[before].constant_bytes
    # Nothing between two layers of whole numbers is a float: the one array is of bytes.
    assert "static uint8_t arena" in made["int8"].source
    assert "float *y" not in made["int8"].source.split("/* Step 3:")[0].split("/* Step 1:")[1]


def test_a_program_is_the_same_bytes_each_time(contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        first, second = (emit(onnx.load_model_from_string(content), name) for _ in range(2))
        assert (first.header, first.source) == (second.header, second.source)


def outcome(
    program: CModel, rows: Array, wanted: Array, folder: Path, *flags: str
) -> tuple[int, str]:
    """The exit status of a self-test, and what it prints."""
    text = selftest(program, rows, {program.outputs[0]: wanted}, limit=1e-4, scores=0)
    folder.mkdir()
    for name, content in (("h", program.header), ("c", program.source)):
        (folder / f"model.{name}").write_text(content)
    (folder / "selftest.c").write_text(text)
    command = ["gcc", *STRICT, *flags, "model.c", "selftest.c", "-o", "test", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    done = subprocess.run(["./test"], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_selftest_passes_and_tells_what_does_not(tmp_path: Path) -> None:
    if lacking := missing("host"):
        pytest.skip(f"no {lacking} here")
    made = residual()
    rows = rows_for(made, 4).inputs["x"]
    wanted = open_session(made.SerializeToString(), threads=1).run({"x": rows})["y"]
    program = emit(made, "residual")
    status, said = outcome(program, rows, wanted, tmp_path / "right")
    assert (status, said[:29]) == (0, "4 of 4 golden rows pass, the ")
    spoilt = wanted.copy()
    spoilt[1] = -spoilt[1]
    spoilt[2, 0] += 1
    spoilt[3, 1] = np.nan
    status, said = outcome(program, rows, spoilt, tmp_path / "wrong")
    assert status == 1
    assert "row 1: class" in said
    assert "row 2: 1 off, the limit is 0.0001" in said
    assert "row 3: inf off" in said
    assert "1 of 4 golden rows pass" in said
    status, said = outcome(program, rows, spoilt, tmp_path / "fewer", "-DROWS=1")
    assert (status, said[:6]) == (0, "1 of 1")
    made = raw_bytes()  # whose answers are whole numbers
    rows = rows_for(made, 4).inputs["x"]
    wanted = open_session(made.SerializeToString(), threads=1).run({"x": rows})["y"]
    status, said = outcome(emit(made, "bytes"), rows, wanted, tmp_path / "bytes")
    assert (status, said[:29]) == (0, "4 of 4 golden rows pass, the ")


def test_boards_are_those_that_have_the_room() -> None:
    assert [board.name for board in boards(1, 1)] == [board.name for board in BOARDS]
    assert boards(64 * 2**10, 20 * 2**10)[0].name == "STM32F103 'Blue Pill'"
    assert "STM32F103 'Blue Pill'" not in {board.name for board in boards(64 * 2**10 + 1, 1)}
    assert boards(2**30, 1) == ()
    avr = KnownBoard("", 100, 50, "", copies_constants=True)
    assert avr.fits(30, 20)
    assert not avr.fits(31, 20)
