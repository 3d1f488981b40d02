"""A tiny classifier as a file and as a bundle, and bundles of the other tiny models."""

import shutil
from pathlib import Path

import pytest
from tiny_classifier import classifier, contents
from tiny_kinds import Copies, Made

from serving.bundles.writing import write_bundle


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """An ONNX file of the classifier."""
    path = tmp_path / "tiny.onnx"
    path.write_bytes(classifier())
    return path


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
