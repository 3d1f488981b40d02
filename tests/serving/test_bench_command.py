"""The command `ferry bench`, as a person types it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_onnx
from click.testing import CliRunner
from tiny_kinds import TEXTS, text_classifier

from serving.cli import serving
from serving.console import INTERRUPTED
from serving.files import read_record
from serving.measuring.report import BenchReport
from serving.model import open_model

QUICK = ("--batch-size", 2, "--seconds", "0.02", "--rounds", 2, "--threads", 1)
CPU = "CPUExecutionProvider"


@pytest.fixture
def model(tmp_path):
    content = tiny_onnx.linear(["batch", 16], tiny_onnx.UINT8)
    return tiny_onnx.write(tmp_path / "model.onnx", content)


def report_in(text):
    return read_record(BenchReport, json.loads(text), "the report")


def run(*arguments):
    return CliRunner().invoke(serving, ["bench", *map(str, arguments)])


def test_it_prints_a_table(model):
    result = run(model, *QUICK)
    assert result.exit_code == 0, result.output
    header, row = result.stdout.splitlines()[:2]
    assert header.split()[:3] == ["what", "threads", "batch"]
    assert row.split()[:5] == ["model.onnx", "·", "cpu", "1", "2"]
    assert f"nodes on {CPU}, 100 % of the time there" in result.stdout
    assert result.stderr == ""


def test_it_keeps_the_report_and_the_rows_and_prints_json_and_nothing_else(model, tmp_path):
    files = ("-o", tmp_path / "r.json", "--csv", tmp_path / "r.csv")
    result = run(model, *QUICK, *files, "--json")
    assert result.exit_code == 0
    report = report_in(result.stdout)
    assert report.measured[0].row(2)
    assert report_in((tmp_path / "r.json").read_text()) == report
    assert (tmp_path / "r.csv").read_text().splitlines()[1].startswith("model.onnx,cpu,1,1,")


def test_it_takes_settings_and_several_threads(model):
    result = run(model, *QUICK, "--threads", 2, "--set", "binding=on", "--json")
    found = report_in(result.stdout).measured
    assert [(one.settings.threads, one.settings.binding) for one in found] == [(1, True), (2, True)]


def test_it_takes_real_rows(tmp_path):
    model = tiny_onnx.write(tmp_path / "text.onnx", text_classifier())
    (tmp_path / "reviews.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    result = run(model, *QUICK, "--data", tmp_path / "reviews.txt")
    assert "rows of reviews.txt" in result.stdout


def test_it_measures_all_providers_and_says_why_not(model):
    result = run(model, *QUICK, "--provider", "all", "--json")
    report = report_in(result.stdout)
    assert report.measured[0].provider == "cpu"
    assert all(one.skipped for one in report.skipped)


@pytest.mark.parametrize(
    ("option", "number", "message"),
    [
        ("--seconds", "0", "0.0 is not in the range x>0"),
        ("--rate", "0", "0.0 is not in the range x>0"),
        ("--limit", "nan", "nan is not a finite number"),
        ("--call-timeout", "inf", "inf is not a finite number"),
    ],
)
def test_what_a_number_may_be_is_told(model, option, number, message):
    result = run(model, option, number)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: Invalid value for '{option}': {message}.\n")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--provider", "nope"), 2, "no provider named 'nope'"),
        (("--provider", "qnn"), 1, "qnn is not there: the installed onnxruntime"),
        (("--batch-size", "0"), 2, "a batch size must be 1 or more, got 0"),
        (("--set", "bindin=on"), 2, "did you mean 'binding'?"),
        (("--scenario", "sever"), 2, "did you mean 'server'?"),
        (("--rate", "5"), 2, "--rate and --p99-limit are for `--scenario server`"),
        (("--scenario", "offline", "--p99-limit", "5"), 2, "are for `--scenario server`"),
        (("--tune", "--provider", "all"), 2, "--tune is for one provider at a time"),
        (("--compare", "none.json"), 1, "none.json"),
        (("--data", "none.npy"), 1, "none.npy is not there"),
    ],
)
def test_it_tells_mistakes_in_one_line(model, arguments, exit_code, message):
    result = run(model, *arguments)
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_limit_that_cannot_be_met_says_the_best(model):
    server = ("--scenario", "server", "--p99-limit", "0.000001", "--seconds", "0.1")
    result = run(model, *server, "--threads", 1)
    assert result.exit_code == 1
    assert "the best" in result.stderr


def test_scenarios_take_the_place_of_the_sweep(model):
    result = run(model, "--scenario", "single-stream", "--seconds", "0.1", "--json")
    report = report_in(result.stdout)
    assert report.measured == ()
    assert [one.scenario for one in report.scenarios] == ["single-stream"]


def test_it_compares_in_turns_with_another_model(model, tmp_path):
    other = tiny_onnx.write(tmp_path / "v1.onnx", tiny_onnx.linear(["batch", 16], tiny_onnx.UINT8))
    result = run(model, *QUICK, "--compare", other, "--limit", 100)
    assert result.exit_code == 0, result.output
    assert "passed: compared in turns, limit 100" in result.stdout


def test_a_regression_is_exit_status_one(model, tmp_path):
    """A limit that everything breaks stands for a model that is slower."""
    result = run(model, *QUICK, "--compare", model, "--limit", 0.001, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [row["slower"] for row in found["comparison"]["rows"]] == [True]
    assert read_record(BenchReport, found["report"], "it").measured
    assert "times as long as" in result.stderr


def test_it_compares_with_what_it_saved(model, tmp_path):
    saved = tmp_path / "saved.json"
    assert run(model, *QUICK, "-o", saved).exit_code == 0
    result = run(model, *QUICK, "--compare", saved, "--limit", 1000)
    assert result.exit_code == 0, result.output
    assert "compared with saved figures, limit 1000" in result.stdout


def test_interrupted_it_prints_the_finished_rows_and_fails(model):
    """Ctrl-C in a terminal, which reaches all processes, while memory is looked at without end."""
    program = [sys.executable, "-m", "serving"]
    endless = ["--growth-calls", "1000000000"]
    terminal, stderr = os.openpty()
    process = subprocess.Popen(
        [*program, "bench", str(model), "--json", *map(str, QUICK), *endless],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    os.close(stderr)
    message = b""
    while b"memory of model.onnx on cpu" not in message:
        message += os.read(terminal, 1024)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == INTERRUPTED
    report = report_in(out)
    assert report.partial
    assert [row.timing.batch_size for one in report.measured for row in one.rows] == [2]
    assert b"batch 2, round 2 of 2" in message


def test_several_scenarios_run_one_after_the_other(model):
    both = ("--scenario", "offline", "--scenario", "server", "--rate", 50, "--seconds", "0.1")
    report = report_in(run(model, *both, "--json").stdout)
    assert [one.scenario for one in report.scenarios] == ["offline", "server"]
    assert report.scenarios[1].rate_per_second == pytest.approx(50, rel=0.5)


@pytest.fixture
def _one_core(monkeypatch):
    """So that there are few candidates: each costs its time."""
    monkeypatch.setattr("serving.measuring.tuner.allowed_cores", lambda: 1)


@pytest.mark.usefixtures("_one_core")
def test_tuning_within_a_peak_that_nothing_keeps_is_one_line(model):
    result = run(model, "--tune", "--goal", "latency", "--memory-limit", 1)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: no setting keeps the peak under 1 MiB")
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("_one_core")
def test_tuning_a_bundle_keeps_a_profile_that_predict_finds(bundle):
    result = run(bundle, "--tune", "--batch-size", 1, "--batch-size", 4)
    assert result.exit_code == 0, result.output
    assert "over defaults" in result.stdout
    assert "kept in" in result.stderr
    (profile,) = json.loads((bundle / "manifest.json").read_text())["profiles"]
    assert profile["goal"] == "throughput"
    assert open_model(bundle).profile is not None


@pytest.mark.usefixtures("_one_core")
def test_tuning_a_file_prints_and_keeps_nothing(model, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = run(model, "--tune", "--goal", "latency", "--json")
    assert json.loads(result.stdout)["goal"] == "latency"
    assert sorted(tmp_path.iterdir()) == before


def test_its_help_has_an_example():
    assert "Example: ferry bench" in run("--help").stdout
