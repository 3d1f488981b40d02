"""What is installed: the wheel's files, which ONNX Runtime it asks for, and the locked versions."""

import contextlib
import email
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from closure import PACKAGES, ROOT
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
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


# A release


def run(*command: str, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, commit_time: str) -> Path:
    """A repository elsewhere with the same files, of other times and modes."""
    folder = tmp_path_factory.mktemp("elsewhere") / "a checkout"
    listed = run("git", "ls-files", "-z", "-co", "--exclude-standard", folder=ROOT)
    if listed.returncode:
        pytest.skip("these sources are no git repository, and a release is made of a commit")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for command in (("init",), ("add", "--all", "--force"), (*identity, "commit", "--message=x")):
        done = run("git", *command, folder=folder, GIT_COMMITTER_DATE=f"{commit_time} +0900")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def released(checkout: Path, wheel: zipfile.ZipFile) -> Path:
    """The folder that `make release` fills, for somebody with another umask in another zone."""
    command = ("sh", "-c", 'umask 077; exec "$0" .ci/release.py', sys.executable)
    done = run(*command, folder=checkout, TZ="Asia/Tokyo", PYTHONPATH=str(checkout))
    assert done.returncode == 0, done.stderr
    folder = checkout / "dist"
    assert done.stdout.split() == sorted(f"dist/{path.name}" for path in folder.iterdir())
    return folder


def test_a_release_has_the_same_bytes_wherever_it_is_built(
    released: Path, wheel: zipfile.ZipFile
) -> None:
    here = sorted(Path(wheel.filename or "").parent.iterdir())
    assert len(here) == 2
    for path in here:
        assert (released / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_sums_of_a_release_are_those_of_its_files(released: Path) -> None:
    done = run("sha256sum", "--check", "--strict", "SHA256SUMS", folder=released)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list(released.iterdir())) - 1 == 3


def test_the_bill_of_a_release_has_what_the_wheel_brings_along(released: Path) -> None:
    (path,) = released.glob("*.cdx.json")
    text = path.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    parts = {part["name"]: part for part in bill["components"]}
    for name, part in parts.items():
        assert part.get("version", str(LOCKED.get(name))) == str(LOCKED.get(name)), name
    required = {name for name, part in parts.items() if part["scope"] == "required"}
    assert required >= {Requirement(one).name for one in PROJECT["dependencies"]} & set(parts)
    assert {"numpy", "click"} <= required
    assert not required & {"torch", "mlflow", "dvc"}
    assert {"torch", "mlflow", "dvc", "ray", "s3fs"} <= set(parts)
    assert not {"ruff", "pytest"} & set(parts), "those of the extra dev are not shipped"
    needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert set(needs) == {"onnx-ferry", *parts}
    (sha256,) = bill["metadata"]["component"]["hashes"]
    assert sha256["content"] in (released / "SHA256SUMS").read_text()


def test_what_is_not_committed_is_not_released(released: Path, checkout: Path) -> None:
    (checkout / "stray.py").touch()
    done = run(sys.executable, ".ci/release.py", folder=checkout, PYTHONPATH=str(checkout))
    assert (done.returncode, done.stderr) == (1, "commit first: ?? stray.py\n")


@contextlib.contextmanager
def database(*answers: Any) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers with one after the other; its address, and what it was asked."""
    asked, waiting = [], list(answers)

    class Database(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(waiting.pop(0))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Database) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def audit(address: str) -> "subprocess.CompletedProcess[str]":
    command = (sys.executable, ".ci/audit.py")
    return run(*command, folder=ROOT, FERRY_ADVISORIES=address, no_proxy="*")


def test_an_audit_prints_each_advisory_of_a_locked_version() -> None:
    results: list[dict[str, Any]] = [{} for _ in LINES]
    with database(json.dumps({"results": results}).encode()) as (address, asked):
        done = audit(address)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"0 advisories of {len(LINES)} packages\n"
    name, _, version = LINES[3].partition("==")
    query = {"package": {"ecosystem": "PyPI", "name": name}, "version": version}
    assert asked[0]["queries"][3] == query
    results[3] = {"vulns": [{"id": "PYSEC-2"}], "next_page_token": "more"}
    more = {"results": [{"vulns": [{"id": "GHSA-1"}]}]}
    with database(*(json.dumps(one).encode() for one in ({"results": results}, more))) as it:
        done = audit(it[0])
        assert done.returncode == 1
        lines = [
            f"{name} {version}: {one} https://osv.dev/vulnerability/{one}"
            for one in ("GHSA-1", "PYSEC-2")
        ]
        assert done.stdout.splitlines() == lines
        assert it[1][1] == {"queries": [{**query, "page_token": "more"}]}


@pytest.mark.parametrize(
    "answer", [b"<html>Sign in</html>", b"{}", b'{"results": []}', b'{"results": [1]}', None]
)
def test_an_audit_that_could_not_ask_is_no_pass(answer: bytes | None) -> None:
    with database(answer) as (address, _):
        done = audit(address if answer else "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr.startswith("could not ask http://127.0.0.1:")
    assert len(done.stderr.splitlines()) == 1
