"""MLflow's registry follows that of ferry, whatever stood there and wherever it was broken off."""

import contextlib
import io
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.entities import LoggedModelStatus

from pipeline.cli import ferry
from pipeline.project.registry import mlflow_mirror
from pipeline.project.registry.mlflow_mirror import mirror, mirror_all, mirrored
from pipeline.project.registry.versions import append
from serving.bundles.registry import (
    Promoted,
    PromotionGate,
    Registered,
    RolledBack,
    read_registry,
)

GATE = PromotionGate(name="quality", status="passed", detail="accuracy 90 %", figures={})


def registered(version: int) -> Registered:
    return Registered(
        version=version,
        experiment="tiny",
        variant="int8",
        digest=f"{version:02}" * 32,
        model_sha256=f"{version:02}" * 32,
        weights_sha256="1" * 64,
        dataset="toy",
        data_sha256="ab" * 32,
        metrics={"accuracy": 97.5},
        description="on new scans" if version == 1 else "",
        tags={"team": "vision"},
    )


def promoted(version: int, over: int | None) -> Promoted:
    return Promoted(version=version, over=over, gates=(GATE,), forced="")


FIRST = (registered(1), promoted(1, None), registered(2))
EVENTS = (*FIRST, promoted(2, 1), RolledBack(version=1, over=2), registered(3))


def happen(*events: Registered | Promoted | RolledBack) -> None:
    for event in events:
        append(Path("registry/tiny.jsonl"), lambda _, event=event: event)


@pytest.fixture
def ours(store: Path) -> Path:
    """The working folder, with an empty store that MLflow is told of."""
    mlflow.set_tracking_uri(mlflow_mirror.store_uri())
    return store


def state() -> dict[str, Any]:
    """All that MLflow has of the registered model."""
    client = mlflow.MlflowClient()
    model = client.get_registered_model("tiny")
    versions = {
        one.tags["ferry.version"]: (one.version, one.source, one.description, one.tags)
        for one in client.search_model_versions("name='tiny'")
    }
    return {"aliases": model.aliases, "tags": model.tags, "versions": versions}


def test_versions_and_aliases_are_those_of_the_events(ours: Path) -> None:
    happen(*FIRST)
    assert len(mirror(mlflow, "tiny")) == 2  # versions without a model in MLflow
    assert state()["aliases"] == {"champion": 1, "challenger": 2}
    happen(promoted(2, 1))
    assert mirror(mlflow, "tiny") == ()
    assert state()["aliases"] == {"champion": 2}
    happen(*EVENTS[4:])
    mirror(mlflow, "tiny")
    found = state()
    assert found["aliases"] == {"champion": 1, "challenger": 3}
    version, source, description, tags = found["versions"]["1"]
    assert version == 1
    assert source == read_registry("tiny").copy_of("01" * 32).resolve().as_uri()
    assert source.startswith(ours.as_uri())
    assert tags == {
        "ferry.promoted": read_registry("tiny").entries[1].time[:10],
        "team": "vision",
        "ferry.version": "1",
        "ferry.variant": "int8",
        "ferry.accuracy": "97.5",
        "ferry.sha256": "0101010101",
    }
    assert description.startswith("accuracy 97.5, int8 of tiny\n\non new scans\n\nBundle 0101")
    assert "\n  - quality passed: accuracy 90 %\n- version 2 was rolled back to v" in description
    assert mirror(mlflow, "tiny") == ()
    assert state() == found


def test_a_version_is_the_model_that_a_run_logged_of_the_same_file(ours: Path) -> None:
    assert ours.is_dir()
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("tiny")
    happen(*FIRST)
    assert len(mirror(mlflow, "tiny")) == 2
    made = {}
    for sha256, status in (("99" * 32, "READY"), ("01" * 32, "READY"), ("02" * 32, "FAILED")):
        logged = client.create_logged_model(experiment, "int8", tags={"ferry.sha256": sha256})
        client.finalize_logged_model(logged.model_id, LoggedModelStatus(status))
        made[sha256[:2]] = logged.model_id
    assert mirror(mlflow, "tiny") == ()
    found = state()
    # The version of the bundle's folder is gone, and its alias is that of the new one.
    assert found["versions"]["1"][:2] == (3, f"models:/{made['01']}")
    assert found["versions"]["2"][0] == 2
    assert found["aliases"] == {"champion": 3, "challenger": 2}
    link = client.get_logged_model(made["01"]).tags["mlflow.modelVersions"]
    assert json.loads(link) == [{"name": "tiny", "version": 3}]
    assert mirror(mlflow, "tiny") == ()
    assert state() == found


def test_it_goes_on_wherever_it_was_broken_off(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ours.is_dir()
    happen(*EVENTS)
    writing = [
        *("create_registered_model", "create_model_version", "set_model_version_tag"),
        *("set_registered_model_alias", "delete_registered_model_alias"),
        "set_registered_model_tag",
    ]
    left = [0]

    class Dies(mlflow.MlflowClient):
        pass

    def broken(name: str) -> Any:
        def call(self: Any, *given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise InterruptedError
            return getattr(mlflow.tracking.MlflowClient, name)(self, *given, **named)

        return call

    for name in writing:
        setattr(Dies, name, broken(name))
    breaks = 0
    for _ in range(20):
        left[0] = 1  # a call each time, and what was done stays
        with monkeypatch.context() as patch, contextlib.suppress(InterruptedError):
            patch.setattr(mlflow, "MlflowClient", Dies)
            mirror(mlflow, "tiny")
            break
        breaks += 1
    found = state()
    assert breaks == 6  # the model, three versions, two aliases; the tag comes with the last run
    assert found["aliases"] == {"champion": 1, "challenger": 3}
    assert {key: one[0] for key, one in found["versions"].items()} == {"1": 1, "2": 2, "3": 3}


def test_a_checkout_that_is_behind_or_went_another_way_changes_nothing(ours: Path) -> None:
    happen(*FIRST, promoted(2, 1))
    mirror(mlflow, "tiny")
    found = state()
    path = ours / "registry" / "tiny.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    (told,) = mirror(mlflow, "tiny")
    assert told.endswith(
        "MLflow knows 4 lines of registry/tiny.jsonl, which has 3 here: `git pull`?"
    )
    happen(registered(3))
    (told,) = mirror(mlflow, "tiny")
    assert told.startswith("line 4 of registry/tiny.jsonl is another one in MLflow")
    assert state() == found
    path.write_bytes(whole)
    assert mirror_all(lambda _: None) == []
    path.write_bytes(whole.replace(b"int8", b"fp16", 1))
    done = CliRunner().invoke(ferry, ["track", "--sync"])
    assert done.exit_code == 1
    assert "MLflow's registry lacks tiny: registry/tiny.jsonl, line 1 was altered" in done.stderr


# The process


def test_the_process_mirrors_the_name_that_it_is_told(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ours.is_dir()
    happen(*EVENTS)

    class Waits(io.StringIO):
        def readline(self, *_: object) -> str:
            assert signal.alarm(0) == 0  # as long as the gates take
            return super().readline()

    monkeypatch.setattr(sys, "stdin", Waits("tiny\n"))
    try:
        mlflow_mirror.main()
    finally:
        signal.alarm(0)
    assert state()["aliases"] == {"champion": 1, "challenger": 3}


def test_what_goes_wrong_is_one_warning(
    ours: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    happen(*FIRST)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with caplog.at_level(logging.WARNING), mirrored("tiny", wanted=True):
        happen(promoted(2, 1))
    (line,) = caplog.messages
    assert line.startswith("MLflow's registry does not agree yet (exit status 1): `ferry track --s")
    assert read_registry("tiny").champion == 2
    # Nothing is started where nothing was ever recorded, or nobody wants it.
    monkeypatch.setattr(sys, "executable", "/not/there")
    with mirrored("tiny", wanted=False):
        pass
    (ours / "mlflow.db").unlink()
    with mirrored("tiny", wanted=True):
        pass
