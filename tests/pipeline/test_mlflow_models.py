"""Each variant as MLflow keeps it: once, opened in a fresh process, with figures of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from planted_faults import OPSET, subject

from pipeline.exporting.exporter import to_onnx, traced
from pipeline.models.parts.graph import Graph, Regression
from pipeline.quantization.half import to_fp16
from pipeline.tracking.journal import Entry, LoggedModel, Metrics, Point, RowsRead, RunJournal, Sent
from pipeline.tracking.models import SUPERSEDED_TAG, model_of, send_model
from pipeline.tracking.store import load_mlflow
from pipeline.tracking.upload import Upload
from serving.files import sha256_of_file
from serving.machine.environment import runtime_wheels
from serving.runtime.session import open_session
from serving.runtime.tensors import TensorInfo

PREDICT = """
import json, os, sys
import mlflow
import numpy as np

for identifier, name, example, answers in json.loads(sys.argv[1]):
    model = mlflow.pyfunc.load_model(f"models:/{identifier}")
    rows = np.load(example)
    found = model.predict({name: rows.astype(object) if rows.dtype.kind == "U" else rows})
    np.savez(answers, **found)
    (example,) = model.input_example.values()
    assert example.tolist() == rows.tolist()
    body = json.dumps({"inputs": {name: rows.tolist()}})
    served = mlflow.models.validate_serving_input(f"models:/{identifier}", body)
    assert all(np.array_equal(served[name], values) for name, values in found.items())
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""


@dataclass(frozen=True)
class Kept:
    """A model of a run, and its file."""

    folder: Path
    run_id: str
    model: LoggedModel
    model_id: str

    @property
    def name(self) -> str:
        return self.model.inputs[0].name

    @property
    def rows(self) -> np.ndarray[Any, Any]:
        return np.load(self.folder / self.model.example)

    def expected(self) -> dict[str, Any]:
        """What ferry answers to the rows of the example."""
        file = "fp32.onnx" if self.model.model == "pytorch" else self.model.file
        rows = self.rows.astype(object) if self.rows.dtype.kind == "U" else self.rows
        return open_session(self.folder / file, threads=1).run({self.name: rows})


def regression() -> tuple[Graph, np.ndarray[Any, Any]]:
    torch.manual_seed(0)
    graph = Graph(torch.nn.Linear(3, 2), "table", Regression((5.0, -2.0), (3.0, 0.5))).eval()
    graph.standardise((0.5,) * 3, (2.0,) * 3)
    return graph, np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


def files(kind: str, folder: Path) -> list[LoggedModel]:
    """The variants of a small model, with two rows that they take."""
    if kind == "regression":
        graph, rows = regression()
        made = {"fp32": to_onnx(graph, rows, OPSET)}
    else:
        small = subject(kind)
        graph, rows = small.graph, np.concatenate([*small.feeds.values()] * 2)
        made = {"fp32": small.model}
    if kind == "trained":
        made |= {"fp16": to_fp16(made["fp32"]), "int8": subject("int8").model}
    folder.mkdir()
    np.save(folder / "example.npy", rows)
    for variant, model in made.items():
        onnx.save(model, folder / f"{variant}.onnx")
    if graph.kind != "text":
        torch.export.save(traced(graph, rows), folder / "pytorch.pt2")
    session = open_session(folder / "fp32.onnx", threads=1)
    return [
        LoggedModel(
            model=path.stem,
            file=path.name,
            sha256=sha256_of_file(path),
            example="example.npy",
            inputs=session.inputs,
            outputs=session.outputs,
        )
        for path in sorted(folder.iterdir())
        if path.suffix != ".npy"
    ]


@pytest.fixture(scope="module")
def client(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a store of its own, where no run is ever active."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    mlflow = load_mlflow()
    with pytest.MonkeyPatch.context() as patch:
        uri = f"sqlite:///{folder}/mlflow.db"
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)  # not None: that forgets the variable after another test's
        made = mlflow.MlflowClient()
        made.create_experiment("small", artifact_location=(folder / "mlruns").as_uri())
        yield made
        assert mlflow.active_run() is None
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def kept(client: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Kept]:
    """All variants of an image, a text and an autoencoder model, and of a regression of a table."""
    root, found = tmp_path_factory.mktemp("files"), {}
    for kind in ("trained", "text_lstm", "autoencoder", "regression"):
        folder, run_id = root / kind, new_run(client)
        for model in files(kind, folder):
            identifier = send_model(client, run_id, model, folder.joinpath)
            found[kind, model.model] = Kept(folder, run_id, model, identifier)
    return found


def new_run(client: Any) -> str:
    experiment = client.get_experiment_by_name("small").experiment_id
    identifier: str = client.create_run(experiment).info.run_id
    return identifier


@pytest.mark.slow
def test_a_fresh_process_answers_as_ferry_does(
    kept: dict[tuple[str, str], Kept], tmp_path: Path
) -> None:
    assert len(kept) == 9
    asked = [
        (one.model_id, one.name, str(one.folder / one.model.example), f"{tmp_path}/{at}")
        for at, one in enumerate(kept.values())
    ]
    subprocess.run([sys.executable, "-c", PREDICT, json.dumps(asked)], check=True)
    for at, one in enumerate(kept.values()):
        found, expected = np.load(tmp_path / f"{at}.npz"), one.expected()
        assert set(found.files) == set(expected)
        for name, values in expected.items():
            limit = 1e-6 * max(1.0, float(np.abs(values).max()))
            np.testing.assert_allclose(found[name], values, rtol=0, atol=limit)


@pytest.mark.slow
def test_mlflow_models_predict_answers(kept: dict[tuple[str, str], Kept], tmp_path: Path) -> None:
    one = kept["text_lstm", "fp32"]
    (tmp_path / "in.json").write_text(json.dumps({"inputs": {one.name: one.rows.tolist()}}))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local"]
    command += ["-m", f"models:/{one.model_id}"]
    command += ["-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "out.json").read_text())["predictions"]
    for name, values in one.expected().items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)


def test_what_is_kept_of_a_model(client: Any, kept: dict[tuple[str, str], Kept]) -> None:
    int8 = kept["trained", "int8"]
    logged = client.get_logged_model(int8.model_id)
    folder = Path(logged.artifact_location.removeprefix("file://"))
    assert sha256_of_file(folder / "model.onnx") == logged.tags["ferry.sha256"]
    wheels = [f"{wheel}=={version}" for wheel, version in runtime_wheels().items()]
    assert set(wheels) <= set((folder / "requirements.txt").read_text().split())
    assert (logged.name, logged.status, logged.model_type) == ("int8", "READY", "onnx")
    assert f'load_model("models:/{int8.model_id}")' in logged.tags["mlflow.note.content"]
    outputs = client.get_run(int8.run_id).outputs.model_outputs
    assert int8.model_id in {one.model_id for one in outputs}
    assert len(outputs) == 4


def test_figures_belong_to_their_model(
    client: Any, kept: dict[tuple[str, str], Kept], tmp_path: Path
) -> None:
    run_id = kept["trained", "fp32"].run_id
    sent = Sent(store="", run_id=run_id, entries=0, problem="", refused=())
    run = RunJournal(tmp_path)
    upload = Upload(load_mlflow(), run, sent)

    def send(entry: Entry) -> None:
        run.append(entry)
        upload.send(run.lines()[-1], run.count())

    for context, split in (("training", "train"), ("evaluation", "test")):
        features = TensorInfo(name="inputs", dtype="uint8", shape=(240, 6, 6, 1))
        rows = RowsRead(
            context=context,
            dataset=f"stripes ({split})",
            digest=split * 8,
            source={},
            features=features,
            targets=None,
        )
        send(rows)
    for variant, flips in (("fp32", 0.0), ("int8", 6.0)) * 2:
        point = Point(key=f"variants/{variant}/flips", value=flips, step=0, time_ms=1_000)
        send(Metrics(points=(point,), of_model=variant))
    for variant, flips in (("fp32", 0.0), ("int8", 6.0)):
        (metric,) = client.get_logged_model(kept["trained", variant].model_id).metrics
        assert (metric.key, metric.value) == (f"variants/{variant}/flips", flips)
        assert (metric.dataset_name, metric.dataset_digest) == ("stripes (test)", "test" * 8)


def test_the_same_file_is_kept_once_and_another_supersedes_it(
    client: Any, kept: dict[tuple[str, str], Kept]
) -> None:
    one, run_id = kept["regression", "fp32"], new_run(client)

    def send(model: LoggedModel) -> str:
        identifier = send_model(client, run_id, model, one.folder.joinpath)
        assert model_of(client, run_id, "fp32") == {"model_id": identifier}
        return identifier

    assert model_of(client, run_id, "fp32") == {}
    first = send(one.model)
    assert send(one.model) == first
    second = send(replace(one.model, sha256="ab" * 32))
    assert client.get_logged_model(first).tags[SUPERSEDED_TAG] == second
    assert send(one.model) == first
    assert len(client.get_run(run_id).outputs.model_outputs) == 2


def test_what_was_left_half_made_is_finished(
    client: Any, kept: dict[tuple[str, str], Kept]
) -> None:
    one, run_id = kept["regression", "pytorch"], new_run(client)
    with pytest.raises(FileNotFoundError):
        send_model(client, run_id, one.model, (one.folder / "gone").joinpath)
    half = model_of(client, run_id, "pytorch")["model_id"]
    assert client.get_logged_model(half).status == "PENDING"
    assert send_model(client, run_id, one.model, one.folder.joinpath) == half
    assert client.get_logged_model(half).status == "READY"
