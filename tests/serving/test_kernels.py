"""What a model needs of the processor is asked of its kernels, and refused where it is lacking."""

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_classifier import METADATA, classifier, forge, images

from serving.bundles import inference
from serving.bundles.bundle import model_source, read_manifest
from serving.cli import serving
from serving.errors import ProviderError
from serving.model import open_model
from serving.runtime import kernels
from serving.runtime.kernels import PROBE, SUM, needs_in, overflows, refuse_lacking
from serving.runtime.onnxfile import read_header
from serving.runtime.session import open_session

EMULATOR = shutil.which("qemu-x86_64-static")


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose kernels overflow."""
    monkeypatch.setattr(kernels, "overflows", lambda: True)
    monkeypatch.delenv("FERRY_ALLOW", raising=False)


@pytest.fixture
def needy(tmp_path: Path) -> Path:
    """A file that needs VNNI."""
    path = tmp_path / "needy.onnx"
    path.write_bytes(classifier(metadata=METADATA | {"ferry.needs": "vnni"}))
    return path


def test_the_metadata_is_what_the_runtime_reads(needy: Path) -> None:
    metadata = read_header(needy.read_bytes()).metadata
    assert metadata == open_session(needy, threads=1).metadata
    assert needs_in(metadata) == ("vnni",)
    assert needs_in({}) == ()


@pytest.mark.usefixtures("lacking")
def test_a_file_and_a_bundle_are_refused_wherever_they_are_opened(
    needy: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(bundle, needs=["vnni"])
    assert read_manifest(bundle).needs == ("vnni",)
    for path in (needy, bundle):
        with pytest.raises(ProviderError, match=f"{path.name} needs vnni, which this processor"):
            open_model(path)
        with pytest.raises(ProviderError, match="--allow vnni or FERRY_ALLOW=vnni runs it all"):
            model_source(path, "cpu")
    monkeypatch.setenv("FERRY_ALLOW", "vnni")
    assert len(open_model(needy).predict(images(2)).labels) == 3
    assert model_source(bundle, "cpu") == ((bundle / "model.onnx").read_bytes(), {})


@pytest.mark.usefixtures("lacking")
def test_other_providers_have_kernels_of_their_own() -> None:
    refuse_lacking(("vnni",), "it", "cuda")
    refuse_lacking((), "it")
    with pytest.raises(ProviderError):
        refuse_lacking(("vnni",), "it", "cpu")


@pytest.mark.usefixtures("lacking")
def test_commands_refuse_it_unless_it_is_allowed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(bundle, needs=["vnni"])
    (tmp_path / "none").mkdir()
    for arguments in (["verify", bundle], ["predict", bundle, tmp_path / "none"]):
        monkeypatch.delenv("FERRY_ALLOW", raising=False)
        words = [str(one) for one in arguments]
        refused = CliRunner().invoke(serving, words)
        assert refused.exit_code == 1
        assert "needs vnni" in refused.stderr
        monkeypatch.setenv("FERRY_ALLOW", "")
        allowed = CliRunner().invoke(serving, [*words, "--allow", "vnni"])
        assert "needs vnni" not in allowed.stderr
        assert os.environ["FERRY_ALLOW"] == "vnni"


def test_the_runner_asks_the_same() -> None:
    assert base64.b64decode(inference.PROBE) == PROBE
    assert inference.SUM == SUM


@pytest.mark.skipif(not EMULATOR, reason="qemu-x86_64-static emulates a processor without VNNI")
def test_an_emulated_processor_overflows_and_the_runner_refuses(bundle: Path) -> None:
    code = "from serving.runtime.kernels import overflows; print(overflows())"
    emulated = [str(EMULATOR), "-cpu", "Haswell", sys.executable]
    done = subprocess.run([*emulated, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    forge(bundle, needs=["vnni"])
    command = [*emulated, str(bundle / "runner.py"), "selftest"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "runner: the model needs vnni, which this processor lacks" in refused.stderr
    allowed = subprocess.run(
        [*command, "--allow", "vnni"], capture_output=True, text=True, check=True
    )
    assert "selftest: passed" in allowed.stdout


def test_this_processor_gives_an_answer() -> None:
    assert overflows() in (True, False)
