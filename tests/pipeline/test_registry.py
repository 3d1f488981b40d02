"""A folder of modules is a registry, and the file name is the key."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import datasets, models
from pipeline.config import reading
from serving.errors import UnknownNameError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `boats_for_test` with two public modules, a private one and other files."""
    package = tmp_path / "boats_for_test"
    (package / "sub").mkdir(parents=True)
    for name in ("__init__", "raft", "canoe", "_shared"):
        (package / f"{name}.py").write_text(f"NAME = {name!r}\n")
    (package / "notes.txt").write_text("no module")
    (package / "sub" / "dinghy.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_names_are_the_public_files_sorted(folder: Path) -> None:
    assert reading.names(folder) == ("canoe", "raft")


def test_names_import_nothing(folder: Path) -> None:
    (folder / "canoe.py").write_text("raise RuntimeError('imported')")
    assert "canoe" in reading.names(folder)


def test_a_new_file_is_a_new_name(folder: Path) -> None:
    (folder / "kayak.py").write_text("NAME = 'kayak'")
    assert reading.names(folder) == ("canoe", "kayak", "raft")
    assert reading.load("boat", "boats_for_test", folder, "kayak").NAME == "kayak"


def test_load_gives_the_module(folder: Path) -> None:
    assert reading.load("boat", "boats_for_test", folder, "raft").NAME == "raft"


@pytest.mark.parametrize("name", ["rafft", "_shared", "__init__", "", "sub.dinghy", "../raft"])
def test_what_is_no_public_file_is_unknown(folder: Path, name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        reading.load("boat", "boats_for_test", folder, name)
    message = str(caught.value)
    assert message.startswith(f"no boat named {name!r}; ")
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, LookupError)


def test_the_nearest_name_is_offered(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'raft'\?$"):
        reading.load("boat", "boats_for_test", folder, "rafft")
    with pytest.raises(UnknownNameError, match=r"; there are canoe, raft$"):
        reading.load("boat", "boats_for_test", folder, "submarine")


def test_an_empty_folder_has_no_names(tmp_path: Path) -> None:
    assert reading.names(tmp_path) == ()
    with pytest.raises(UnknownNameError, match="no boat named 'raft'; there are none"):
        reading.load("boat", "nothing", tmp_path, "raft")


def test_the_registries_of_ferry() -> None:
    assert {"digits", "mnist"} <= set(datasets.names())
    assert {"cnn", "mlp"} <= set(models.names())


def test_asking_for_names_loads_no_training_package() -> None:
    code = (
        "import sys\nfrom pipeline import datasets, models\n"
        "datasets.names(), models.names()\n"
        "assert not {'torch', 'sklearn', 'mlflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
