import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from serving.cli import serving
from serving.machine import doctor
from serving.machine.doctor import Diagnosis, Finding, as_text, diagnose, look_at_store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text("mirrors: []\n")
    return tmp_path


def finding(diagnosis, name):
    return next(finding for finding in diagnosis.findings if finding.name == name)


def install(folder, name, version):
    """Put the metadata of a wheel on a path, as pip would."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_sound_installation_has_no_problem(project):
    diagnosis = diagnose(project)
    assert diagnosis.problems == ()
    assert finding(diagnosis, "provider cpu").detail.startswith("creates a session and runs")
    assert finding(diagnosis, "params.yaml").status == "ok"


def test_everything_that_matters_is_looked_at(project):
    names = [finding.name for finding in diagnose(project).findings]
    expected = ["python", "onnxruntime", "provider cpu", "processor", "cores", "memory", "disk"]
    expected += ["mlflow store", "pipeline extra", "git", "dvc", "params.yaml", "telemetry"]
    assert [name for name in names if name in expected] == expected
    assert len(names) == len(set(names))


def test_whatever_is_not_right_has_a_fix_of_one_line(project, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    for found in diagnose(project / "missing").findings:
        assert "\n" not in found.detail
        assert (found.fix is None) == (found.status == "ok"), found


def test_both_wheels_at_once_are_a_problem(project, monkeypatch):
    site = project / "site"
    install(site, "onnxruntime", "1.31.1")
    install(site, "onnxruntime-gpu", "1.30.0")
    monkeypatch.syspath_prepend(str(site))
    found = finding(diagnose(project), "onnxruntime")
    assert found.status == "problem"
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 are both installed" in found.detail
    assert found.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")


def test_no_wheel_is_a_problem_and_the_rest_is_still_told(project):
    done = without_runtime(project, "raise ModuleNotFoundError('No module named onnxruntime')")
    diagnosis = json.loads(done.stdout)["findings"]
    status = {found["name"]: found["status"] for found in diagnosis}
    assert done.returncode == 1
    assert status["providers"] == "problem"
    assert status["memory"] == "ok"
    assert status["mlflow store"] == "ok"
    assert done.stderr == ""


def test_a_broken_wheel_is_told_with_its_reason(project):
    done = without_runtime(project, "raise ImportError('libfoo.so: cannot open')")
    providers = [f for f in json.loads(done.stdout)["findings"] if f["name"] == "providers"]
    assert "libfoo.so: cannot open" in providers[0]["detail"]
    assert "--force-reinstall" in providers[0]["fix"]


def without_runtime(folder, line):
    """Run the command where `import onnxruntime` does `line`."""
    shadow = folder / "shadow" / "onnxruntime"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text(line + "\n")
    path = os.pathsep.join([str(shadow.parent), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "serving", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_a_cpu_that_runs_no_session_is_a_problem_and_a_missing_card_is_not():
    assert doctor._provider("cpu", "no session").status == "problem"
    assert doctor._provider("tensorrt", "no libraries").status == "ok"
    assert doctor._provider("cuda", None).detail == "creates a session and runs"


def test_a_card_that_onnxruntime_cannot_use_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = "CUDA does not run the model on this machine: no cuDNN; `ferry doctor` says which"
    found = doctor._provider("cuda", reason + " providers do")
    assert found.status == "warning"
    assert found.detail == "no cuDNN"
    assert "cudnn" in found.fix


def test_a_quota_below_the_cores_is_a_warning():
    assert doctor._cores(8, 8, None).status == "ok"
    assert doctor._cores(8, 8, 8.0).status == "ok"
    found = doctor._cores(8, 1, 1.5)
    assert found.status == "warning"
    assert "quota is 1.5" in found.detail


def test_little_disk_space_is_a_warning_and_none_a_problem(tmp_path, monkeypatch):
    class Usage:
        free = 2 * doctor.GIB

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage)
    assert doctor._disk(tmp_path).status == "warning"
    Usage.free = 1000
    assert doctor._disk(tmp_path).status == "problem"
    Usage.free = 100 * doctor.GIB
    assert doctor._disk(tmp_path).status == "ok"


def test_a_folder_that_is_not_there_is_a_problem(tmp_path):
    found = doctor._disk(tmp_path / "missing")
    assert (found.status, found.fix) == ("problem", f"mkdir -p {tmp_path / 'missing'}")


def test_a_device_that_only_runs_models_is_not_warned_of_what_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor._extra(tmp_path).status == "ok"
    assert doctor._params(tmp_path).status == "ok"
    assert doctor._tool("git", tmp_path).status == "ok"
    (tmp_path / "params.yaml").write_text("")
    extra = doctor._extra(tmp_path)
    assert extra.status == "warning"
    assert "torch" in extra.detail
    assert extra.fix == "pip install 'onnx-ferry[pipeline]'"
    assert doctor._tool("git", tmp_path).status == "warning"


def test_a_program_beside_the_running_python_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(doctor.sys, "executable", str(tmp_path / "python"))
    (tmp_path / "dvc").write_text("")
    assert doctor._tool("dvc", tmp_path).detail == str(tmp_path / "dvc")


def test_telemetry_that_was_asked_for_is_told(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert doctor._telemetry().status == "warning"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    assert doctor._telemetry().status == "ok"


def test_the_store_of_a_fresh_folder_will_be_made(tmp_path):
    state = look_at_store(tmp_path, None)
    assert state.fix is None
    assert "mlflow.db will be made" in state.detail


def test_a_database_is_known_by_its_first_bytes(tmp_path):
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table runs (id text)")
    database.close()
    assert look_at_store(tmp_path, None).detail.endswith("writable")
    (tmp_path / "mlflow.db").write_bytes(b"something else entirely")
    state = look_at_store(tmp_path, None)
    assert "is not an SQLite database" in state.detail
    assert state.fix.startswith("mv ")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///runs.db", "{folder}/runs.db"),
        ("sqlite:///{folder}/a%20b.db", "{folder}/a b.db"),
    ],
)
def test_an_address_of_a_database_is_read_as_sqlalchemy_does(tmp_path, uri, path):
    state = look_at_store(tmp_path, uri.format(folder=tmp_path))
    assert path.format(folder=tmp_path) in state.detail


def test_a_store_in_a_folder(tmp_path):
    assert look_at_store(tmp_path, "mlruns").fix is None
    assert look_at_store(tmp_path, f"file://{tmp_path}/mlruns").fix is None
    assert look_at_store(tmp_path, f"file://{tmp_path}/no/such/mlruns").fix


def test_a_server_that_answers_and_one_that_does_not(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        state = look_at_store(tmp_path, f"http://127.0.0.1:{port}")
        assert (state.detail, state.fix) == (f"127.0.0.1:{port} answers", None)
    state = look_at_store(tmp_path, f"http://127.0.0.1:{port}")
    assert "does not answer" in state.detail
    assert "unset MLFLOW_TRACKING_URI" in state.fix


@pytest.mark.parametrize("uri", ["http://", "http://host:port", "https://u:secret@:99999"])
def test_an_address_that_is_none_is_told(tmp_path, uri):
    state = look_at_store(tmp_path, uri)
    assert state.fix
    assert "secret" not in state.detail


def test_a_password_in_the_address_is_never_told(tmp_path):
    for uri in ("http://me:secret@127.0.0.1:1", "postgresql+psycopg2://me:secret@127.0.0.1:1/x"):
        assert "secret" not in look_at_store(tmp_path, uri).detail
    assert look_at_store(tmp_path, "databricks://me:secret@x").detail.startswith("kept by databri")


def test_fixes_are_told_below_their_findings():
    sound = Finding(name="memory", status="ok", detail="enough")
    broken = Finding(name="disk", status="problem", detail="full", fix="empty it")
    diagnosis = Diagnosis(findings=(sound, broken))
    lines = as_text(diagnosis).splitlines()
    assert lines[0] == "ok       memory  enough"
    assert lines[1] == "problem  disk    full"
    assert lines[2].strip() == "→ empty it"
    assert diagnosis.problems == (broken,)


def test_the_command_prints_findings_and_its_status_tells_problems(project, monkeypatch):
    monkeypatch.chdir(project)
    result = CliRunner().invoke(serving, ["doctor", "--json"])
    assert result.exit_code == 0
    assert {"name", "status", "detail", "fix"} == set(json.loads(result.stdout)["findings"][0])
    install(project / "site", "onnxruntime", "1")
    install(project / "site", "onnxruntime-gpu", "1")
    monkeypatch.syspath_prepend(str(project / "site"))
    result = CliRunner().invoke(serving, ["doctor"])
    assert result.exit_code == 1
    assert "→ pip uninstall" in result.stdout


def test_mlflow_torch_and_dvc_are_found_without_importing_them(project):
    program = (
        "import sys; from pathlib import Path; from serving.machine.doctor import diagnose; "
        "diagnose(Path()); print([m for m in ('mlflow', 'torch', 'dvc') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("lacking", [True, False])
def test_what_int8_may_need_of_the_processor(
    lacking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.runtime.kernels.overflows", lambda: lacking)
    (cpu,) = [one for one in diagnose(Path()).findings if one.name == "provider cpu"]
    assert cpu.status == "ok"
    assert ("what needs vnni is refused" in cpu.detail) == lacking
