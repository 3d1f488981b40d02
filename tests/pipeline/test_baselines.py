"""What ONNX Runtime is measured beside: PyTorch in its modes and MLflow's pyfunc, as subjects."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from project import REPOSITORY, Project
from safetensors.torch import save_file

from pipeline.models.parts.graph import build_graph, load_graph
from pipeline.records import record
from pipeline.records.ready import open_manifest, open_split
from pipeline.stages.baselines import subject as baseline_program
from pipeline.stages.baselines.opening import (
    batch_of,
    first_row,
    opener,
    put_channels_last,
    pyfunc_setup,
    save_pyfuncs,
    torch_setup,
)
from pipeline.stages.baselines.subject import BaselineSubject
from pipeline.stages.benchmark import NAMES, subjects_of
from serving.errors import InputError, ModelError
from serving.files import sha256_of_file
from serving.measuring.subject import SubjectProcess, SubjectSpec
from serving.runtime.session import open_session
from serving.runtime.settings import SessionSettings

ONE = SessionSettings(threads=1)


def setup(project: Project, mode: str = "eager") -> dict[str, Any]:
    return torch_setup(project.experiment, project.weights, project.data, mode)


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


@pytest.mark.parametrize("mode", ["eager", "channels_last"])
def test_pytorch_answers_as_the_trained_graph_does(trained: Project, mode: str) -> None:
    subject = BaselineSubject(json.loads(json.dumps(setup(trained, mode))))
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
    graph = load_graph(trained.weights, trained.experiment, open_manifest(trained.data))
    wide = [weight for weight in graph.parameters() if weight.dim() == 4 and weight.shape[1] > 1]
    assert wide
    assert not any(one.is_contiguous(memory_format=torch.channels_last) for one in wide)
    put_channels_last(graph, "digits-cnn")
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in wide)


def small_setup(project: Project, folder: Path, mode: str) -> dict[str, Any]:
    """Of a network of four hidden units."""
    settings = {"hidden": [4], "activation": "relu", "dropout": 0.0}
    model = replace(project.experiment.model, name="mlp", settings=settings)
    experiment = replace(project.experiment, model=model)
    weights = folder / "model.safetensors"
    save_file(build_graph(experiment, open_manifest(project.data)).state_dict(), weights)
    record(weights, sha256_of_file(weights))
    return torch_setup(experiment, weights, project.data, mode)


def test_a_network_without_convolutions_has_no_channels_to_move(
    trained: Project, tmp_path: Path
) -> None:
    given = small_setup(trained, tmp_path, "channels_last")
    with pytest.raises(ModelError, match="digits-cnn has no convolution whose channels could be"):
        opener(given)(None)


def test_rows_that_pytorch_refuses_are_told_in_one_line(trained: Project) -> None:
    answer, _ = opener(setup(trained))(None)
    with pytest.raises(ModelError, match=r"^PyTorch cannot run it: ") as caught:
        answer(images(trained, 2).repeat(3, axis=3))
    assert "\n" not in str(caught.value)


def test_a_subject_that_was_not_started_says_so(trained: Project) -> None:
    with pytest.raises(InputError, match="was not started"):
        BaselineSubject(setup(trained)).call(1)


def compiled(project: Project, folder: Path) -> SubjectSpec:
    module, settings = baseline_program.__name__, small_setup(project, folder, "compile")
    return SubjectSpec(name="torch.compile", provider="torch", module=module, setup=settings)


@pytest.mark.slow
def test_without_a_compiler_there_is_a_reason_and_no_row(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with SubjectProcess(compiled(trained, tmp_path)) as worker:
        worker.ask("start", settings=asdict(ONE), cores=list(os.sched_getaffinity(0)))
        with pytest.raises(ModelError, match=r"^PyTorch cannot run it: ") as caught:
            worker.ask("prepare", batch_size=1, seconds=0.01)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_what_is_compiled_is_timed_and_its_first_call_holds_the_compiler(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As slow a program as can be, which g++ makes in a third of the time.
    monkeypatch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "0")
    monkeypatch.setenv("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")
    with SubjectProcess(compiled(trained, tmp_path)) as worker:
        worker.ask("start", settings=asdict(ONE), cores=list(os.sched_getaffinity(0)))
        first_call_ms = worker.ask("prepare", batch_size=2, seconds=0.01)
        worker.ask("turn", seconds=0.01)
        timing = worker.ask("timing")
    assert timing["batch_size"] == 2
    assert first_call_ms > 10 * timing["p50_ms"]


@pytest.fixture(scope="module")
def saved(exported: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow")
    save_pyfuncs(folder, exported.models["fp32"], (1,))
    return folder


def test_a_pyfunc_answers_as_the_session_does_and_proves_its_provider(
    exported: Project, saved: Path
) -> None:
    model = exported.models["fp32"]
    subject = BaselineSubject(pyfunc_setup(saved, model, exported.data))
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
    subject = BaselineSubject(pyfunc_setup(saved, model, exported.data))
    with pytest.raises(ModelError, match=r"^MLflow cannot open \S+threads-3: "):
        subject.start(SessionSettings(threads=3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("baseline", "others"),
    [("eager", ("mlflow", "onnxruntime")), ("pyfunc", ("torch",))],
)
def test_a_program_answers_its_first_row_and_imports_nothing_of_the_others(
    exported: Project, saved: Path, baseline: str, others: tuple[str, ...]
) -> None:
    pyfunc = pyfunc_setup(saved, exported.models["fp32"], exported.data)
    message = pyfunc if baseline == "pyfunc" else setup(exported)
    code = (
        "import sys; from pipeline.stages.baselines.opening import main; main(); "
        f"print([name for name in {(*others, 'serving.measuring')} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(message)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == "answered\n[]\n"


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
