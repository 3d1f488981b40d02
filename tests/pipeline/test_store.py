"""MLflow's store: made whole by one of many, mended, set aside, and found where a project went."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from project import REPOSITORY

from pipeline.tracking import run_of_predictions
from pipeline.tracking import store as stores
from pipeline.tracking.sending import states
from pipeline.tracking.store import (
    load_mlflow,
    open_store,
    prepare,
    store_key,
    store_root,
    store_uri,
)
from serving.errors import OutputError

PREPARE = "from pipeline.tracking.store import prepare; prepare()"
HALF_MADE = """
CREATE TABLE experiments (experiment_id INTEGER NOT NULL, name VARCHAR(256) NOT NULL);
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    """Another process that prepares the store of a folder."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )


def record(folder: Path) -> str:
    """A run with an artifact in the store of the folder, which is the working directory."""
    mlflow = open_store()
    (folder / "note.txt").write_text("found")
    experiment = mlflow.create_experiment("tiny", artifact_location=stores.artifact_root())
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_artifact(folder / "note.txt")
    identifier: str = run.info.run_id
    return identifier


def artifact(run_id: str) -> str:
    """What the run's artifact says."""
    mlflow = open_store()
    return Path(
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="note.txt")
    ).read_text()


def names() -> list[str]:
    return [one.name for one in load_mlflow().MlflowClient(store_uri()).search_experiments()]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").touch()
    return tmp_path


@pytest.mark.slow
def test_two_first_trainings_find_one_whole_store(nowhere: Path) -> None:
    processes = [start(nowhere) for _ in range(2)]
    assert [(one.communicate()[1], one.returncode) for one in processes] == [("", 0)] * 2
    assert names() == ["Default"]
    assert sorted(path.name for path in nowhere.iterdir()) == ["mlflow.db", "params.yaml"]


@pytest.mark.slow
def test_a_kill_leaves_a_whole_store_or_none(nowhere: Path) -> None:
    for after in (1.5, 2.0, 2.5):
        process = start(nowhere)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    prepare()
    assert names() == ["Default"]


def test_a_store_elsewhere_is_made_and_not_mended(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{nowhere}/below/runs.db")
    prepare()
    assert names() == ["Default"]
    (nowhere / "below" / "runs.db").write_bytes(b"somebody's own")
    prepare()
    assert (nowhere / "below" / "runs.db").read_bytes() == b"somebody's own"


def test_an_empty_store_is_made_anew(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    (nowhere / "mlflow.db").touch()
    prepare()
    assert caplog.messages == [f"{nowhere}/mlflow.db was empty; it is made anew"]
    assert names() == ["Default"]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200_000])


def scratched(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:100_000] + b"\xa5" * 50_000 + content[150_000:])


def other(path: Path) -> None:
    path.write_bytes(b"no database" * 100)


def half_made(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.executescript(HALF_MADE)


def lacking(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE latest_metrics")


@pytest.mark.parametrize("harm", [torn, scratched, other, half_made, lacking])
def test_a_broken_store_is_set_aside(
    harm: object, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(harm)
    harm(store / "mlflow.db")
    before = (store / "mlflow.db").read_bytes()
    (store / "mlflow.db-journal").write_bytes(b"of the broken one")
    prepare()
    (kept,) = store.glob("mlflow.db.broken-*[0-9]")
    assert kept.read_bytes() == before
    assert not (store / "mlflow.db-journal").exists()
    (line,) = caplog.messages
    assert line.startswith(f"{store}/mlflow.db is broken: ")
    assert line.endswith(f"; it is kept as {kept.name}, runs begin anew")
    assert names() == ["Default"]


def test_what_a_lost_store_had_is_sent_again(store: Path) -> None:
    with run_of_predictions("tiny") as tracker:
        tracker.log_metrics({"rows": 1.0})
    assert [one.sent for one in states()] == [3]
    (store / "mlflow.db").unlink()
    prepare()
    assert [one.sent for one in states()] == [0]


def test_the_store_of_a_newer_mlflow_is_set_aside(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffff00001111'")
    prepare()
    (line,) = caplog.messages
    assert (
        "was written by a newer MLflow, of schema ffff00001111; it is kept as mlflow.db.new" in line
    )
    assert names() == ["Default"]


def older(path: Path, revision: str) -> None:
    """A store as an older MLflow left it, with an experiment."""
    import sqlalchemy
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "INSERT INTO experiments (name, artifact_location, lifecycle_stage)"
            " VALUES ('kept', '/elsewhere/0', 'active')"
        )


def test_an_older_store_is_upgraded_and_kept(
    nowhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older(nowhere / "mlflow.db", "400f98739977")
    before = (nowhere / "mlflow.db").read_bytes()
    prepare()
    (line,) = caplog.messages
    assert line.endswith("has MLflow's new schema; the old one is kept as mlflow.db.400f98739977")
    assert (nowhere / "mlflow.db.400f98739977").read_bytes() == before
    assert "kept" in names()


def test_an_older_store_that_cannot_be_upgraded_is_set_aside(
    nowhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older(nowhere / "mlflow.db", "400f98739977")
    with closing(sqlite3.connect(nowhere / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE webhooks (id)")  # as of a migration that was killed
    prepare()
    (line,) = caplog.messages
    assert "is broken: MLflow cannot upgrade it: " in line
    assert names() == ["Default"]


def test_a_locked_store_is_told_and_kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "SECONDS_OF_A_WRITE", 0.1)
    before = (store / "mlflow.db").read_bytes()
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutputError, match=r"mlflow\.db cannot be used: database is locked"):
            prepare()
    assert (store / "mlflow.db").read_bytes() == before


def test_a_store_that_cannot_be_opened_is_told(nowhere: Path) -> None:
    (nowhere / "mlflow.db").mkdir()
    with pytest.raises(OutputError, match=r"cannot be used: unable to open database file"):
        prepare()
    assert (nowhere / "mlflow.db").is_dir()


def test_no_room_for_a_store_is_told(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
    with pytest.raises(OutputError, match=r"/proc/none/mlflow\.db cannot be used: .*No such file"):
        prepare()


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_project_that_went_elsewhere_takes_its_artifacts_along(
    way: str, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = store / "old place", store / "new_place"
    old.mkdir()
    (store / "mlflow.db").rename(old / "mlflow.db")
    (old / "params.yaml").touch()
    monkeypatch.chdir(old)
    run_id = record(old)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow itself sets it
    key = store_key()
    with closing(sqlite3.connect(old / "mlflow.db")) as database, database:
        elsewhere = [("far", "s3://bucket/old place/mlruns"), ("near", "file:///data/runs")]
        add = "INSERT INTO experiments (name, artifact_location) VALUES (?, ?)"
        database.executemany(add, elsewhere)
    (shutil.move if way == "moved" else shutil.copytree)(old, new)
    monkeypatch.chdir(new)
    assert store_key() == key, "nothing is sent again"
    before = sorted(store.glob("old*/**/*"))
    assert artifact(run_id) == "found"
    assert caplog.messages == [
        f"the project was moved or copied: artifacts of {old}/mlruns are now in {new}/mlruns"
    ]
    prepare()
    assert len(caplog.messages) == 1, "it is mended once"
    mlflow = load_mlflow()
    experiment = mlflow.get_run(run_id).info.experiment_id
    with mlflow.start_run(experiment_id=experiment):
        mlflow.log_text("new", "more.txt")
    assert sorted(store.glob("old*/**/*")) == before, "the old place is left alone"
    with closing(sqlite3.connect(new / "mlflow.db")) as database:
        found = database.execute("SELECT name, artifact_location FROM experiments").fetchall()
    assert set(elsewhere) < set(found)


@pytest.mark.parametrize("below", [".", "models/here"])
def test_an_experiment_that_dvc_queued_belongs_to_the_project(
    below: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nowhere / "params.yaml").unlink()
    copy = nowhere / ".dvc/tmp/exps/standalone/tmp12ab"
    (copy / ".dvc").mkdir(parents=True)
    (copy / below).mkdir(parents=True, exist_ok=True)
    (copy / below / "params.yaml").touch()
    monkeypatch.chdir(copy / below)
    assert store_root() == (nowhere / below).resolve()
    assert store_uri() == f"sqlite:///{(nowhere / below).resolve()}/mlflow.db"


def test_a_project_of_any_name_has_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    keys = set()
    for name in ("plain", "7% of it", "what?"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "params.yaml").touch()
        monkeypatch.chdir(tmp_path / name)
        keys.add(store_key())
    assert len(keys) == 1
