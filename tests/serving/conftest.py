"""A tiny classifier as a file and as a bundle, bundles of other models, and runs cut short."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_classifier import classifier, contents, images
from tiny_kinds import Copies, Made

from serving.batch.predict import ShardedOutput
from serving.bundles.writing import write_bundle
from serving.model import Model, open_model


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """An ONNX file of the classifier."""
    path = tmp_path / "tiny.onnx"
    path.write_bytes(classifier())
    return path


@pytest.fixture
def of_images(model_file: Path) -> Model:
    """The classifier."""
    return open_model(model_file)


@pytest.fixture
def cut_short(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of chunks that are written before a run breaks off; [-1] for all."""
    left = [-1]
    take = ShardedOutput.take

    def limited(self: ShardedOutput, *given: object) -> None:
        if left[0] == 0:
            raise RuntimeError("cut short")
        left[0] -= 1
        take(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardedOutput, "take", limited)
    yield left
    left[0] = -1


@pytest.fixture(scope="session")
def built_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(folder, contents())
    return folder


@pytest.fixture
def bundle(built_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may spoil."""
    return Path(shutil.copytree(built_bundle, tmp_path / "bundles" / "tiny"))


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """What builds a bundle once: proving it starts a process of its runner."""
    built: dict[Made, Path] = {}

    def build(made: Made) -> Path:
        if made not in built:
            built[made] = tmp_path_factory.mktemp("bundles") / "tiny"
            write_bundle(built[made], made())
        return built[made]

    return build


@pytest.fixture
def bundle_of(_built: Copies, tmp_path: Path) -> Copies:
    """Gives a copy of the bundle of some contents, which a test may spoil."""
    return lambda made: Path(shutil.copytree(_built(made), tmp_path / "tiny"))


@pytest.fixture
def device(bundle: Path, tmp_path: Path) -> Path:
    """The bundle alone, copied somewhere else, with some rows beside it."""
    folder = Path(shutil.copytree(bundle, tmp_path / "device" / "model"))
    np.save(folder.parent / "rows.npy", images(70))
    return folder
