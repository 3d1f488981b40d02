"""A run that is stopped, killed or starved of disk goes on, and every row is written once."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from samples_of_rows import as_stdin
from tiny_classifier import classifier, images
from tiny_images import encoded, write

from serving.batch import journal
from serving.batch.journal import read_journal
from serving.batch.lock import lock_output
from serving.batch.predict import ShardedOutput, predict
from serving.batch.report import summary
from serving.batch.run import PredictOptions
from serving.errors import InputError, IntegrityError, OutputError
from serving.files import dump_json

ROWS = 3000
ONE = PredictOptions(workers=1, batch_rows=8)
FORMS = ["csv", "jsonl", "parquet", "arrow", "csv.gz", "jsonl.zst"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, images(ROWS))
    return path


@pytest.fixture
def shards_of_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.batch.predict.SHARD_ROWS", 1)


def ids(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row["id"] for row in csv.DictReader(file)]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "out")))


@pytest.mark.usefixtures("shards_of_one_chunk")
@pytest.mark.parametrize("form", FORMS)
def test_what_was_cut_short_goes_on_and_equals_an_undisturbed_run(
    model_file: Path, rows: Path, tmp_path: Path, cut_short: list[int], form: str
) -> None:
    predict(model_file, [rows], output=tmp_path / f"whole.{form}", options=ONE)
    output = tmp_path / f"out.{form}"
    for chunks in (1, 0, 1):
        cut_short[0] = chunks
        with pytest.raises(RuntimeError, match="cut short"):
            predict(model_file, [rows], output=output, options=ONE)
        assert not output.exists()
    cut_short[0] = -1
    report = predict(model_file, [rows], output=output, options=ONE)
    assert (report.rows, report.resumed_rows) == (ROWS, 2048)
    assert "3,000 rows" in summary(report)
    assert "(2,048 of them before)" in summary(report)
    assert left_over(tmp_path) == [f"out.{form}", f"out.{form}.manifest.jsonl"]
    if form.startswith(("csv", "jsonl")):
        assert unpacked(output) == unpacked(tmp_path / f"whole.{form}")
        return
    read = pyarrow.parquet.read_table if form == "parquet" else arrow_table
    assert read(output).equals(read(tmp_path / f"whole.{form}"))
    assert read(output).schema.metadata[b"ferry.model_sha256"].decode() == report.model_sha256


def unpacked(path: Path) -> bytes:
    with pyarrow.input_stream(str(path)) as stream:
        return bytes(stream.read())


def arrow_table(path: Path) -> pyarrow.Table:
    with pyarrow.OSFile(str(path)) as source:
        return pyarrow.ipc.open_file(source).read_all()


@pytest.mark.usefixtures("shards_of_one_chunk")
def test_a_folder_of_shards_is_read_as_one_table(
    model_file: Path, rows: Path, tmp_path: Path, cut_short: list[int]
) -> None:
    output = tmp_path / "out"
    cut_short[0] = 1
    with pytest.raises(RuntimeError, match="cut short"):
        predict(model_file, [rows], output=output, options=ONE)
    cut_short[0] = -1
    report = predict(model_file, [rows], output=output, options=ONE)
    assert report.rows == ROWS
    table = pyarrow.parquet.read_table(output)
    assert table["id"].to_pylist() == [f"{rows}:{index}" for index in range(ROWS)]
    journal = read_journal(output / "_manifest.jsonl")
    assert journal is not None
    assert journal.complete
    assert journal.provenance.key.model_sha256 == report.model_sha256


def test_a_finished_run_is_not_done_again(model_file: Path, rows: Path, tmp_path: Path) -> None:
    for output in (tmp_path / "out.csv", tmp_path / "out"):
        predict(model_file, [rows], output=output, options=ONE)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        report = predict(model_file, [rows], output=output, options=ONE)
        assert (report.rows, report.resumed_rows, report.seconds) == (ROWS, ROWS, 0)
        assert summary(report).endswith("(3,000 of them before); the run was complete already")
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


OTHERS = {
    "other settings": ({"probabilities": True}, "was begun with probabilities False, not True"),
    "another batch size": ({"batch_rows": 4}, "was begun with batch rows 8, not 4"),
    "a limit": ({"limit": 12}, "was begun with limit None, not 12"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_run_is_refused_and_says_what_differs(
    model_file: Path, rows: Path, tmp_path: Path, case: str
) -> None:
    name = "out.csv" if case == "a limit" else "out"
    predict(model_file, [rows], output=tmp_path / name, options=ONE)
    before = sorted(tmp_path.rglob("*"))
    changed, message = OTHERS[case]
    options = PredictOptions(**{"workers": 1, "batch_rows": 8, **changed})  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=f"{message}; --overwrite begins again"):
        predict(model_file, [rows], output=tmp_path / name, options=options)
    assert sorted(tmp_path.rglob("*")) == before


def test_another_model_and_changed_inputs_are_refused(
    model_file: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    predict(model_file, [rows], output=output, options=ONE)
    other = tmp_path / "other.onnx"
    other.write_bytes(classifier(metadata={"ferry.labels": '["a", "b", "c"]'}))
    with pytest.raises(OutputError, match=r"out\.csv was begun with another model"):
        predict(other, [rows], output=output, options=ONE)
    np.save(rows, images(ROWS + 1))
    with pytest.raises(OutputError, match="inputs that have changed since"):
        predict(model_file, [rows], output=output, options=ONE)
    again = PredictOptions(workers=1, batch_rows=8, overwrite=True)
    assert predict(model_file, [rows], output=output, options=again).rows == ROWS + 1
    assert len(ids(output)) == ROWS + 1


def test_what_no_run_made_is_never_replaced(model_file: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.csv exists already; --overwrite replaces it"):
        predict(model_file, [rows], output=tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    for overwrite in (False, True):
        options = PredictOptions(overwrite=overwrite)
        with pytest.raises(OutputError, match=r"out is a folder with other files \(notes\)"):
            predict(model_file, [rows], output=tmp_path / "out", options=options)
    assert left_over(tmp_path / "out") == []
    assert (tmp_path / "out" / "notes").read_text() == "mine"


@pytest.mark.usefixtures("shards_of_one_chunk")
def test_a_shard_that_was_altered_is_not_gone_on_from(
    model_file: Path, rows: Path, tmp_path: Path, cut_short: list[int]
) -> None:
    output = tmp_path / "out.csv"
    cut_short[0] = 2
    with pytest.raises(RuntimeError, match="cut short"):
        predict(model_file, [rows], output=output, options=ONE)
    shard = tmp_path / "out.csv.parts" / "_part-00001.csv.part"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"_part-00001\.csv\.part should have \d+ bytes"):
        predict(model_file, [rows], output=output, options=ONE)
    shard.unlink()
    with pytest.raises(IntegrityError, match=r"_part-00001\.csv\.part .* is not there"):
        predict(model_file, [rows], output=output, options=ONE)


@pytest.mark.usefixtures("shards_of_one_chunk")
def test_half_a_line_and_files_that_no_line_lists_are_swept_away(
    model_file: Path, rows: Path, tmp_path: Path, cut_short: list[int]
) -> None:
    predict(model_file, [rows], output=tmp_path / "whole.csv", options=ONE)
    output = tmp_path / "out.csv"
    cut_short[0] = 2
    with pytest.raises(RuntimeError, match="cut short"):
        predict(model_file, [rows], output=output, options=ONE)
    parts = tmp_path / "out.csv.parts"
    lines = (parts / "_manifest.jsonl").read_bytes()
    (parts / "_manifest.jsonl").write_bytes(lines[:-20])
    (parts / ".part-00002.csv.x1.tmp").write_text("half")
    cut_short[0] = -1
    report = predict(model_file, [rows], output=output, options=ONE)
    assert report.resumed_rows == 1024
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_manifest_that_no_run_wrote(model_file: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_manifest.jsonl").write_text("{}\n")
    with pytest.raises(IntegrityError, match=r"_manifest\.jsonl: line 1 lacks the key"):
        predict(model_file, [rows], output=tmp_path / "out")
    (tmp_path / "out" / "_manifest.jsonl").write_text("oops\n")
    with pytest.raises(IntegrityError, match="line 1 is not JSON; --overwrite begins again"):
        predict(model_file, [rows], output=tmp_path / "out")
    options = PredictOptions(overwrite=True)
    assert predict(model_file, [rows], output=tmp_path / "out", options=options).rows == ROWS


@pytest.mark.usefixtures("shards_of_one_chunk")
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_was_being_written_when_a_run_was_killed_goes(
    model_file: Path, rows: Path, tmp_path: Path, cut_short: list[int], overwrite: bool
) -> None:
    cut_short[0] = 1
    with pytest.raises(RuntimeError, match="cut short"):
        predict(model_file, [rows], output=tmp_path / "out.csv", options=ONE)
    cut_short[0] = -1
    (tmp_path / "out").mkdir()
    for name in ("out.csv", "out.csv.errors.jsonl", "out.csv.manifest.jsonl"):
        (tmp_path / f".{name}.ab12_xyz.tmp").touch()
    (tmp_path / "out/._manifest.jsonl.ab12_xyz.tmp").touch()
    (tmp_path / ".out.csv.gz.ab12_xyz.tmp").touch()  # of another output
    for name in ("out.csv", "out"):
        options = replace(ONE, overwrite=overwrite)
        assert predict(model_file, [rows], output=tmp_path / name, options=options).rows == ROWS
    there = [".out.csv.gz.ab12_xyz.tmp", "out", "out.csv", "out.csv.manifest.jsonl"]
    assert left_over(tmp_path) == there
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.usefixtures("shards_of_one_chunk")
def test_joining_can_be_interrupted_anywhere(
    model_file: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(model_file, [rows], output=tmp_path / "whole.csv", options=ONE)
    output = tmp_path / "out.csv"
    for name in ("atomic_write", "write_bytes", "sync_folder", "shutil.rmtree"):
        with monkeypatch.context() as patch:
            patch.setattr(f"serving.batch.journal.{name}", broken)
            with pytest.raises(RuntimeError, match="cut short"):
                predict(model_file, [rows], output=output, options=ONE)
    report = predict(model_file, [rows], output=output, options=ONE)
    assert report.resumed_rows == ROWS
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert left_over(tmp_path) == ["out.csv", "out.csv.manifest.jsonl"]


@pytest.mark.parametrize("name", ["write_bytes", "sync_folder"])
def test_a_single_shard_that_became_the_output_is_not_asked_for_again(
    model_file: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output = tmp_path / "out.csv"

    def broken_at_the_end(path: Path, *content: bytes) -> None:
        if path in (tmp_path, tmp_path / "out.csv.manifest.jsonl"):
            raise RuntimeError("cut short")
        real(path, *content)

    real = getattr(journal, name)
    with monkeypatch.context() as patch:
        patch.setattr(journal, name, broken_at_the_end)
        with pytest.raises(RuntimeError, match="cut short"):
            predict(model_file, [rows], output=output, options=ONE)
    report = predict(model_file, [rows], output=output, options=ONE)
    assert report.resumed_rows == ROWS
    assert ids(output) == [f"{rows}:{index}" for index in range(ROWS)]
    assert left_over(tmp_path) == ["out.csv", "out.csv.manifest.jsonl"]


def test_a_failure_halfway_leaves_the_output_that_was_to_be_replaced(
    model_file: Path, rows: Path, tmp_path: Path, cut_short: list[int]
) -> None:
    output = tmp_path / "out.csv"
    predict(model_file, [rows], output=output, options=ONE)
    before = {path: path.read_bytes() for path in tmp_path.glob("out*")}
    np.save(rows, images(ROWS)[::-1])
    again = PredictOptions(workers=1, batch_rows=8, overwrite=True)
    for chunks in (0, 1):
        cut_short[0] = chunks
        with pytest.raises(RuntimeError, match="cut short"):
            predict(model_file, [rows], output=output, options=again)
        assert {path: path.read_bytes() for path in tmp_path.glob("out.csv*")} == before
    cut_short[0] = -1
    assert predict(model_file, [rows], output=output, options=again).rows == ROWS
    assert output.read_bytes() != before[output]


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("cut short")


def test_a_run_that_fails_before_its_first_shard_leaves_nothing(
    tmp_path: Path, rows: Path, cut_short: list[int], model_file: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    cut_short[0] = 0
    with pytest.raises(RuntimeError, match="cut short"):
        predict(model_file, [rows], output=tmp_path / "out.csv")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["out.csv", "out"])
def test_one_run_at_a_time_writes_an_output(
    tmp_path: Path, rows: Path, model_file: Path, name: str
) -> None:
    (tmp_path / f".{name}.lock").write_text("of a run that was killed")
    predict(model_file, [rows], output=tmp_path / name, options=ONE)
    before = sorted(tmp_path.rglob("*"))
    overwrite = PredictOptions(workers=1, batch_rows=8, overwrite=True)
    link = tmp_path / f"link-{name}"
    link.symlink_to(tmp_path / name)
    with lock_output(tmp_path / name):
        for output, options in ((tmp_path / name, ONE), (tmp_path / name, overwrite), (link, ONE)):
            message = rf"another ferry \(pid {os.getpid()}, since 20.*\) writes .*{name}"
            with pytest.raises(OutputError, match=message):
                predict(model_file, [rows], output=output, options=options)
    link.unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_where_no_lock_can_be_a_run_goes_on_without(
    tmp_path: Path, rows: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".out.csv.lock").mkdir()
    assert predict(model_file, [rows], output=tmp_path / "out.csv").rows == ROWS
    assert "out.csv cannot be locked: Is a directory; let one run" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_not_made(
    tmp_path: Path, rows: Path, model_file: Path
) -> None:
    for name in ("out.csv", "out"):
        with pytest.raises(OutputError, match=r"there is no folder .*new; make it first"):
            predict(model_file, [rows], output=tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_names_that_are_not_utf8(model_file: Path, rows: Path, tmp_path: Path, name: str) -> None:
    model = model_file.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xffmodel.onnx"))
    source = rows.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xffrows.npy"))
    for resumed in (0, ROWS):
        report = predict(model, [source], output=tmp_path / name, options=ONE)
        assert (report.rows, report.resumed_rows) == (ROWS, resumed)
        assert json.loads(dump_json(report).encode())["model"].endswith("\\xffmodel.onnx")


@pytest.mark.parametrize("name", ["out.csv", "more/out", "."])
def test_an_output_is_no_input(tmp_path: Path, model_file: Path, name: str) -> None:
    """It would be one of other inputs when the same command is given again."""
    folder = pictures(tmp_path)
    (folder / "more").mkdir()
    with pytest.raises(OutputError, match=r"would be read as part of the input .*images; write"):
        predict(model_file, [folder], output=folder / name)


def test_an_input_is_not_overwritten(tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    options = PredictOptions(overwrite=True)
    with pytest.raises(OutputError, match=r"would be read as part of the input .*rows\.csv"):
        predict(model_file, [tmp_path / "rows.csv"], output=tmp_path / "rows.csv", options=options)


def pictures(tmp_path: Path, *broken: int) -> Path:
    """A folder of 40 images, of which some cannot be read."""
    for index, pixels in enumerate(images(40)):
        content = b"" if index in broken else encoded(pixels, "PNG")
        write(tmp_path / f"images/{index:02}.png", content)
    return tmp_path / "images"


def test_too_many_errors_stop_a_run_that_a_higher_number_goes_on_with(
    model_file: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path, 5, 15, 25)
    output = tmp_path / "out.csv"
    strict = PredictOptions(workers=1, max_errors=1)
    for first in (r", the first .*05\.png: .*; a higher", "; a higher"):  # nothing is done again
        with pytest.raises(InputError, match=rf"--max-errors is 1{first} one goes on from here"):
            predict(model_file, [folder], output=output, options=strict)
    assert not output.exists()
    with pytest.raises(InputError, match=r"--max-errors is 1, the first .*05\.png: [^;]*$"):
        predict(model_file, [folder], output=None, options=strict)
    report = predict(model_file, [folder], output=output, options=PredictOptions(workers=1))
    assert (report.rows, report.errors) == (37, 3)
    assert len(set(ids(output))) == 37
    listed = (tmp_path / "out.csv.errors.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["id"]).name for line in listed] == ["05.png", "15.png", "25.png"]


def test_a_limit_counts_what_cannot_be_read_too(model_file: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path, 3)
    output = tmp_path / "out.csv"
    report = predict(model_file, [folder], output=output, options=PredictOptions(limit=10))
    assert (report.rows, report.errors) == (9, 1)
    assert [Path(one).stem for one in ids(output)] == [f"{n:02}" for n in range(10) if n != 3]


def test_a_stream_that_was_stopped_at_its_limit_is_complete(
    model_file: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PredictOptions(workers=1, input_format="npy", limit=10)
    take = ShardedOutput.take

    def stopping(self: ShardedOutput, *given: object) -> None:
        take(self, *given)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ShardedOutput, "take", stopping)
        patch.setattr("sys.stdin", as_stdin(rows.read_bytes()))
        report = predict(model_file, ["-"], output=tmp_path / "out.csv", options=options)
    assert report.stopped == "SIGINT"
    monkeypatch.setattr("sys.stdin", as_stdin(rows.read_bytes()))
    report = predict(model_file, ["-"], output=tmp_path / "out.csv", options=options)
    assert (report.rows, report.resumed_rows, report.stopped) == (10, 10, None)


# Signals and kills, of real processes


PROGRAM = [sys.executable, "-m", "serving", "predict", "--workers", "1", "--batch-size", "1"]


def start(model: Path, rows: Path, output: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*PROGRAM, str(model), str(rows), "-o", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Rows that take a second or so, one by one."""
    path = tmp_path / "rows.npy"
    np.save(path, np.resize(images(1000), (60_000, 4, 5, 1)))
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_batch_in_hand(
    model_file: Path, many: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "out.csv"
    process = start(model_file, many, output)
    wait_for(tmp_path / "out.csv.parts" / "_manifest.jsonl", process)
    time.sleep(0.1)
    process.send_signal(number)
    message, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, message
    assert f"stopped by {number.name}; the same command goes on" in message.decode()
    journal = read_journal(tmp_path / "out.csv.parts" / "_manifest.jsonl")
    assert journal is not None
    assert 0 < journal.rows < 60_000
    assert not list((tmp_path / "out.csv.parts").glob(".*"))
    assert start(model_file, many, output).communicate(timeout=120)
    assert output.exists()
    assert ids(output) == [f"{many}:{index}" for index in range(60_000)]


def test_kills_at_any_moment_lose_and_double_nothing(
    model_file: Path, many: Path, tmp_path: Path
) -> None:
    """A few here; `python benchmarks/torture predict_kills` makes 500."""
    output = tmp_path / "out.csv"
    moments = random.Random(1)
    for _ in range(6):
        process = start(model_file, many, output)
        wait_for(tmp_path / "out.csv.parts", process)
        time.sleep(moments.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert start(model_file, many, output).communicate(timeout=120)
    assert output.exists()
    assert ids(output) == [f"{many}:{index}" for index in range(60_000)]
    assert left_over(tmp_path) == ["out.csv", "out.csv.manifest.jsonl"]


def test_outside_the_main_thread_signals_are_left_alone(
    model_file: Path, rows: Path, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)
    done: list[int] = []

    def work() -> None:
        done.append(predict(model_file, [rows], output=tmp_path / "out.csv").rows)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [ROWS]
    assert signal.getsignal(signal.SIGINT) is before
