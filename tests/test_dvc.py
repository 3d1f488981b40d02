"""The pipeline as a user drives it: `dvc repro` and its kin, on a small experiment of its own.

One project is built once; the tests run in the order of the file, and each leaves it as it was.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from pipeline.project.lineage import lineage

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "digits-cnn"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(
    folder: Path, *command: str, check: bool = True, processor: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment without a terminal and without any network.

    With the name of a `processor` it takes the machine for another one.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1"}
    environment["FERRY_TRACK"] = "false"  # MLflow takes seconds to start
    environment["FERRY_PROCESSOR"] = processor
    for name in ("FERRY_MIRROR", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with the sources of this one and a small experiment, run once."""
    folder = tmp_path_factory.mktemp("dvc") / "ferry"
    folder.mkdir()
    for name in ("pipeline", "serving", ".dvc", "dvc.yaml", "metrics", ".gitignore", ".dvcignore"):
        source = REPOSITORY / name
        ignore = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local", "*.json")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    settings = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    experiment = settings["experiments"][NAME]
    experiment["epochs"] = 3
    experiment["evaluate"] |= {"rows": 20, "steps": 2}
    experiment["benchmark"] |= {"batch_sizes": [1, 4], "seconds": 0.05, "threads": [1]}
    experiment["benchmark"] |= {"baselines": ["eager"], "growth_calls": 0, "cold_starts": 0}
    # Both variants are made, whatever else the machine does meanwhile.
    experiment["quantize"] |= {"accuracy_loss": 5.0, "min_speedup": {"fp16": 0.01, "int8": 0.01}}
    experiment["quantize"] |= {"recipes": ["half", "static-u8u8"], "seconds": 0.05}
    experiment["parity"]["int8"]["flips"] = 20
    experiment["parity"]["int8"]["accuracy_loss"] = 5.0
    experiment["parity"] |= {"batch_sizes": [1, 64], "levels": ["all"], "exporters": ["dynamo"]}
    settings["experiments"] = {NAME: experiment}
    settings |= {"short": [NAME], "students": {}}
    settings["datasets"] = {"digits": settings["datasets"]["digits"]}
    settings["datasets"]["own"] = {"reader": "table", "path": "own.csv", "label": "sign"}
    rows = [f"{number},{number % 3},{'+-'[number % 2]}" for number in range(20)]
    (folder / "own.csv").write_text("\n".join(["x,y,sign", *rows]))
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "config", "user.name", "tester")
    run(folder, "git", "config", "user.email", "tester@example.org")
    commit(folder, "sources")
    shown = run(folder, "dvc", "metrics", "show")
    assert (shown.stdout, shown.stderr) == ("", "")
    run(folder, "dvc", "repro")
    new = run(folder, "git", "status", "--short").stdout.splitlines()
    assert new == ["?? dvc.lock", f"?? metrics/{NAME}/", "?? plots/"]
    commit(folder, "results")
    return folder


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", message)


def restore(folder: Path) -> None:
    run(folder, "git", "checkout", "--quiet", ".")
    run(folder, "dvc", "checkout", "--force", "--quiet")


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that `dvc repro` did not skip."""
    return re.findall(r"^Running stage '(.*)':$", done.stdout, re.MULTILINE)


def stale(folder: Path) -> list[str]:
    """The stages that a change made stale; those that look outside of DVC are run each time."""
    with contextlib.chdir(folder), Repo() as repo:
        found = repo.status()
    return sorted(stage for stage, why in found.items() if why != ["always changed"])


def test_everything_has_been_made(project: Path) -> None:
    for path in (
        f"models/{NAME}/model.onnx",
        *(f"models/{NAME}/quantized/model.{variant}.onnx" for variant in ("fp16", "int8")),
        f"reports/pictures/{NAME}/saliency.svg",
        f"bundles/{NAME}/manifest.json",
        "reports/index.html",
    ):
        assert (project / path).exists(), path
    assert run(project, "ferry", "verify", f"bundles/{NAME}").returncode == 0
    revision = run(project, "git", "rev-parse", "HEAD~1").stdout.strip()
    trained = json.loads((project / f"reports/details/{NAME}/train.json").read_text())
    assert trained["git_revision"] == revision


def test_what_is_done_is_not_done_again(project: Path) -> None:
    assert ran(run(project, "dvc", "repro")) == ["pull@digits", "pull@own", "machine"]


def test_a_change_of_the_users_own_data_makes_stale_what_was_made_of_it(project: Path) -> None:
    path = project / "own.csv"
    path.write_text(path.read_text().replace("19,1,-", "19,1.5,-"))
    run(project, "dvc", "repro", "pull@own")
    assert stale(project) == ["preprocess@own"]
    restore(project)


def test_large_files_stay_out_of_git(project: Path) -> None:
    tracked = run(project, "git", "ls-files").stdout.split()
    assert f"metrics/{NAME}/parity.json" in tracked
    assert f"plots/{NAME}/train/history.csv" in tracked
    assert [path for path in tracked if path.startswith(("data/", "models/", "bundles/"))] == []
    run(project, "git", "check-ignore", "mlflow.db", "mlflow.db-journal", "mlruns/1")


def test_metrics_and_plots_show(project: Path) -> None:
    done = run(project, "dvc", "metrics", "show")
    assert done.stderr == ""
    header, *rows = done.stdout.splitlines()
    assert header.split()[:2] == ["Path", "accuracy"]
    assert len(rows) == 7
    assert max(map(len, (header, *rows))) <= 160
    for stage in ("train", "parity"):
        flat = json.loads((project / f"metrics/{NAME}/{stage}.json").read_text())
        assert 0.5 < flat["accuracy"] <= 1
    run(project, "dvc", "plots", "show", "--out", ".dvc/tmp/page")
    page = (project / ".dvc/tmp/page/index.html").read_text()
    for title in ("Validation accuracy", "Confusion", "Latency against throughput"):
        assert title in page


def test_an_experiment_with_other_settings_of_its_own_and_inherited_ones(project: Path) -> None:
    inherited = f"experiments.{NAME}.bundle.golden_rows=4"
    refused = run(project, "dvc", "exp", "run", "--set-param", inherited, check=False)
    assert f"To append to your config use +{inherited}" in refused.stderr
    settings = ("-S", f"experiments.{NAME}.epochs=1", "-S", f"++{inherited}")
    run(project, "dvc", "exp", "run", *settings, f"train@{NAME}")
    resolved = json.loads(run(project, "ferry", "config", NAME, "--json").stdout)
    assert resolved["bundle.golden_rows"] == {"value": 4, "source": f"experiments.{NAME}"}
    assert resolved["bundle.goal"] == {"value": "latency", "source": "defaults"}
    lines = run(project, "dvc", "metrics", "diff").stdout.splitlines()
    assert lines[0].split() == ["Path", "Metric", "HEAD", "workspace", "Change"]
    assert {line.split()[0] for line in lines[1:]} == {f"metrics/{NAME}/train.json"}
    assert [line.split()[1] for line in lines[1:]] == ["accuracy", "loss"]
    restore(project)


TRAINED = ("train", "evaluate", "export", "quantize", "parity", "benchmark")
OVERRIDES = {
    f"experiments.{NAME}.train.lr=0.02": TRAINED,
    "defaults.train.weight_decay=0.1": TRAINED,
    f"++experiments.{NAME}.parity.fp32.flips=1": ("quantize", "parity"),
    f"++experiments.{NAME}.bundle.golden_rows=4": ("bundle",),
    "defaults.evaluate.steps=3": ("evaluate",),
    "defaults.preprocess.seed=2": (),
}


@pytest.mark.parametrize(("setting", "stages"), OVERRIDES.items(), ids=OVERRIDES)
def test_an_override_makes_stale_what_reads_its_section(
    project: Path, setting: str, stages: tuple[str, ...]
) -> None:
    # What `dvc exp run --set-param` does before it runs anything.
    apply_overrides(project / "params.yaml", [setting])
    found = stale(project)
    run(project, "git", "checkout", "--quiet", "params.yaml")
    expected = [f"{stage}@{NAME}" for stage in ("check", *stages)]
    expected += [] if stages else ["preprocess@digits", "preprocess@own"]
    assert found == sorted(expected)


def test_one_changed_file_makes_stale_what_it_made(project: Path) -> None:
    source = project / "pipeline/models/cnn.py"
    source.write_text(source.read_text() + "\n# a change\n")
    names = stale(project)
    assert f"train@{NAME}" in names
    assert "preprocess@digits" not in names
    other = project / "pipeline/models/mlp.py"
    restore(project)
    other.write_text(other.read_text() + "\n# a change\n")
    assert stale(project) == []
    restore(project)


def test_a_misspelt_name_is_told_and_costs_nothing_that_was_made(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("dataset: digits", "dataset: digit"))
    done = run(project, "dvc", "repro", f"bundle@{NAME}", check=False)
    assert "no data set named 'digit'; did you mean 'digits'?" in done.stderr
    assert "Errno" not in done.stderr
    assert run(project, "git", "status", "--short").stdout == " M params.yaml\n"
    restore(project)
    assert stale(project) == []


def test_a_gate_that_is_not_met_stops_the_pipeline_and_keeps_the_report(project: Path) -> None:
    path = project / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["experiments"][NAME]["parity"]["fp16"]["max_abs_diff"] = 1.0e-9
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    stages = (f"parity@{NAME}", f"bundle@{NAME}")
    done = run(project, "dvc", "repro", "--single-item", *stages, check=False)
    assert done.returncode != 0
    assert ran(done) == [f"parity@{NAME}"]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert line.startswith(f"Error: {NAME} fp16: ")
    assert ", limit 1.0e-09, " in line
    assert "; first divergence at " in line
    assert line.endswith(f"see reports/details/{NAME}/parity.json")
    report = json.loads((project / f"reports/details/{NAME}/parity.json").read_text())
    assert report["variants"]["fp16"]["passed"] is False
    assert "Traceback" not in done.stderr
    restore(project)


def test_a_run_from_the_cache_needs_no_training(project: Path) -> None:
    shutil.rmtree(project / "models")
    done = run(project, "dvc", "repro", f"train@{NAME}")
    assert "> ferry train" not in done.stdout
    assert (project / f"models/{NAME}/model.safetensors").exists()
    restore(project)


# Lineage


def flipped(path: Path, at: int = -1) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edited(before: str, after: str) -> Callable[[Path], None]:
    """Change the first match of a pattern."""

    def edit(path: Path) -> None:
        text, count = re.subn(before, after, path.read_text(), count=1, flags=re.DOTALL)
        assert count
        path.write_text(text)

    return edit


BITS = {
    "data": ("data/ready/digits/train_inputs.npy", flipped),
    "params": ("params.yaml", edited("lr: 0.01", "lr: 0.03")),
    "git": (
        f"reports/details/{NAME}/train.json",
        edited(r'("git_revision": ")\w{8}', r"\g<1>00000000"),
    ),
    "weights": (f"models/{NAME}/model.safetensors", flipped),
    "onnx fp32": (f"models/{NAME}/model.onnx", flipped),
    "onnx int8": (f"models/{NAME}/quantized/model.int8.onnx", flipped),
    "bundle": (f"bundles/{NAME}/golden.npz", flipped),
    "dvc.lock": ("dvc.lock", edited(r"(export@.*?outs:.*?md5: )\w{8}", r"\g<1>00000000")),
    "predictions": ("out.csv.manifest.jsonl", edited(r'(model_sha256": ")\w{8}', r"\g<1>00000000")),
}


def test_what_was_predicted_is_traced_back_to_data_and_commit(project: Path) -> None:
    run(project, "ferry", "predict", f"bundles/{NAME}", "digits:test", "--output", "out.csv")
    run(project, "ferry", "lineage", "out.csv")
    found = json.loads(run(project, "ferry", "lineage", "out.csv", "--json").stdout)
    links = {link["name"]: link for link in found["links"]}
    assert found["experiment"] == NAME
    assert {link["state"] for link in links.values()} == {"proven"}
    assert links.keys() >= {"data", "params", "git", "weights", "onnx fp32", "dvc.lock"}
    assert links["data"]["fingerprint"].endswith(".dir")
    assert links["git"]["fingerprint"] == run(project, "git", "rev-parse", "HEAD~1").stdout.strip()


@pytest.mark.parametrize("link", BITS)
def test_one_bit_changed_is_told_at_its_link(project: Path, link: str) -> None:
    name, change = BITS[link]
    path, subject = project / name, "out.csv" if link == "predictions" else NAME
    given = str(project / subject) if link == "predictions" else NAME
    assert not lineage(given, project).broken
    before = path.read_bytes()
    try:
        path.unlink()  # it may be shared with DVC's cache
        path.write_bytes(before)
        change(path)
        assert lineage(given, project).broken[0].name == link
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", [f"models/{NAME}/model.safetensors", f"bundles/{NAME}"])
def test_a_copy_is_known_by_its_hash(project: Path, tmp_path: Path, name: str) -> None:
    copy = Path(run(project, "cp", "-rv", name, str(tmp_path)).stdout.split("'")[3])
    found = lineage(str(copy), project)
    assert (found.experiment, found.broken) == (NAME, ())
    flipped(copy if copy.is_file() else copy / "model.onnx")
    assert lineage(str(copy), project).broken[-1].subject == str(copy)


# Rot


@pytest.mark.parametrize("in_the_cache", [False, True])
def test_what_has_rotted_is_told_and_the_advice_brings_it_back(
    project: Path, in_the_cache: bool
) -> None:
    path = project / f"models/{NAME}/quantized/model.int8.onnx"
    whole = path.read_bytes()
    (kept,) = (
        one for one in project.glob(".dvc/cache/files/md5/??/*") if one.read_bytes() == whole
    )
    for one in (path, kept) if in_the_cache else (path,):
        times = one.stat()
        one.chmod(0o644)
        flipped(one, at=len(whole) // 2)
        os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))  # so that DVC does not look
    for stage in ("bundle",) if in_the_cache else ("parity", "benchmark", "bundle"):
        told = run(project, "ferry", stage, NAME, check=False).stderr
        assert told.startswith(f"Error: {path.relative_to(project)} has sha256 "), told
        assert f", quantize@{NAME} recorded " in told
        assert len(told.splitlines()) == 1
    looked = run(project, "ferry", "doctor", "--cache", "--json", check=False)
    assert looked.returncode == in_the_cache
    run(project, "bash", "-ec", "\n".join(json.loads(looked.stdout)["fix"]))
    (advised,) = re.findall(r"`(rm .* && dvc checkout \S+)`", told)
    run(project, "bash", "-ec", advised)
    assert path.read_bytes() == whole
    assert run(project, "ferry", "doctor", "--cache").returncode == 0
    assert in_the_cache or stale(project) == []
    restore(project)


# A colleague


def test_a_colleague_restores_what_is_proven_and_measures_what_is_fast(
    project: Path, tmp_path: Path
) -> None:
    run(project, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    run(project, "dvc", "push")
    commit(project, "remote")
    run(project, "gto", "register", NAME)
    fetched = tmp_path / "fetched"
    run(tmp_path, "dvc", "artifacts", "get", str(project), NAME, "--out", str(fetched))
    theirs = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(project), str(theirs))
    settings = yaml.safe_load((theirs / "params.yaml").read_text())
    settings["experiments"]["later"] = settings["experiments"][NAME]
    (theirs / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run(theirs, "dvc", "pull", "--allow-missing")
    assert run(theirs, "ferry", "verify", str(fetched)).returncode == 0
    assert run(theirs, "ferry", "verify", f"bundles/{NAME}").returncode == 0
    shown = run(theirs, "ferry", "results", "--json", processor="another one")
    assert {row["p50_ms"] for row in json.loads(shown.stdout)} == {None}
    assert "measured on another machine" in shown.stderr
    done = run(theirs, "dvc", "repro", f"bundle@{NAME}", processor="another one")
    measured = [f"{stage}@{NAME}" for stage in ("quantize", "benchmark", "bundle")]
    assert sorted(ran(done)) == sorted(["pull@digits", "machine", *measured])
    shown = run(theirs, "ferry", "results", "--json", processor="another one")
    assert None not in {row["p50_ms"] for row in json.loads(shown.stdout)}
