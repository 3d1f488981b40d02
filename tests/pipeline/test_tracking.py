"""MLflow: what a run holds, how later stages find it, and that a journal outlives its absence."""

import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from project import Project, files_in

from pipeline import tracking
from pipeline.cli import ferry
from pipeline.records import read, ready
from pipeline.records.train import TrainReport
from pipeline.stages.export import export
from pipeline.stages.parity import parity
from pipeline.stages.train import train
from pipeline.tracking import journal, sending
from pipeline.tracking.sending import Sender
from pipeline.tracking.store import load_mlflow, store_root, store_uri
from pipeline.training.loop import TrainingLoop
from serving.batch.lock import lock_output
from serving.errors import IntegrityError
from serving.files import sha256_of_file


def tracked_training(project: Project, folder: Path) -> TrainReport:
    return train(
        project.data,
        folder / "model.safetensors",
        files_in(folder, "train"),
        folder / "plots",
        experiment=project.experiment,
        device="cpu",
        track=True,
    )


def runs(experiment: str = "digits-cnn") -> list[Any]:
    """Those in the store, the newest first."""
    client = MlflowClient(store_uri())
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def only_run() -> Any:
    (run,) = runs()
    return run


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, store: Path) -> Path:
    """The store, and a process of its own that sends to it, with time enough."""
    for module in (tracking, sending):
        monkeypatch.setattr(module, "Sender", Sender)
    monkeypatch.setattr(tracking, "MAX_WAIT_SECONDS", 90.0)
    return store


# What a run holds


@pytest.mark.slow
def test_a_run_holds_a_training_and_what_later_stages_add(exported: Project, store: Path) -> None:
    report = tracked_training(exported, store)
    client = MlflowClient(store_uri())
    run = only_run()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"digits-cnn · {report.reached} · {report.weights_sha256[:6]}"
    assert run.data.tags["ferry.run"] == report.run_id
    assert run.data.params["train.lr"] == str(exported.experiment.train.lr)
    assert run.data.params["model.name"] == "cnn"
    assert run.data.metrics["accuracy"] == pytest.approx(report.accuracy, abs=1e-6)
    losses = [point.value for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses == [epoch.loss for epoch in report.history]
    # MLflow shows metrics in the order in which they came.
    assert [*run.data.metrics][:2] == ["train/validation_accuracy", "train/validation_loss"]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "digits (train)"
    assert json.loads(data.dataset.source)["tags"]["data_sha256"] == report.data_sha256
    assert run.data.tags["ferry.weights_sha256"] == report.weights_sha256
    assert run.data.tags["mlflow.source.name"] == "ferry train digits-cnn"
    kept = [entry.path for entry in client.list_artifacts(run.info.run_id, "figures")]
    assert kept == ["figures/confusion_matrix.png", "figures/learning_curve.png"]
    # The folder of params.yaml holds everything, and its path is absolute.
    assert run.info.artifact_uri.startswith((store / "mlruns").as_uri())
    assert report.tracking_seconds > 0
    export(
        store / "model.safetensors",
        store / "train.json",
        exported.data,
        store / "model.onnx",
        files_in(store, "export"),
        experiment=exported.experiment,
    )
    parity(
        store / "model.safetensors",
        {"fp32": store / "model.onnx"},
        exported.data,
        files_in(store, "parity"),
        experiment=exported.experiment,
    )
    later = only_run()
    # What later stages add does not make the training longer.
    assert (later.info.run_id, later.info.end_time) == (run.info.run_id, run.info.end_time)
    assert later.data.tags["ferry.parity"] == "passed"
    assert later.data.metrics["variants/fp32/flips"] == 0
    assert len(later.data.metrics) <= 40
    pickles = [path for path in (store / "mlruns").rglob("*") if path.suffix in {".pkl", ".pth"}]
    assert pickles == []


def test_weights_that_no_run_trained_get_a_restored_run_once(store: Path) -> None:
    for _ in range(2):
        with tracking.run_of_weights("digits-cnn", "ab" * 32, track=True) as tracker:
            tracker.log_metrics({"x": 1.0})
    run = only_run()
    assert run.data.tags["ferry.restored"] == "true"
    assert run.info.run_name == "digits-cnn · restored"
    assert run.info.status == "FINISHED"


def test_a_run_that_only_the_server_knows_is_gone_on_with(store: Path) -> None:
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        tracker.log_tags({journal.WEIGHTS_TAG: "ab" * 32})
    shutil.rmtree(store / "tracking")
    with tracking.run_of_weights("digits-cnn", "ab" * 32, track=True) as tracker:
        tracker.log_metrics({"x": 1.0})
    run = only_run()
    assert run.data.metrics == {"x": 1.0}
    assert "ferry.restored" not in run.data.tags


def test_a_stopped_run_is_marked_and_gone_on_with(store: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        tracking.run_of_training("digits-cnn", None, track=True) as tracker,
    ):
        raise KeyboardInterrupt
    assert only_run().info.status == "KILLED"
    with tracking.run_of_training("digits-cnn", tracker.run_id, track=True) as again:
        assert again.run_id == tracker.run_id
    assert only_run().info.status == "FINISHED"


def test_trials_are_runs_inside_of_a_run_once(store: Path, trained: Project) -> None:
    history = read(TrainReport, trained.details("train"), "ferry train").history
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        tracker.log_trial("trial 0", {"train.lr": 0.1}, history, "complete")
    _forget(store)
    sending.sync(print)
    parent, trial = sorted(runs(), key=lambda run: "ferry.trial" in run.data.tags)
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert trial.data.params == {"train.lr": "0.1"}
    assert trial.data.metrics["train/loss"] == history[-1].loss


# The journal


def _forget(store: Path) -> None:
    """Lose what is known of what was sent, as a kill just before that is noted."""
    for path in store.glob("tracking/*/sent.json"):
        path.unlink()


def test_what_is_sent_twice_is_there_once(store: Path, exported: Project) -> None:
    signature = tracking_signature(exported)
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        tracker.log_parameters({"a": 1})
        tracker.log_metrics({"x": 1.0, "y": float("inf")})
        tracker.log_artifact(b"{}", "reports/x.json")
        model = exported.models["fp32"]
        sha256, rows = sha256_of_file(model), np.zeros((2, 8, 8, 1), np.uint8)
        tracker.log_model("fp32", model, sha256, rows, signature)
        tracker.log_metrics({"variants/fp32/p50_ms": 0.1}, of_model="fp32")
        # From here on the metrics of its models are of these rows.
        manifest = ready.open_manifest(exported.data)
        tracker.log_data(manifest, "test", "evaluation")
    before = only_run()
    _forget(store)
    sending.sync(print)
    (state,) = sending.states()
    assert (state.problem, state.refused) == ("", ())
    after = only_run()
    assert after.data.to_dictionary() == before.data.to_dictionary()
    client = MlflowClient(store_uri())
    assert len(client.get_metric_history(after.info.run_id, "x")) == 1
    (model,) = client.search_logged_models([after.info.experiment_id])
    assert [one.key for one in model.metrics] == ["variants/fp32/p50_ms"]


def tracking_signature(project: Project) -> tracking.Signature:
    from serving.runtime.session import open_session

    session = open_session(project.models["fp32"], threads=1)
    return session.inputs, session.outputs


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db"])
def test_without_a_store_the_training_is_complete_and_is_sent_later(
    trained: Project,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    uri: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        report = tracked_training(trained, store)
    plain = read(TrainReport, trained.details("train"), "ferry train")
    assert report.weights_sha256 == plain.weights_sha256
    assert read(TrainReport, store / "train.json", "ferry train").accuracy == plain.accuracy
    (warning,) = warnings(caplog)
    assert warning.startswith("MLflow does not have all of this run yet: ")
    assert f"is kept in {store / 'tracking' / (report.run_id or '')}" in warning
    assert "\n" not in warning
    result = CliRunner().invoke(ferry, ["track", "--sync"])
    assert result.exit_code == 1
    assert "1 of 1 runs are not sent: " in result.stderr
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (state,) = json.loads(CliRunner().invoke(ferry, ["track", "--json"]).stdout)
    assert state["sent"] == 0
    result = CliRunner().invoke(ferry, ["track", "--sync"])
    assert result.exit_code == 0, result.output
    run = only_run()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == pytest.approx(plain.accuracy, abs=1e-6)
    assert run.info.end_time - run.info.start_time < 1000 * (report.seconds + 10)


def test_what_the_server_refuses_is_told_and_the_rest_is_sent(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, logger="pipeline"),
        tracking.run_of_training("digits-cnn", None, track=True) as tracker,
    ):
        tracker.log_metrics({"no=name": 1.0})
        tracker.log_metrics({"kept": 3.0})
    (warning,) = warnings(caplog)
    assert warning.startswith("MLflow does not take all of this run: metrics: ")
    assert only_run().data.metrics == {"kept": 3.0}
    assert sending.states()[0].sent == sending.states()[0].records


def test_a_line_that_was_cut_short_is_no_record(store: Path) -> None:
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        pass
    run = journal.of_run(store_root(), tracker.run_id or "")
    whole = run.entries()
    with run.path.open("ab") as file:
        file.write(b'{"entry": {"tags"')
    assert run.entries() == whole
    run.append(journal.Tags(tags={"a": "b"}))
    assert run.entries() == [*whole, journal.Tags(tags={"a": "b"})]


def test_a_line_that_cannot_be_read_is_told_and_the_rest_is_sent(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, logger="pipeline"),
        tracking.run_of_training("digits-cnn", None, track=True) as tracker,
    ):
        tracker.log_tags({"a": "b"})
        path = store / "tracking" / (tracker.run_id or "") / "records.jsonl"
        path.write_text(path.read_text().replace("tags", "tugs"))
        tracker.log_tags({"c": "d"})
    (warning,) = warnings(caplog)
    assert "records.jsonl:2" in warning
    with pytest.raises(IntegrityError, match=r"records\.jsonl:2"):
        journal.of_run(store_root(), tracker.run_id or "").entries()
    run = only_run()
    assert (run.info.status, run.data.tags["c"]) == ("FINISHED", "d")


def test_a_run_that_nobody_knows_the_beginning_of_stops_no_other(store: Path) -> None:
    broken = journal.of_run(store_root(), "0" * 32)
    broken.append(journal.Tags(tags={"a": "b"}))
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        tracker.log_tags({"a": "b"})
    (left,) = sending.sync(print)
    assert left.run == broken.run_id
    assert "does not say how the run began" in left.problem
    assert only_run().data.tags["ferry.run"] == tracker.run_id


def test_a_run_that_another_process_sends_is_left_to_it(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        pass
    run = journal.of_run(store_root(), tracker.run_id or "")
    run.append(journal.Tags(tags={"a": "b"}))
    monkeypatch.setattr(sending, "SECONDS_TO_WAIT", 0.0)
    with lock_output(store / run.folder / journal.SENT):
        assert not sending.send(run)
    assert "sent.json" in warnings(caplog)[-1]
    assert "a" not in only_run().data.tags
    assert sending.send(run)
    assert only_run().data.tags["a"] == "b"


def test_a_run_that_was_deleted_in_mlflow_is_told_and_stops_no_other(store: Path) -> None:
    with tracking.run_of_training("digits-cnn", None, track=True) as gone:
        pass
    client, run = MlflowClient(store_uri()), only_run()
    client.delete_run(run.info.run_id)
    with tracking.run_of_training("digits-cnn", gone.run_id, track=True):
        pass
    with tracking.run_of_training("digits-cnn", None, track=True) as other:
        pass
    assert only_run().data.tags["ferry.run"] == other.run_id
    (left,) = sending.sync(print)
    assert left.problem.startswith(f"run {run.info.run_id} was deleted in MLflow; restore it")
    client.restore_run(run.info.run_id)
    assert sending.sync(print) == []
    assert len(runs()) == 2


def test_an_experiment_that_was_deleted_in_mlflow_is_told(store: Path) -> None:
    with tracking.run_of_training("digits-cnn", None, track=True):
        pass
    client = MlflowClient(store_uri())
    experiment = client.get_experiment_by_name("digits-cnn").experiment_id
    client.delete_experiment(experiment)
    with tracking.run_of_training("digits-cnn", None, track=True):
        pass
    with tracking.run_of_training("other", None, track=True):
        pass
    assert len(runs("other")) == 1
    (left,) = sending.sync(print)
    assert "must be in the 'active' state" in left.problem
    client.restore_experiment(experiment)
    assert sending.sync(print) == []
    assert len(runs()) == 2


def test_a_new_store_is_filled_from_the_journals(store: Path, empty_store: Path) -> None:
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        tracker.log_metrics({"x": 1.0})
    shutil.copy(empty_store, store)
    assert sending.sync(print) == []
    assert only_run().data.tags["ferry.run"] == tracker.run_id
    assert only_run().data.metrics == {"x": 1.0}


def test_a_run_that_was_made_twice_is_there_once_in_the_end(store: Path) -> None:
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        pass
    client, run = MlflowClient(store_uri()), only_run()
    client.create_run(run.info.experiment_id, tags={"ferry.run": tracker.run_id})
    with tracking.run_of_training("digits-cnn", tracker.run_id, track=True):
        pass
    assert only_run().info.run_id == run.info.run_id


def test_an_artifact_is_sent_again_that_mlflow_has_not_all_of(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_client: MlflowClient, _run: str, _file: str, _above: str | None) -> None:
        """What a server answers to that stands between, and wants a password."""

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", half)
        with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
            tracker.log_artifact(b"{}", "reports/x.json")
    (state,) = sending.states()
    assert state.problem == "MLflow does not have all of reports/x.json"
    assert sending.sync(print) == []
    (kept,) = store.rglob("reports/x.json")
    assert kept.read_bytes() == b"{}"
    assert tracker.run_id


@pytest.mark.parametrize("fault", ["is gone", "has rotted: it is not what was kept"])
def test_an_artifact_that_is_gone_or_rotted_is_told_and_the_rest_is_sent(
    store: Path, fault: str
) -> None:
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        tracker.log_artifact(b"{}", "reports/x.json")
        (kept,) = (store / "tracking" / (tracker.run_id or "") / "files").iterdir()
        if fault == "is gone":
            kept.unlink()
        else:
            kept.write_bytes(b"{]")
    (state,) = sending.states()
    assert (state.sent, state.refused) == (state.records, (f"artifact: {kept} {fault}",))
    assert only_run().info.status == "FINISHED"


def test_an_exported_program_is_kept_by_the_name_of_its_weights(tmp_path: Path) -> None:
    program = tmp_path / f"program{journal.PT2}"
    program.write_bytes(b"bytes that differ with each export")
    run = journal.RunJournal(tmp_path / "run")
    kept = run.kept(run.keep_file(program, "ab" * 32))
    assert kept.read_bytes() == program.read_bytes()


def test_epochs_that_a_killed_training_repeats_are_recorded_once(
    store: Path, trained: Project
) -> None:
    history = read(TrainReport, trained.details("train"), "ferry train").history
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        tracker.log_epochs(history[:1])
    with tracking.run_of_training("digits-cnn", tracker.run_id, track=True) as again:
        again.log_epochs(history)
    found = MlflowClient(store_uri()).get_metric_history(only_run().info.run_id, "train/loss")
    assert [point.step for point in found] == [epoch.epoch for epoch in history]


def test_a_training_that_was_killed_at_its_end_records_what_it_reached_once(store: Path) -> None:
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        tracker.log_metrics({"accuracy": 0.5})
    with tracking.run_of_training("digits-cnn", tracker.run_id, track=True) as again:
        again.log_metrics({"accuracy": 0.5})
    (point,) = MlflowClient(store_uri()).get_metric_history(only_run().info.run_id, "accuracy")
    assert point.value == 0.5


@pytest.mark.slow
def test_a_training_that_is_killed_in_its_first_epoch_goes_on_with_its_run(
    trained: Project, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "run_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            tracked_training(trained, store)
    report = tracked_training(trained, store)
    plain = read(TrainReport, trained.details("train"), "ferry train")
    assert report.weights_sha256 == plain.weights_sha256
    assert only_run().data.tags["ferry.run"] == report.run_id


def test_a_project_may_lie_in_a_folder_of_any_name(
    store: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store / "100%25 für? a#b %s"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    monkeypatch.chdir(folder)
    with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
        tracker.log_artifact(b"{}", "reports/x.json")
    assert only_run().info.status == "FINISHED"
    assert [path.read_bytes() for path in folder.glob("mlruns/*/artifacts/reports/*")] == [b"{}"]


def test_a_journal_says_what_it_holds_beyond_its_epochs(store: Path) -> None:
    run = journal.of_run(store_root(), journal.new_run_id())
    run.append(journal.Tags(tags={"a": "b"}))
    line = journal.Metrics(points=journal.points({"train/loss": 0.5}, 1, 1), of_model=None)
    for _ in range(3):
        assert not run.says(line)
        run.append(line)
    assert run.says(journal.Tags(tags={"a": "b"}))
    assert run.last_epoch() == 1
    run.append(journal.Tags(tags={"a": "c"}))
    assert not run.says(journal.Tags(tags={"a": "b"}))


def test_two_stages_that_add_to_a_run_at_once_lose_no_record(store: Path) -> None:
    path = store_root() / "tracking" / ("a" * 32)

    def add(word: str) -> None:
        run = journal.RunJournal(path)
        for number in range(300):
            run.append(journal.Tags(tags={word: str(number)}))

    threads = [threading.Thread(target=add, args=(word,)) for word in "xyz"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = [dict(one.tags) for one in journal.RunJournal(path).entries()]
    for word in "xyz":
        assert [one[word] for one in found if word in one] == [str(n) for n in range(300)]


def test_a_record_that_only_a_part_of_was_written_of_is_written_again(store: Path) -> None:
    run = journal.of_run(store_root(), journal.new_run_id())
    run.append(journal.Tags(tags={"a": "b"}))
    size, (soft, hard) = run.path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))  # as a disk that is full
    try:
        run.append(journal.Tags(tags={"c": "d"}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.failure
    assert run.path.stat().st_size == size
    run.append(journal.Tags(tags={"e": "f"}))
    found = [run.says(journal.Tags(tags={key: value})) for key, value in ("ab", "cd", "ef")]
    assert (found, run.count()) == ([True] * 3, 3)


def test_a_journal_that_cannot_be_written_stops_nothing(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (store / "tracking").touch()
    with (
        caplog.at_level(logging.WARNING, logger="pipeline"),
        tracking.run_of_training("digits-cnn", None, track=True) as tracker,
    ):
        tracker.log_artifact(b"", "x.txt")
        (store / "tracking").unlink()
        tracker.log_metrics({"kept": 3.0})
    (warning,) = warnings(caplog)
    assert warning.startswith("MLflow will lack x.txt: ")
    assert only_run().data.metrics == {"kept": 3.0}


# The process


@pytest.mark.slow
def test_a_process_of_its_own_sends_a_training(trained: Project, process: Path) -> None:
    with tracking.sender_started(wanted=True):
        # Ctrl-C reaches all processes of the terminal's group, and this is none of them.
        assert os.getpgid(tracking.STARTED[0].process.pid) != os.getpgid(0)
        report = tracked_training(trained, process)
    assert tracking.STARTED == []
    run = only_run()
    assert run.data.tags["ferry.run"] == report.run_id
    assert run.info.status == "FINISHED"
    plain = read(TrainReport, trained.details("train"), "ferry train")
    assert report.weights_sha256 == plain.weights_sha256


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """One that takes a connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield f"http://127.0.0.1:{one.getsockname()[1]}"


def test_a_server_that_hangs_costs_no_more_than_the_wait(
    process: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "MAX_WAIT_SECONDS", 0.5)
    with silent_server() as uri, caplog.at_level(logging.WARNING, logger="pipeline"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
            pass
    assert tracker.seconds < 5
    (warning,) = warnings(caplog)
    assert "it takes more than 0.5 s" in warning


def test_a_server_that_is_silent_is_given_up(
    process: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "SECONDS_OF_SILENCE", 0.5)
    for run_id in ("a" * 32, "b" * 32, "c" * 32):
        journal.of_run(store_root(), run_id).append(journal.Ended(status="FINISHED", ended_ms=1))
    left = sending.sync(print)
    assert [one.problem for one in left] == [*["the server said nothing for 0 s"] * 2, ""]


def test_ctrl_c_ends_sending_at_once(process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Sender] = []

    class Noted(Sender):
        def __init__(self, program: str = "main", runs: Sequence[str] = ()) -> None:
            super().__init__(program, runs)
            started.append(self)

    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sending, "Sender", Noted)
    journal.of_run(store_root(), "a" * 32).append(journal.Ended(status="FINISHED", ended_ms=1))
    with pytest.raises(KeyboardInterrupt):
        sending.sync(interrupt)
    (sender,) = started
    assert sender.process
    # By the end of its input, or by the signal: whichever comes first.
    assert sender.process.returncode in {1, -signal.SIGKILL}


def test_a_process_that_dies_stops_nothing(process: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, logger="pipeline"),
        tracking.sender_started(wanted=True),
    ):
        tracking.STARTED[0].process.kill()
        with tracking.run_of_training("digits-cnn", None, track=True) as tracker:
            tracker.log_metrics({"x": 1.0})
    (warning,) = warnings(caplog)
    assert "the process that sends it ended with -9" in warning
    sending.sync(print)
    assert only_run().data.metrics == {"x": 1.0}


def test_no_tracking_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("a process was asked for")

    monkeypatch.setattr(tracking, "Sender", never)
    with (
        tracking.sender_started(wanted=False),
        tracking.run_of_training("digits-cnn", None, track=False) as tracker,
    ):
        tracker.log_metrics({"x": 1.0})
        tracker.log_parameters({"a": 1})
    assert tracker.run_id is None
    assert tracker.seconds == 0


def test_usage_statistics_are_off_unless_the_user_says_otherwise() -> None:
    load_mlflow()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
