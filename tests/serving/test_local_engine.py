"""The engine of this machine: order, processes that decode, and what becomes of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from tiny_classifier import expected_scores, images

from serving.batch import engine
from serving.batch.journal import RunKey, read_journal
from serving.batch.predict import predict
from serving.batch.report import summary
from serving.batch.run import PredictOptions
from serving.errors import EngineError
from serving.inputs import decoding

COUNT = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of which every fiftieth cannot be read."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, row in enumerate(images(COUNT)):
        path = folder / f"{index:03}.png"
        if index % 50 == 49:
            path.write_bytes(b"no image")
        else:
            Image.fromarray(row[..., 0]).save(path)
    return folder


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PROCESSES_PAY", 1)
    monkeypatch.setattr(decoding, "opencv", lambda: None)  # here; the processes have it
    monkeypatch.setattr("serving.batch.run.CHUNK_ROWS", 32)


def test_processes_give_what_threads_give(
    model_file: Path, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = PredictOptions(workers=2, batch_rows=16)
    predict(model_file, [folder], output=tmp_path / "threads.jsonl", options=options)
    request.getfixturevalue("in_processes")
    report = predict(model_file, [folder], output=tmp_path / "processes.jsonl", options=options)
    assert (report.rows, report.errors) == (COUNT - 6, 6)
    written = (tmp_path / "processes.jsonl").read_bytes()
    assert written == (tmp_path / "threads.jsonl").read_bytes()
    found = [json.loads(line)["label_index"] for line in written.splitlines()]
    good = [index for index in range(COUNT) if index % 50 != 49]
    assert found == expected_scores(images(COUNT)).argmax(axis=1)[good].tolist()
    left = [child.cmdline() for child in psutil.Process().children()]
    assert not [command for command in left if "spawn_main" in " ".join(command)]


@pytest.mark.usefixtures("in_processes")
def test_a_decoding_process_that_dies_is_told(
    model_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_decode_there", dying)
    with pytest.raises(EngineError, match="a process that decoded images died; the memory may"):
        predict(
            model_file, [folder], output=tmp_path / "out.csv", options=PredictOptions(workers=2)
        )


def test_with_opencv_a_few_threads_decode_any_number_of_images(
    model_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setattr(engine, "PROCESSES_PAY", 1)
    monkeypatch.setattr(engine, "_decode_there", dying)
    monkeypatch.setattr("serving.batch.run.CHUNK_ROWS", 32)
    options = PredictOptions(workers=engine.THREADS_DO)
    report = predict(model_file, [folder], output=tmp_path / "out.csv", options=options)
    assert (report.rows, report.errors) == (COUNT - 6, 6)


def dying(_item: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


PROGRAM = """
import sys
import time
from pathlib import Path
from serving.batch.predict import predict
from serving.batch.run import PredictOptions
from serving.batch import engine, run
from serving.inputs.decoding import ImageDecoder
decode_file = ImageDecoder.decode_file
def slowly(self, path):
    time.sleep(0.02)
    return decode_file(self, path)
ImageDecoder.decode_file = slowly  # in the decoding processes too, which import this program
if __name__ == "__main__":
    engine.PROCESSES_PAY = engine.THREADS_DO = 1
    run.CHUNK_ROWS = 1
    options = PredictOptions(workers=2, batch_rows=1)
    predict(sys.argv[1], [sys.argv[2]], output=Path(sys.argv[3]), options=options)
"""


def started(model: Path, folder: Path, tmp_path: Path) -> "subprocess.Popen[bytes]":
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", str(model), str(folder), "out.csv"]
    environment = {**os.environ, "PYTHONPATH": str(Path(engine.__file__).resolve().parents[2])}
    return subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)


def test_decoding_processes_end_with_a_run_that_is_killed(
    model_file: Path, folder: Path, tmp_path: Path
) -> None:
    for index in range(COUNT):
        os.link(folder / "000.png", folder / f"more-{index}.png")
    with started(model_file, folder, tmp_path) as process:
        children = wait_for_children(process)
        process.kill()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_a_signal_to_the_whole_group_ends_the_run_after_the_batch_in_hand(
    model_file: Path, folder: Path, tmp_path: Path
) -> None:
    for index in range(20 * COUNT):
        os.link(folder / "000.png", folder / f"more-{index}.png")
    with started(model_file, folder, tmp_path) as process:
        wait_for_children(process)
        end = time.monotonic() + 60
        while not any(tmp_path.glob("out.csv.parts/._part-*")) and time.monotonic() < end:
            time.sleep(0.05)  # until the decoding processes are ready for the signal
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0  # the report says that it was stopped
    journal = read_journal(tmp_path / "out.csv.parts" / "_manifest.jsonl")
    assert journal is not None
    assert not journal.complete


def wait_for_children(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    end = time.monotonic() + 60
    children: list[psutil.Process] = []
    while len(children) < 3 and process.poll() is None and time.monotonic() < end:
        children = psutil.Process(process.pid).children(recursive=True) or children
        time.sleep(0.005)
    return children


def test_the_summary_says_where_the_time_went_and_what_would_help(
    model_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.batch.report.WORTH_SECONDS", 0)
    report = predict(model_file, [folder], output=tmp_path / "out.csv")
    assert sum(report.stages.shares.values()) == pytest.approx(1)
    message = summary(report).splitlines()
    assert message[1].startswith("decode ")
    assert f"most by {report.stages.bottleneck}: " in message[1]


def test_every_option_that_changes_the_answers_is_part_of_the_key() -> None:
    """A new option must be looked at: does it change what is written?"""
    free = {"threads", "workers", "default_format", "overwrite", "max_errors", "engine"}
    free |= {"ray_address"}
    fields = set(PredictOptions.__dataclass_fields__) - free
    assert fields <= set(RunKey.__dataclass_fields__)
