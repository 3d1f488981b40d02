"""What is installed: the wheel's files, which ONNX Runtime it asks for, and the locked versions."""

import email
import re
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from closure import PACKAGES, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *(x for e in EXTRAS.values() for x in e)]
]
LINES = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
LOCKED = {
    canonicalize_name(name): Version(version)
    for name, version in (line.split("==") for line in LINES if "==" in line)
}
ENVIRONMENTS = {
    "Linux, x86-64": ("linux", "x86_64", "onnxruntime-gpu"),
    "Windows, x86-64": ("win32", "AMD64", "onnxruntime-gpu"),
    "Linux, 64-bit Arm": ("linux", "aarch64", "onnxruntime"),
    "Windows, 64-bit Arm": ("win32", "ARM64", "onnxruntime"),
    "macOS, Apple silicon": ("darwin", "arm64", "onnxruntime"),
    "macOS, Intel": ("darwin", "x86_64", "onnxruntime"),
}


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def test_the_wheel_holds_every_file_of_both_packages(wheel: zipfile.ZipFile) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    data = {
        "pipeline/stages/page/report.html.j2",
        "serving/runtime/probe.onnx",
        "serving/bundles/runner.py",
        "pipeline/targets/web/app.js",
        "pipeline/targets/web/ort-wasm-simd-threaded.wasm.xz",
        "pipeline/targets/web/ort.LICENSE.txt",
    }
    assert data | {"pipeline/py.typed", "serving/py.typed"} <= files
    assert files <= set(wheel.namelist())


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        top = name.split("/")[0]
        assert top in PACKAGES or top.endswith(".dist-info"), name
        assert not name.endswith((".pyc", ".db", ".safetensors")), name


def test_the_bytes_are_those_of_the_sources(wheel: zipfile.ZipFile) -> None:
    for name in (
        "pipeline/stages/page/report.html.j2",
        "serving/runtime/probe.onnx",
        "serving/bundles/runner.py",
    ):
        assert wheel.read(name) == (ROOT / name).read_bytes()


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_the_settings_and_the_stages_of_ferry_travel_along(
    wheel: zipfile.ZipFile, name: str
) -> None:
    assert wheel.read(f"pipeline/{name}") == (ROOT / name).read_bytes()


def test_the_wheel_is_of_this_version(wheel: zipfile.ZipFile) -> None:
    name = f"onnx_ferry-{PROJECT['version']}-py3-none-any.whl"
    assert Path(wheel.filename or "").name == name


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "ferry = pipeline.cli:main" in wheel.read(name).decode()


def test_the_licence_travels_along(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    assert metadata["License-Expression"] == PROJECT["license"]
    assert metadata["Name"] == "onnx-ferry"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_wheel_asks_for_one_onnx_runtime(metadata: Message, environment: str) -> None:
    lines = metadata.get_all("Requires-Dist") or []
    assert runtimes([Requirement(line) for line in lines], environment) == [
        ENVIRONMENTS[environment][2]
    ]


def runtimes(requirements: list[Requirement], environment: str) -> list[str]:
    """The wheels of ONNX Runtime that would be installed, with the extra and without it."""
    platform, machine, _ = ENVIRONMENTS[environment]
    here = {"sys_platform": platform, "platform_machine": machine}
    return [
        requirement.name
        for requirement in requirements
        if requirement.name.startswith("onnxruntime")
        and (
            requirement.marker is None or requirement.marker.evaluate({**here, "extra": "pipeline"})
        )
    ]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_project_asks_for_one_onnx_runtime(environment: str) -> None:
    assert runtimes(REQUIREMENTS, environment) == [ENVIRONMENTS[environment][2]]


def test_serving_asks_for_no_training_package() -> None:
    base = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not base & {"torch", "onnx", "mlflow", "dvc", "pydantic", "pyyaml", "scikit-learn"}


# Versions


def test_every_requirement_of_this_machine_is_locked() -> None:
    for requirement in REQUIREMENTS:
        if requirement.marker is None or requirement.marker.evaluate():
            version = LOCKED.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not in requirements.lock"
            assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_the_build_system_is_locked() -> None:
    system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    for requirement in map(Requirement, system["requires"]):
        assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)])


def test_every_line_of_the_lock_is_one_exact_public_version() -> None:
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line), line
        name, _ = line.split("==")
        assert not LOCKED[canonicalize_name(name)].local, line


def test_the_lock_names_each_package_once_and_not_ferry() -> None:
    names = [canonicalize_name(line.split("==")[0]) for line in LINES]
    assert len(names) == len(set(names))
    assert "onnx-ferry" not in names


def test_no_two_distributions_of_onnx_runtime_are_locked_for_one_machine() -> None:
    locked = [name for name in LOCKED if name.startswith("onnxruntime")]
    assert locked
    assert len({LOCKED[name] for name in locked}) == 1


def test_the_tree_holds_no_absolute_path_of_a_machine() -> None:
    for path in (ROOT / "pyproject.toml", ROOT / "requirements.lock", ROOT / "dvc.yaml"):
        assert not re.search(r"(file:|/home/|/root/|/tmp/)", path.read_text(encoding="utf-8")), path


def test_the_python_versions_agree() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    classifiers = [line for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert classifiers[0].endswith("3.11")


def test_documented_files_exist() -> None:
    assert (ROOT / PROJECT["readme"]).is_file()
    for name in PROJECT["license-files"]:
        assert (ROOT / name).is_file()
