"""A tiny experiment on the embedded digits that really is pulled, trained, exported and quantized.

Each part is made once per test process, in the folders of the layout below one root.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from project import REPOSITORY, Project, generous, lenient
from tracking_server import TrackingServer, tracking_server

from pipeline import tracking
from pipeline.config import layout
from pipeline.config.experiment import Experiment, Params
from pipeline.config.params import load
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import pull
from pipeline.tracking import journal, sending
from pipeline.tracking.sending import send
from pipeline.tracking.store import prepare, store_root


@pytest.fixture(scope="session")
def params() -> Params:
    return load(REPOSITORY / "params.yaml")


@pytest.fixture(scope="session")
def tiny(params: Params) -> Experiment:
    """digits-cnn with two small blocks and two epochs."""
    experiment = params.experiment("digits-cnn")
    small = {"widths": [8, 12], "kernels": [3, 3], "pools": [True, True], "dropout": 0.1}
    return replace(
        experiment,
        epochs=2,
        model=replace(experiment.model, settings={**experiment.model.settings, **small}),
        quantize=generous(experiment.quantize),
        parity=replace(experiment.parity, int8=lenient(experiment.parity.int8)),
        benchmark=replace(
            experiment.benchmark,
            batch_sizes=(1, 4),
            threads=(1,),
            seconds=0.04,
            rounds=4,
            baselines=("eager",),
            growth_calls=0,
            cold_starts=0,
        ),
    )


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A root with the preprocessed digits."""
    root = tmp_path_factory.mktemp("project")
    raw = root / layout.raw("digits")
    pull(raw, name="digits", mirrors=())
    settings = params.dataset("digits")
    preprocess(raw, root / layout.ready("digits"), name="digits", config=settings)
    return root


@pytest.fixture(scope="session")
def trained(ready: Path, tiny: Experiment) -> Project:
    """Weights and train.json."""
    from pipeline.stages.train import train

    project = Project(ready, tiny)
    train(
        project.data,
        project.weights,
        project.files("train"),
        project.plots("train"),
        experiment=tiny,
        device="cpu",
        track=False,
    )
    return project


@pytest.fixture(scope="session")
def exported(trained: Project) -> Project:
    """All three variants."""
    from pipeline.stages.export import export
    from pipeline.stages.quantize import quantize

    models = trained.models
    export(
        trained.weights,
        trained.details("train"),
        trained.data,
        models["fp32"],
        trained.files("export"),
        experiment=trained.experiment,
        track=False,
    )
    quantize(
        models["fp32"],
        trained.data,
        trained.quantized,
        trained.files("quantize"),
        trained.plots("quantize"),
        experiment=trained.experiment,
        track=False,
    )
    return trained


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of an MLflow store without runs, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        prepare()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def auth_server(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrackingServer]:
    """A real MLflow server that asks for a password; it takes some ten seconds to start."""
    with tracking_server(tmp_path_factory.mktemp("server"), empty_store) as server:
        yield server


class SenderHere:
    """Sends at the end, in this process, which has imported MLflow already."""

    silent = False

    def __init__(self, program: str = "main", runs: Sequence[str] = ()) -> None:
        self._runs = [*runs]
        self._again = program != "main"

    def follow(self, run_id: str) -> None:
        self._runs.append(run_id)

    def says(self, _seconds: float) -> str:
        return ""

    def finish(self, _seconds: float) -> str:
        while self._runs:
            send(journal.of_run(store_root(), self._runs.pop(0)), again=self._again)
        return ""


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty store of its own, which is the working directory."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for module in (tracking, sending):
        monkeypatch.setattr(module, "Sender", SenderHere)
    return tmp_path
