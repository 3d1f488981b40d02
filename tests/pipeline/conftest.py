"""A tiny experiment on the embedded digits that really is pulled, trained, exported and quantized.

Each part is made once, by the first process that needs it, in the folders of the layout below one
root; other processes of the same run of the tests copy it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from once import Once
from own_store import use_store
from project import REPOSITORY, Project, generous, lenient
from tracking_server import TrackingServer, tracking_server

from pipeline.config import layout
from pipeline.config.experiment import Experiment, Params
from pipeline.config.params import load
from pipeline.stages.preprocess import preprocess
from pipeline.stages.pull import pull
from pipeline.tracking.store import prepare


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
def ready(tmp_path_factory: pytest.TempPathFactory, params: Params, once: Once) -> Path:
    """A root with the preprocessed digits."""
    root = tmp_path_factory.mktemp("project")
    raw = root / layout.raw("digits")

    def make() -> None:
        pull(raw, name="digits", mirrors=())
        settings = params.dataset("digits")
        preprocess(raw, root / layout.ready("digits"), name="digits", config=settings)

    once("ready", root, make)
    return root


@pytest.fixture(scope="session")
def trained(ready: Path, tiny: Experiment, once: Once) -> Project:
    """Weights and train.json."""
    from pipeline.stages.train import train

    project = Project(ready, tiny)

    def make() -> None:
        train(
            project.data,
            project.weights,
            project.files("train"),
            project.plots("train"),
            experiment=tiny,
            device="cpu",
            track=False,
        )

    once("trained", ready, make)
    return project


@pytest.fixture(scope="session")
def exported(trained: Project, once: Once) -> Project:
    """All three variants."""
    from pipeline.stages.export import export
    from pipeline.stages.quantize import quantize

    models = trained.models

    def make() -> None:
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

    once("exported", trained.root, make)
    return trained


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory, once: Once) -> Path:
    """The database of an MLflow store without runs, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        once("store", folder, prepare)
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def auth_server(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrackingServer]:
    """A real MLflow server that asks for a password; it takes some ten seconds to start."""
    with tracking_server(tmp_path_factory.mktemp("server"), empty_store) as server:
        yield server


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty store of its own, which is the working directory."""
    use_store(tmp_path, empty_store, monkeypatch)
    return tmp_path
