"""`ferry predict --track`: the command of serving and one flag more, and what MLflow then holds."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from sample_metrics import PredictedRows
from small_onnx import FLOAT, model, node

from pipeline import tracking
from pipeline.cli import ferry
from pipeline.commands.predict import log_predictions, tracked
from pipeline.tracking.store import store_uri
from serving import cli as serving_cli
from serving.drift.check import DriftReport, QuantityDrift


def drifted() -> DriftReport:
    brightness = QuantityDrift(
        name="mean brightness",
        of="inputs",
        psi=0.41,
        limit=0.25,
        verdict="strongly moved",
        most="over 90: 10.0% in training, 50.0% here",
    )
    sure = QuantityDrift(
        name="confidence", of="predictions", psi=0.02, limit=0.1, verdict="none", most=""
    )
    return DriftReport(data="digits", rows=1200, quantities=(brightness, sure))


def runs(experiment: str) -> list[Any]:
    client = MlflowClient(store_uri())
    found = [one for one in client.search_experiments() if one.name == experiment]
    return client.search_runs([one.experiment_id for one in found]) if found else []


def test_a_run_holds_what_was_done_and_what_moved(store: Path) -> None:
    identifier = log_predictions(PredictedRows(drift=drifted()), ["a.npy", "images/"])  # type: ignore[arg-type]
    (run,) = runs("net")
    assert run.data.tags["ferry.run"] == identifier
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "net · predict"
    assert run.data.metrics == {
        "rows": 1200,
        "errors": 3,
        "seconds": 2.5,
        "rows_per_second": 480,
        "psi.mean_brightness": 0.41,
        "psi.confidence": 0.02,
    }
    assert run.data.params == {
        "model": "models/digits-cnn/net.onnx",
        "model_sha256": "ab" * 32,
        "inputs": "a.npy images/",
    }
    assert run.data.tags["ferry.moved"] == "mean brightness"


def test_every_call_is_a_run_and_none_is_taken_for_a_training(store: Path) -> None:
    with tracking.run_of_weights("net", "cd" * 32, track=True) as tracker:
        tracker.log_metrics({"x": 1})
    first = log_predictions(PredictedRows(), ["a"])  # type: ignore[arg-type]
    second = log_predictions(PredictedRows(), ["a"])  # type: ignore[arg-type]
    assert len({first, second, tracker.run_id}) == 3
    with tracking.run_of_weights("net", "cd" * 32, track=True) as again:
        assert again.run_id == tracker.run_id


def test_names_that_mlflow_refuses_are_changed(store: Path) -> None:
    odd = QuantityDrift(
        name="mean of é=(x)", of="predictions", psi=0.5, limit=0.1, verdict="moved", most=""
    )
    report = PredictedRows(drift=DriftReport(data="d", rows=1, quantities=(odd,)))
    log_predictions(report, ["x" * 10_000])  # type: ignore[arg-type]
    (run,) = runs("net")
    assert run.data.metrics["psi.mean_of_x_"] == 0.5
    assert len(run.data.params["inputs"]) == 500


# The command


def test_the_command_is_that_of_serving_and_one_flag_more() -> None:
    ours, theirs = ferry.commands["predict"], serving_cli.serving.commands["predict"]
    assert ours.params[:-1] == theirs.params
    assert ours.params[-1].opts == ["--track"]
    assert ours.help == theirs.help
    assert "--track" not in [flag for one in theirs.params for flag in one.opts]


def fake(report: object) -> click.Command:
    """A command that gives a report, as serving's does."""

    @click.command()
    @click.argument("inputs", nargs=-1)
    def predict(inputs: tuple[str, ...]) -> object:
        """Give it."""
        click.echo(" ".join(inputs))
        return report

    return predict


@pytest.mark.parametrize(("flags", "logged"), [([], 0), (["--track"], 1)])
def test_only_the_flag_records(store: Path, flags: list[str], logged: int) -> None:
    done = CliRunner().invoke(tracked(fake(PredictedRows())), ["a.npy", "b.npy", *flags])
    assert done.exit_code == 0, done.output
    assert done.stdout == "a.npy b.npy\n"
    assert len(runs("net")) == logged


def test_what_gives_no_report_is_not_recorded(store: Path) -> None:
    assert CliRunner().invoke(tracked(fake(None)), ["a", "--track"]).exit_code == 0
    assert runs("net") == []


def test_a_real_run_is_recorded(store: Path) -> None:
    weight = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    nodes = [node("MatMul", "rows w", "product"), node("Softmax", "product", "probabilities")]
    outputs = {"probabilities": (FLOAT, ["n", 4])}
    made = model(nodes, {"rows": (FLOAT, ["n", 3])}, outputs, {"w": weight})
    (store / "net.onnx").write_bytes(made.SerializeToString())
    np.save(store / "rows.npy", np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32))
    given = ["predict", "net.onnx", "rows.npy", "--output", "out.csv", "--track"]
    done = CliRunner().invoke(ferry, given)
    assert done.exit_code == 0, done.output
    (run,) = runs("net")
    assert run.data.metrics["rows"] == 50
    assert run.data.params["inputs"] == "rows.npy"
