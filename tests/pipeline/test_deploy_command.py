"""`ferry deploy` and `ferry devices` as a person meets them, and what a project keeps of them."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from toy_registry import make_bundle, make_data

from pipeline import tracking
from pipeline.cli import ferry
from pipeline.config import layout
from pipeline.project.devices import DEPLOYMENTS, deployed_here
from pipeline.records.places import read_places
from pipeline.tracking import Tracker
from serving.bundles.bundle import read_manifest

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    root = tmp_path_factory.mktemp("project")
    make_data(root)
    return make_bundle(root, "toy")


@pytest.fixture
def project(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the bundle, in which the test stands."""
    shutil.copytree(built, tmp_path / "project" / "bundles" / "toy")
    (tmp_path / "project" / "params.yaml").write_text("")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def invoke(*words: str) -> Result:
    return CliRunner().invoke(ferry, [*words, "--python", sys.executable], prog_name="ferry")


def test_a_deployment_is_told_and_kept(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the project too, with a path from there."""
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    done = invoke("deploy", "toy", "../../device", "--no-track", "--json")
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)["devices"]
    assert report["outcome"] == "deployed"
    assert done.stderr.splitlines()[0] == "localhost: connecting"
    assert report["state"]["digest"] == read_manifest(tmp_path / "device" / "current").digest
    (kept,) = deployed_here(project)
    assert (kept.target, kept.seconds) == (str(tmp_path / "device"), report["seconds"])
    (file,) = (project / DEPLOYMENTS).iterdir()
    assert file.name.startswith(f"localhost{str(tmp_path).replace('/', '_')}_device.")
    (place,) = read_places(project / layout.DEVICES)
    (shown,) = place.reports
    assert (place.experiment, shown.place, shown.diff_of) == ("toy", "localhost", "golden rows")
    assert (shown.sha256, shown.equal) == (report["state"]["model_sha256"], shown.rows)
    monkeypatch.chdir(project)
    asked = invoke("devices")
    assert asked.exit_code == 0
    header, line = asked.stdout.splitlines()
    assert header.split()[:3] == ["device", "model", "digest"]
    assert line.endswith("  serves")


def test_places_whose_names_are_alike_are_both_kept(project: Path, tmp_path: Path) -> None:
    targets = [str(tmp_path / "a" / "b"), str(tmp_path / "a_b")]
    done = invoke("deploy", "toy", *targets, "--no-track")
    assert done.exit_code == 0, done.output
    assert {one.target for one in deployed_here(project)} == set(targets)


def test_devices_that_fail_are_told_and_the_others_served(project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (project / "fleet.txt").write_text(f"# two\n{tmp_path}/file\n{tmp_path}/good\n")
    done = invoke("deploy", "toy", "--hosts", "fleet.txt", "--no-track")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"Error: {tmp_path}/file: ")
    rows = done.stdout.splitlines()
    assert [row.split("  ")[0] for row in rows] == [
        "device",
        f"{tmp_path}/file",
        f"{tmp_path}/good",
    ]
    assert rows[2].endswith("deployed")
    assert len(deployed_here(project)) == 1
    asked = invoke("devices", "--hosts", "fleet.txt")
    assert asked.exit_code == 1
    assert (
        asked.stderr
        == f"Error: {tmp_path}/file: {tmp_path}/file is a file; a deployment is a folder\n"
    )
    back = invoke("deploy", "--rollback", f"{tmp_path}/good", "--no-track")
    assert (back.exit_code, "there is no version before" in back.stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["deploy"], "say which BUNDLE goes where"),
        (["deploy", "toy"], "say where it goes: user@host:/opt/model"),
        (["deploy", "--rollback"], "say where it goes"),
        (["deploy", "toy", "ssh://pi@x/m"], "a port into ~/.ssh/config"),
        (["deploy", "toy", "/a", "/a"], "/a is named twice"),
        (["deploy", "toy", "/a", "--python", "-x"], "--python must be a program"),
        (["devices"], "say which"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(project: Path, words: list[str], told: str) -> None:
    done = CliRunner().invoke(ferry, words, prog_name="ferry")
    assert done.exit_code == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_a_bundle_that_was_altered_goes_nowhere(project: Path, tmp_path: Path) -> None:
    (project / "bundles/toy/labels.txt").write_text("other\n")
    done = invoke("deploy", "toy", str(tmp_path / "device"))
    assert (done.exit_code, "labels.txt has" in done.stderr) == (1, True)
    assert "none is not there" in invoke("deploy", "none", str(tmp_path / "device")).stderr
    assert not (tmp_path / "device").exists()


def test_the_run_of_the_model_gets_the_figures(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a store that fails stops nothing."""
    logged: dict[str, Any] = {}
    monkeypatch.setattr("pipeline.project.devices.FOREIGN", "none")
    monkeypatch.setattr(tracking.Tracker, "log_metrics", lambda _, given: logged.update(given))
    monkeypatch.setattr(tracking.Tracker, "log_tags", lambda _, given: logged.update(given))
    runs = []

    class Run(Tracker):
        def __enter__(self) -> Tracker:
            return Tracker(None)

        def __exit__(self, *_: object) -> None: ...

    def run(name: str, sha256: str, *, track: bool) -> Run:
        runs.append((name, sha256, track))
        if len(runs) > 1:
            raise OSError(28, "No space left on device")
        return Run(None)

    monkeypatch.setattr(tracking, "run_of_weights", run)
    assert invoke("deploy", "toy", str(tmp_path / "device")).exit_code == 0
    manifest = read_manifest(project / "bundles/toy")
    assert runs == [("toy", manifest.source.weights_sha256, True)]
    assert logged["ferry.devices/localhost/digest"] == manifest.digest
    assert logged["devices/localhost/selftest"] < 1e-4
    done = invoke("deploy", "toy", str(tmp_path / "other"))
    assert done.exit_code == 0
    assert "Not all of this was recorded: [Errno 28] No space left" in done.stderr
