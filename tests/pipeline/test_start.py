"""The weights that a training begins with: another experiment's, or what a network computes."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from project import Project
from safetensors.torch import load_file
from torch import Tensor, nn
from training import run, stop_after, with_train

from pipeline.config.experiment import Experiment, Params
from pipeline.config.fitting import check
from pipeline.errors import ConfigError
from pipeline.models.parts.graph import Graph, build_graph, head_of
from pipeline.records import record
from pipeline.records.ready import Split, open_manifest
from pipeline.training.batches import DeviceRows
from pipeline.training.setup import initialise, transfer
from serving.errors import IntegrityError
from serving.files import sha256_of_file


@pytest.fixture
def wider(trained: Project) -> Experiment:
    """The trained experiment with another last block: its first block fits alone."""
    experiment = trained.experiment
    settings = {**experiment.model.settings, "widths": [8, 16]}
    model = replace(experiment.model, settings=settings)
    return replace(experiment, name="wider", epochs=1, model=model)


def test_layers_that_fit_are_taken_and_the_others_left(trained: Project, wider: Experiment) -> None:
    graph = build_graph(wider, open_manifest(trained.data))
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    taken = transfer(graph, trained.weights.read_bytes(), source="digits-cnn", name="wider")
    source = load_file(trained.weights)
    assert taken.layers_taken == ("0.conv", "0.norm")
    assert "1.conv" in taken.layers_left
    assert taken.weights_sha256 == sha256_of_file(trained.weights)
    for key, value in graph.state_dict().items():
        fits = key.startswith(("network.0.", "mean", "scale"))
        assert torch.equal(value, source[key] if fits else before[key]), key


def test_the_standardisation_stays_that_of_the_own_data(
    trained: Project, wider: Experiment
) -> None:
    manifest = replace(open_manifest(trained.data), mean=(1.0,), std=(2.0,))
    graph = build_graph(wider, manifest)
    transfer(graph, trained.weights.read_bytes(), source="digits-cnn", name="wider")
    assert (graph.mean.item(), graph.scale.item()) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
            "must give [10] for each row, it gives [3]",
        ),
        (nn.Linear(5, 10), "the network cannot take rows of uint8 [8, 8, 1]: "),
    ],
)
def test_a_network_that_does_not_answer_the_rows_is_refused_before_it_is_trained(
    trained: Project, tmp_path: Path, network: nn.Module, message: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.models.build", lambda *_, **__: network)
        with pytest.raises(ConfigError) as caught:
            run(trained.root, trained.experiment, tmp_path)
    assert str(caught.value).startswith("experiments.digits-cnn.model: the network ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_network_of_one_size_of_images_is_told_so(
    trained: Project, params: Params, tmp_path: Path
) -> None:
    flat = with_train(params.experiment("digits-mlp"), sides=(4,))
    with pytest.raises(ConfigError, match=r"digits-mlp\.train\.sides: the network cannot"):
        run(trained.root, flat, tmp_path)
    table = with_train(params.experiment("moons-mlp"), sides=(4,))
    with pytest.raises(ConfigError, match=r"sides: moons has table rows, and only images"):
        check(table)


def test_a_model_with_nothing_in_common_is_refused(trained: Project, params: object) -> None:
    model = replace(trained.experiment.model, settings=dict(trained.experiment.model.settings))
    narrow = replace(model, settings={**model.settings, "widths": [5, 5]})
    graph = build_graph(replace(trained.experiment, model=narrow), open_manifest(trained.data))
    with pytest.raises(ConfigError, match=r"experiments\.x\.train\.init_from: no layer of x has"):
        transfer(graph, trained.weights.read_bytes(), source="digits-cnn", name="x")


def test_weights_that_are_spoilt_are_told(trained: Project) -> None:
    graph = build_graph(trained.experiment, open_manifest(trained.data))
    with pytest.raises(IntegrityError, match="`ferry train digits-cnn` makes them anew"):
        transfer(graph, b"spoilt", source="digits-cnn", name="x")


def test_a_training_begins_there_and_says_so(
    trained: Project,
    wider: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = tmp_path / "digits-cnn" / "model.safetensors"
    source.parent.mkdir()
    source.write_bytes(trained.weights.read_bytes())
    record(source, sha256_of_file(source))
    experiment = with_train(wider, init_from="digits-cnn", epochs=2)
    with caplog.at_level(logging.INFO):
        report = run(trained.root, experiment, tmp_path / "wider")
    assert "wider takes 0.conv, 0.norm from digits-cnn; at random: 1.conv" in caplog.text
    assert report.init_from is not None
    assert report.init_from.experiment == "digits-cnn"
    assert report.init_from.weights_sha256 == sha256_of_file(source)
    alone = run(trained.root, with_train(wider, epochs=2), tmp_path / "alone")
    assert alone.init_from is None
    assert report.history[0].loss < alone.history[0].loss
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            run(trained.root, experiment, tmp_path / "again")
    resumed = run(trained.root, experiment, tmp_path / "again")
    assert resumed.weights_sha256 == report.weights_sha256
    assert resumed.init_from == report.init_from


def test_other_source_weights_start_a_training_anew(
    trained: Project, wider: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "digits-cnn" / "model.safetensors"
    source.parent.mkdir()
    source.write_bytes(trained.weights.read_bytes())
    record(source, sha256_of_file(source))
    experiment = with_train(wider, init_from="digits-cnn", epochs=2)
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            run(trained.root, experiment, tmp_path / "wider")
    other = run(trained.root, with_train(trained.experiment, seed=9), tmp_path / "digits-cnn")
    report = run(trained.root, experiment, tmp_path / "wider")
    fresh = run(trained.root, experiment, tmp_path / "fresh")
    assert report.weights_sha256 == fresh.weights_sha256
    assert report.init_from is not None
    assert report.init_from.weights_sha256 == other.weights_sha256


class Seeing(nn.Linear):
    """A layer that remembers what it was shown."""

    seen: Tensor

    def initialise(self, rows: Tensor) -> None:
        self.seen = rows


def test_a_network_may_look_at_standardised_rows_first() -> None:
    graph = Graph(Seeing(2, 1), "table", head_of("binary_cross_entropy"))
    graph.standardise((1.0, 2.0), (2.0, 4.0))
    inputs = np.random.default_rng(1).normal((1.0, 2.0), (2.0, 4.0), (6000, 2)).astype("float32")
    rows = DeviceRows(graph, Split(inputs, np.zeros(6000, dtype=np.int64)), torch.device("cpu"))
    initialise(graph, rows, seed=3)
    first = graph.network.seen
    assert isinstance(first, Tensor)
    assert first.shape == (5000, 2)
    assert first.mean(0).abs().max() < 0.1
    assert (first.std(0) - 1).abs().max() < 0.1
    initialise(graph, rows, seed=3)
    assert torch.equal(first, graph.network.seen)


SCRIPT = """
import resource
import numpy as np
from pipeline.training.setup import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(16 * 2**20, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
told = keep_freed_memory()
faults()
print(told, first, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_a_block_that_was_freed_is_used_again() -> None:
    # In a process of its own: the setting cannot be taken back.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    message, before, after = done.stdout.split()
    if message != "True":
        pytest.skip("this C library has no mallopt")
    assert int(after) < int(before) / 10
