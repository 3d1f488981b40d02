"""A run that is told to end does so, whatever the batch in hand does, and keeps what it has."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from odd_models import endless_for_white

from serving.batch.journal import read_journal

ROWS, DARK = 4096, 2048
"""All rows, and those before the first that takes for ever."""
PROGRAM = """
import sys
from serving.batch import signals
from serving.cli import main
signals.PATIENCE_SECONDS = float(sys.argv.pop(1))
main()
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    values = np.zeros((ROWS, 4, 5, 1), np.uint8)
    values[DARK:] = 255
    np.save(tmp_path / "rows.npy", values)
    (tmp_path / "endless.onnx").write_bytes(endless_for_white())
    return tmp_path / "rows.npy"


def started(rows: Path, workers: int, patience: float) -> "subprocess.Popen[bytes]":
    """A run that has come to the batch without an end."""
    folder = rows.parent
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(patience),
        "predict",
        str(folder / "endless.onnx"),
    ]
    process = subprocess.Popen(
        [*command, str(rows), "-o", str(folder / "out.csv"), "--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    end = time.monotonic() + 60
    while not any(folder.glob("out.csv.parts/._part-*")) and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)
    return process


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_batch_without_an_end_is_left_after_a_while(
    rows: Path, workers: int, number: signal.Signals
) -> None:
    process = started(rows, workers, patience=0.5)
    process.send_signal(number)
    message, _ = process.communicate(timeout=60)
    said = message.decode()
    assert process.returncode == 128 + number, said
    assert "the batch in hand takes more than 0.5 s; it is left undone" in said
    assert f"stopped by {number.name}; the same command goes on" in said
    assert "Traceback" not in said
    check_kept(rows)


def test_a_second_signal_does_not_wait(rows: Path) -> None:
    process = started(rows, 1, patience=600)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    message, _ = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert "stopped by SIGINT; the same command goes on" in message.decode()
    check_kept(rows)


def check_kept(rows: Path) -> None:
    """What was answered before is kept, each row once."""
    parts = rows.parent / "out.csv.parts"
    journal = read_journal(parts / "_manifest.jsonl")
    assert journal is not None
    assert not journal.complete
    with (parts / "_part-00000.csv.part").open(encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [
            f"{rows}:{index}" for index in range(DARK)
        ]
