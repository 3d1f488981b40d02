"""A model may hang, grow or end the process: the command says so in one line and keeps rows."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import odd_models
import pytest

from serving.batch.journal import read_journal
from serving.runtime import guard

ROWS, ODD = 200, 70
"""All rows, and the one over which a model stumbles, in the third batch of 32."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Odd models, and rows of which one is of ill effect."""
    for name in ("trapping_at_minus_one", "without_rows", "taking_many_rows", "filling_memory"):
        (tmp_path / f"{name}.onnx").write_bytes(getattr(odd_models, name)())
    (tmp_path / "endless.onnx").write_bytes(odd_models.endless_for_white())
    rows = np.ones((ROWS, 1), np.float32)
    rows[ODD] = -1
    np.save(tmp_path / "rows.npy", rows)
    images = np.zeros((ROWS, 4, 5, 1), np.uint8)
    images[ODD] = 255
    np.save(tmp_path / "images.npy", images)
    return tmp_path


def ferry(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "serving", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


DEATH = "the native runtime ended (SIGFPE) in batch 3"
HANG = "batch 3 has not ended in 1 s (--call-timeout)"


@pytest.mark.parametrize(
    ("model", "rows", "said"),
    [("trapping_at_minus_one", "rows", DEATH), ("endless", "images", HANG)],
)
def test_the_rows_before_a_fatal_batch_are_kept(
    folder: Path, model: str, rows: str, said: str
) -> None:
    done = ferry(
        folder,
        *("predict", f"{model}.onnx", f"{rows}.npy", "--output", "answers.csv"),
        *("--call-timeout", "1", "--task", "regression"),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"Warning: {said}; once more, batch by batch, to keep the rows before it",
        "64 rows are kept in answers.csv.parts; the same command goes on",
        f"Error: {said}",
    ]
    journal = read_journal(folder / "answers.csv.parts" / "_manifest.jsonl")
    assert journal
    assert journal.rows == 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("predict trapping_at_minus_one.onnx rows.npy --task regression", DEATH),
        ("predict endless.onnx images.npy --call-timeout 1 --task regression", HANG),
        ("predict without_rows.onnx rows.npy", "the native runtime ended (SIGABRT) in batch 1"),
        (
            "predict taking_many_rows.onnx rows.npy",
            "batches of 1,099,511,627,776 rows: no memory for these",
        ),
        ("predict filling_memory.onnx rows.npy --max-memory 2", "Failed to allocate memory"),
        (
            "bench trapping_at_minus_one.onnx --data rows.npy --batch-size 200",
            "the process that measured trapping_at_minus_one.onnx was ended by SIGFPE",
        ),
        (
            "bench endless.onnx --data images.npy --batch-size 200 --call-timeout 2",
            "warming up has not ended in 2 s (--call-timeout)",
        ),
    ],
)
def test_what_a_model_does_to_its_process_is_one_line(
    folder: Path, arguments: str, said: str
) -> None:
    done = ferry(folder, *arguments.split())
    lines = [line for line in done.stderr.splitlines() if not line.startswith("terminate called")]
    assert (done.returncode, len(lines)) == (1, 1), done.stderr
    assert lines[0].startswith("Error: ")
    assert said in lines[0]


def test_ctrl_c_ends_a_batch_that_does_not_end(folder: Path) -> None:
    command = [sys.executable, "-m", "serving", "predict", "endless.onnx", "images.npy"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE) as running:
        wait_for_call(running.pid)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 128 + signal.SIGINT


def wait_for_call(parent: int) -> int:
    """The watched child of a process, when another thread than the first takes processor time."""
    while True:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            for thread in Path(f"/proc/{child}/task").iterdir():
                ticks = int((thread / "stat").read_text().rpartition(")")[2].split()[11])
                if thread.name != child and ticks > 20:
                    return int(child)
        time.sleep(0.02)


def test_nobody_is_left_when_the_parent_is_killed(folder: Path) -> None:
    command = [sys.executable, "-m", "serving", "predict", "endless.onnx", "images.npy"]
    with subprocess.Popen(command, cwd=folder) as running:
        child = wait_for_call(running.pid)
        running.kill()
    while os.path.exists(f"/proc/{child}/fd"):  # noqa: PTH110 - of one that was not waited for
        time.sleep(0.02)


def test_a_signal_for_the_whole_group_comes_to_the_child_once(folder: Path) -> None:
    program = """
import signal, time
from serving.runtime import guard
guard.watch()
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
print("ready", flush=True)
time.sleep(0.5)
print(len(seen), flush=True)
"""
    counts = []
    for send in (os.kill, os.killpg):
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=folder,
        ) as running:
            assert running.stdout
            running.stdout.readline()
            send(running.pid, signal.SIGTERM)
            counts.append(running.stdout.read().strip())
    assert counts == ["1", "1"]


def test_the_second_child_ends_by_signals_like_the_first(folder: Path) -> None:
    program = """
import os, signal, time
from serving.runtime import guard
guard.watch()
if guard.careful() is None:
    guard.done(0)
    os.abort()
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True)
    assert done.returncode == -signal.SIGTERM
    assert done.stderr.startswith(b"Warning: the native runtime ended (SIGABRT)")


def test_a_limit_of_the_shell_stays_as_it_is(folder: Path) -> None:
    program = """
import resource
from serving.runtime import guard
resource.setrlimit(resource.RLIMIT_DATA, (2**32, -1))
guard.watch()
print(resource.getrlimit(resource.RLIMIT_DATA)[0])
for gib in (8, 1e300):
    guard.set_memory_limit(gib)
    print(resource.getrlimit(resource.RLIMIT_DATA)[0])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE)
    assert list(map(int, done.stdout.split())) == [2**32, 2**33, 2**62]


@pytest.mark.parametrize(("ending", "status"), [("sys.exit(7)", 7), ("os.abort()", 1), ("", 0)])
def test_the_status_of_the_child_is_that_of_the_command(ending: str, status: int) -> None:
    program = f"import os, sys\nfrom serving.runtime import guard\nguard.watch()\n{ending}"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == status


def test_an_unwatched_process_tells_nobody() -> None:
    call = print
    assert guard.watched(call) is call
    guard.step("this")
    guard.done(3)
    assert guard.careful() is None
