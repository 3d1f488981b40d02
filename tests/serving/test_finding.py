"""A model is found by its bundle's name, and what is none is told as what it is."""

from pathlib import Path

import pytest
from tiny_classifier import images

from serving.bundles.bundle import open_bundle
from serving.bundles.finding import located
from serving.errors import InputError, MissingInputError, ModelError
from serving.model import open_model


@pytest.fixture
def home(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which the bundle is bundles/tiny."""
    monkeypatch.chdir(bundle.parents[1])
    return bundle.parents[1]


def test_a_name_alone_is_that_of_a_bundle(home: Path) -> None:
    assert located("tiny") == Path("bundles/tiny")
    assert len(open_model(located("tiny")).predict(images(2))) == 2
    assert located("bundles/tiny") == Path("bundles/tiny")
    assert located("other") == Path("other")
    (home / "tiny").mkdir()
    assert located("tiny") == Path("tiny")


def test_a_bundle_is_found_from_a_folder_below(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "photos" / "new").mkdir(parents=True)
    monkeypatch.chdir(home / "photos" / "new")
    assert located("tiny") == Path("../../bundles/tiny")
    with pytest.raises(MissingInputError, match=r"did you mean \.\./\.\./bundles/tiny\?$"):
        open_model(Path("tinny"))


@pytest.mark.parametrize("name", ["tinyy", "bundles/tinny", "bundle/tiny"])
def test_the_bundle_that_was_meant(home: Path, name: str) -> None:
    assert home.is_dir()
    for call in (open_model, open_bundle):
        with pytest.raises(
            MissingInputError, match=rf"^{name} is not there; did you mean bundles/tiny\?$"
        ):
            call(Path(name))


def test_nothing_like_it(home: Path) -> None:
    assert home.is_dir()
    hint = "it should be a bundle or an ONNX file; `ferry bundle mnist` makes the bundle of an exp"
    with pytest.raises(MissingInputError, match=f"mnist is not there; {hint}"):
        open_model("mnist")


def test_a_file_is_no_bundle(home: Path) -> None:
    assert home.is_dir()
    with pytest.raises(InputError, match=r"model\.onnx is a file of the bundle bundles/tiny; a bu"):
        open_bundle(Path("bundles/tiny/model.onnx"))


@pytest.mark.parametrize(
    ("suffix", "what"),
    [
        (".safetensors", "the weights of a network; `ferry export` makes the model"),
        (".pt", "a file of PyTorch"),
        (".tflite", "a model of TensorFlow Lite"),
        (".engine", "an engine of TensorRT"),
    ],
)
def test_other_files_are_told_as_what_they_are(tmp_path: Path, suffix: str, what: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(b"something")
    with pytest.raises(ModelError, match=rf"model\{suffix} is no ONNX file but {what}"):
        open_model(tmp_path / f"model{suffix}")
