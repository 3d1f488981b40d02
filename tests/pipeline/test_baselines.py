"""What ONNX Runtime is measured beside: PyTorch in its modes and MLflow's pyfunc, as subjects."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from project import REPOSITORY, Project

from pipeline.config.experiment import Experiment
from pipeline.network.graph import load_graph
from pipeline.records.ready import open_manifest, open_split
from pipeline.stages.baselines import mlflow_baseline, torch_model
from pipeline.stages.baselines.mlflow_baseline import MlflowBaseline, save_pyfuncs
from pipeline.stages.baselines.torch_baseline import TorchBaseline
from pipeline.stages.baselines.torch_model import batch_of, first_row, open_torch
from pipeline.stages.benchmark import NAMES, subjects_of
from serving.errors import InputError, ModelError
from serving.files import sha256_of_file
from serving.measuring.subject import SubjectProcess, SubjectSpec
from serving.runtime.session import open_session
from serving.runtime.settings import SessionSettings

ONE = SessionSettings(threads=1)


def setup(project: Project, mode: str = "eager", device: str = "cpu") -> dict[str, Any]:
    return torch_model.setup_of(project.experiment, project.weights, project.data, mode, device)


def images(project: Project, count: int) -> np.ndarray[Any, Any]:
    return np.array(open_split(project.data, "test").inputs[:count])


def trained_answers(project: Project, rows: np.ndarray[Any, Any]) -> torch.Tensor:
    graph = load_graph(project.weights, project.experiment, open_manifest(project.data))
    return graph.answer(rows, len(rows))[1]


def test_a_batch_is_the_first_rows_over_and_over(trained: Project) -> None:
    rows = np.arange(6).reshape(3, 2)
    assert batch_of(rows, 2).tolist() == [[0, 1], [2, 3]]
    assert batch_of(rows, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert batch_of(np.array(["a", "b"]), 3).tolist() == ["a", "b", "a"]
    assert (first_row(trained.data) == images(trained, 1)).all()


def test_a_setup_goes_through_json_to_the_same_experiment(trained: Project) -> None:
    message = json.loads(json.dumps(setup(trained)))
    model = open_torch(message)
    assert sum(weight.numel() for weight in model.graph.parameters()) > 0
    assert message["experiment"]["name"] == trained.experiment.name


@pytest.mark.parametrize("mode", ["eager", "channels_last"])
def test_pytorch_answers_as_the_trained_graph_does(trained: Project, mode: str) -> None:
    subject = TorchBaseline(setup(trained, mode))
    started = subject.start(ONE)
    assert torch.get_num_threads() == 1
    assert started.sha256 == sha256_of_file(trained.weights)
    assert started.file_bytes == trained.weights.stat().st_size
    assert started.proof is None
    assert started.ready_ms > 0
    found: Any = subject.call(5)()
    expected = trained_answers(trained, images(trained, 5))
    assert torch.allclose(found[1], expected, atol=1e-5)
    assert found[1].is_inference()
    assert subject.share(1) is None
    assert subject.gpu_bytes() is None


def test_channels_last_moves_the_weights(trained: Project) -> None:
    def last(mode: str) -> list[bool]:
        weights = open_torch(setup(trained, mode)).graph.parameters()
        wide = [weight for weight in weights if weight.dim() == 4 and weight.shape[1] > 1]
        return [one.is_contiguous(memory_format=torch.channels_last) for one in wide]

    assert set(last("eager")) == {False}
    assert set(last("channels_last")) == {True}


def test_a_network_without_convolutions_has_no_channels_to_move(
    trained: Project, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from pipeline.network.graph import build_graph

    settings = {"hidden": [4], "activation": "relu", "dropout": 0.0}
    model = replace(trained.experiment.model, name="mlp", settings=settings)
    experiment: Experiment = replace(trained.experiment, model=model)
    graph = build_graph(experiment, open_manifest(trained.data))
    save_file(graph.state_dict(), tmp_path / "model.safetensors")
    message = torch_model.setup_of(
        experiment, tmp_path / "model.safetensors", trained.data, "channels_last"
    )
    with pytest.raises(ModelError, match="digits-cnn has no convolution whose channels could be"):
        open_torch(message)
    assert open_torch(message | {"mode": "eager"}).answer(images(trained, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "jit"}, "PyTorch runs eager, channels_last, compile, not 'jit'"),
        pytest.param(
            {"device": "cuda"},
            "PyTorch finds no CUDA device on this machine",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_cannot_run_is_told_in_one_line(
    trained: Project, change: Mapping[str, str], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        open_torch(setup(trained) | change)
    assert str(caught.value) == message


def test_rows_that_pytorch_refuses_are_told_in_one_line(trained: Project) -> None:
    model = open_torch(setup(trained))
    with pytest.raises(ModelError, match=r"^PyTorch cannot run it: ") as caught:
        model.answer(images(trained, 2).repeat(3, axis=3))
    assert "\n" not in str(caught.value)


def test_a_subject_that_was_not_started_says_so(trained: Project, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was not started"):
        TorchBaseline(setup(trained)).call(1)
    message = mlflow_baseline.setup_of(tmp_path, tmp_path / "model.onnx", trained.data)
    with pytest.raises(InputError, match="was not started"):
        MlflowBaseline(message).answer(images(trained, 1))


def compiled(project: Project) -> SubjectSpec:
    module = "pipeline.stages.baselines.torch_baseline"
    return SubjectSpec(
        name="torch.compile", provider="torch", module=module, setup=setup(project, "compile")
    )


@pytest.mark.slow
def test_without_a_compiler_there_is_a_reason_and_no_row(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with SubjectProcess(compiled(trained)) as worker:
        worker.ask("start", settings=asdict(ONE), cores=list(os.sched_getaffinity(0)))
        with pytest.raises(ModelError, match=r"^PyTorch cannot run it: ") as caught:
            worker.ask("prepare", batch_size=1, seconds=0.01)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_what_is_compiled_is_timed_and_its_first_call_holds_the_compiler(
    trained: Project,
) -> None:
    with SubjectProcess(compiled(trained)) as worker:
        worker.ask("start", settings=asdict(ONE), cores=list(os.sched_getaffinity(0)))
        prepared = worker.ask("prepare", batch_size=2, seconds=0.01)
        worker.ask("turn", seconds=0.01)
        timing = worker.ask("timing")
    assert timing["batch_size"] == 2
    assert prepared["first_call_ms"] > 10 * timing["p50_ms"]


@pytest.fixture(scope="module")
def saved(exported: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow")
    save_pyfuncs(folder, exported.models["fp32"], (1,))
    return folder


def test_a_pyfunc_answers_as_the_session_does_and_proves_its_provider(
    exported: Project, saved: Path
) -> None:
    model = exported.models["fp32"]
    subject = MlflowBaseline(mlflow_baseline.setup_of(saved, model, exported.data))
    started = subject.start(ONE)
    session = open_session(model, threads=1)
    assert started.proof == session.proof
    assert started.sha256 == session.sha256
    found: Any = subject.call(3)()
    expected = session.run({session.inputs[0].name: images(exported, 3)})
    assert np.array_equal(found["probabilities"], expected["probabilities"])
    assert subject.share(1) is None
    assert subject.gpu_bytes() is None
    with pytest.raises(ModelError, match=r"^MLflow refused its input: ") as caught:
        subject.answer(images(exported, 3)[:, :4])
    assert len(str(caught.value)) < 400


def test_a_thread_count_that_was_not_saved_cannot_be_opened(exported: Project, saved: Path) -> None:
    model = exported.models["fp32"]
    subject = MlflowBaseline(mlflow_baseline.setup_of(saved, model, exported.data))
    with pytest.raises(ModelError, match=r"^MLflow cannot open \S+threads-3: "):
        subject.start(SessionSettings(threads=3))


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["eager", "pyfunc"])
def test_a_program_tells_its_first_answer(exported: Project, saved: Path, baseline: str) -> None:
    message = (
        mlflow_baseline.setup_of(saved, exported.models["fp32"], exported.data)
        if baseline == "pyfunc"
        else setup(exported)
    )
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.baselines.first_answer", json.dumps(message)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == "answered\n"


def test_the_subjects_are_eager_first_and_all_variants(exported: Project, tmp_path: Path) -> None:
    config = replace(exported.experiment.benchmark, baselines=("channels_last", "compile", "eager"))
    found = subjects_of(
        exported.weights,
        exported.models,
        exported.data,
        tmp_path,
        threads=(1,),
        experiment=replace(exported.experiment, benchmark=config),
    )
    names = [spec.name for spec in found.specs if spec.provider in ("torch", "cpu")]
    baselines = ["eager", "channels_last", "compile"]
    assert names == [*(NAMES[baseline] for baseline in baselines), "fp32", "fp16", "int8"]
    assert list(found.cold)[:2] == ["PyTorch eager", "fp32 · cpu"]
    assert list(tmp_path.iterdir()) == []  # MLflow saves only where it takes part
