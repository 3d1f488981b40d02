"""Export: the graph's promises, the same bytes everywhere, and refusals."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from project import REPOSITORY, Project, files_in

from pipeline.config.experiment import Params
from pipeline.errors import ConfigError
from pipeline.exporting import onnxmodel
from pipeline.exporting.exporter import to_onnx
from pipeline.models.parts.graph import load_graph
from pipeline.records import ready, record
from pipeline.records.ready import DatasetManifest, open_manifest, open_split
from pipeline.stages.export import export
from serving.errors import IntegrityError, ModelError
from serving.files import sha256_of_file
from serving.runtime.session import open_session


def test_raw_images_in_logits_and_probabilities_out(exported: Project) -> None:
    session = open_session(exported.models["fp32"])
    (images,) = session.inputs
    assert (images.name, images.dtype, images.shape) == ("images", "uint8", ("batch", 8, 8, 1))
    assert [(out.name, out.dtype, out.shape) for out in session.outputs] == [
        ("logits", "float32", ("batch", 10)),
        ("probabilities", "float32", ("batch", 10)),
    ]
    rows = open_split(exported.data, "test").inputs[:5]
    answer = session.run({"images": np.array(rows)})
    assert np.allclose(answer["probabilities"].sum(1), 1, atol=1e-6)
    shifted = np.exp(answer["logits"] - answer["logits"].max(1, keepdims=True))
    assert np.allclose(answer["probabilities"], shifted / shifted.sum(1, keepdims=True), atol=1e-6)


def test_the_answer_is_pytorchs(exported: Project) -> None:
    manifest = open_manifest(exported.data)
    network_graph = load_graph(exported.weights, exported.experiment, manifest)
    rows = np.array(open_split(exported.data, "test").inputs)
    with torch.inference_mode():
        logits, _ = network_graph(torch.from_numpy(rows))
    found = open_session(exported.models["fp32"]).run({"images": rows})["logits"]
    assert np.abs(found - logits.numpy()).max() < 1e-4


def test_metadata_says_where_the_model_comes_from(exported: Project) -> None:
    facts = open_session(exported.models["fp32"]).metadata
    trained = json.loads(exported.details("train").read_text())
    assert facts["ferry.experiment"] == "digits-cnn"
    assert facts["ferry.dataset"] == "digits"
    assert json.loads(facts["ferry.labels"]) == trained["labels"]
    assert json.loads(facts["ferry.accuracy"]) == trained["accuracy"]
    assert facts["ferry.weights_sha256"] == trained["weights_sha256"]
    assert facts["ferry.git_revision"] == trained["git_revision"]
    assert facts["ferry.variant"] == "fp32"
    assert facts["ferry.version"]


def test_the_columns_of_a_table_are_named(trained: Project, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained.data, data)
    ready.write_manifest(data, replace(ready.open_manifest(data), features=("a", "b")))
    run(trained, tmp_path, data=data)
    assert json.loads(open_session(tmp_path / "model.onnx").metadata["ferry.features"]) == [
        "a",
        "b",
    ]


def test_no_local_path_and_no_note_is_left(exported: Project) -> None:
    content = exported.models["fp32"].read_bytes()
    for leak in (
        str(REPOSITORY).encode(),
        b"stack_trace",
        b"pkg.torch",
        b".py",
        sys.prefix.encode(),
    ):
        assert leak not in content


def test_nodes_are_named_after_the_modules(exported: Project) -> None:
    names = [node.name for node in onnx.load(exported.models["fp32"]).graph.node]
    assert len(names) == len(set(names))
    assert "main/Softmax" in names
    assert [name for name in names if name.endswith("/Conv")] == [
        "network.0.conv/Conv",
        "network.1.conv/Conv",
    ]


@pytest.mark.slow
def test_the_same_bytes_wherever_the_checkout_lies(exported: Project, tmp_path: Path) -> None:
    """A second process, from a copy of the sources in another folder, after another export."""
    elsewhere = tmp_path / "a" / "different" / "place"
    for package in ("pipeline", "serving"):
        shutil.copytree(REPOSITORY / package, elsewhere / package)
    script = (
        "import sys, pickle, pathlib, dataclasses\n"
        "from pipeline.config import params\n"
        "from pipeline.stages.export import export\n"
        "import pipeline\n"
        "assert pipeline.__file__.startswith(sys.argv[1]), pipeline.__file__\n"
        "root, out = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])\n"
        "experiment = params.load(pathlib.Path(sys.argv[4])).experiment('digits-cnn')\n"
        "small = {'widths': [8, 12], 'kernels': [3, 3], 'pools': [True, True], 'dropout': 0.1}\n"
        "settings = {**experiment.model.settings, **small}\n"
        "model = dataclasses.replace(experiment.model, settings=settings)\n"
        "experiment = dataclasses.replace(experiment, model=model)\n"
        "from pipeline.records import ReportFiles\n"
        "files = ReportFiles(details=out / 'm.json', metrics=out / 'metrics.json')\n"
        "for _ in range(2):\n"
        "    export(root / 'models/digits-cnn/model.safetensors',\n"
        "           root / 'reports/details/digits-cnn/train.json', root / 'data/ready/digits',\n"
        "           out / 'm.onnx', files, experiment=experiment, track=False)\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", script, str(elsewhere), str(exported.root), str(tmp_path)),
            str(REPOSITORY / "params.yaml"),
        ],
        cwd=elsewhere,
        env={"PYTHONPATH": str(elsewhere), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.onnx").read_bytes() == exported.models["fp32"].read_bytes()


def run(
    project: Project, folder: Path, weights: Path | None = None, data: Path | None = None
) -> object:
    return export(
        weights or project.weights,
        project.details("train"),
        data or project.data,
        folder / "model.onnx",
        files_in(folder, "export"),
        experiment=project.experiment,
        track=False,
    )


def test_weights_of_another_training_are_refused(trained: Project, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(trained.weights)
    weights["mean"] = weights["mean"] + 1
    save_file(weights, tmp_path / "other.safetensors")
    record(tmp_path / "other.safetensors", sha256_of_file(tmp_path / "other.safetensors"))
    with pytest.raises(IntegrityError, match=r"train\.json is about .*`ferry train digits-cnn`"):
        run(trained, tmp_path, tmp_path / "other.safetensors")
    assert not (tmp_path / "model.onnx").exists()


def test_weights_of_another_architecture_are_refused(trained: Project, tmp_path: Path) -> None:
    wider = {**trained.experiment.model.settings, "widths": [9, 8]}
    other = replace(trained.experiment, model=replace(trained.experiment.model, settings=wider))
    project = Project(trained.root, other)
    with pytest.raises(IntegrityError, match=r"was trained with model\.widths"):
        run(project, tmp_path)


def test_a_spoilt_record_of_the_training_is_one_line(trained: Project, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(trained.root, root)
    project = replace(trained, root=root)
    project.details("train").write_text('{"weights_sha256": 3}')
    with pytest.raises(IntegrityError, match=r"train\.json lacks the key") as caught:
        run(project, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opset", [18, 20, 21])
def test_the_opset_is_the_one_that_was_asked_for(exported: Project, opset: int) -> None:
    manifest = open_manifest(exported.data)
    network_graph = load_graph(exported.weights, exported.experiment, manifest)
    graph = to_onnx(network_graph, np.array(open_split(exported.data, "test").inputs[:2]), opset)
    onnxmodel.check(graph, opset)
    with pytest.raises(ModelError, match=rf"has opset {opset}, 19 was asked for"):
        onnxmodel.check(graph, 19)


def broken(path: Path, change: object) -> onnx.ModelProto:
    model = onnx.load(path)
    change(model)  # type: ignore[operator]
    return model


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.example", version=1)


def too_new(model: onnx.ModelProto) -> None:
    model.ir_version = 14


def outside(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fixed_batch, "onnx.checker refuses|fixes the batch axis of images"),
        (foreign_domain, "needs the operator domain 'com.example'"),
        (too_new, "has IR version 14, ONNX Runtime takes up to 13|onnx.checker refuses"),
        (outside, "onnx.checker refuses|outside of its file"),
        (dangling, "onnx.checker refuses the model"),
    ],
)
def test_our_own_assertions(exported: Project, change: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        onnxmodel.check(broken(exported.models["fp32"], change), 20)


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff not a model")
    with pytest.raises(ModelError, match=r"is not an ONNX file; `ferry export x` makes it anew"):
        onnxmodel.load(tmp_path / "model.onnx", "ferry export x")


def test_an_opset_without_strings_is_refused_for_text(params: Params, tmp_path: Path) -> None:
    text = params.experiment("rt-lstm")
    manifest = DatasetManifest(
        dataset="rt_polarity",
        kind="text",
        labels=("negative", "positive"),
        class_counts={},
        mean=(),
        std=(),
        vocabulary=("the",),
        seed=1,
        arrays={},
    )
    ready.write_manifest(tmp_path, manifest)
    with pytest.raises(ConfigError) as caught:
        export(
            *[tmp_path / name for name in ("weights", "train.json")],
            tmp_path,
            tmp_path / "model.onnx",
            files_in(tmp_path, "export"),
            experiment=replace(text, export=replace(text.export, opset=19)),
            track=False,
        )
    assert str(caught.value).startswith("experiments.rt-lstm.export.opset must be 20 or more")
