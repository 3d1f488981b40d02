"""dvc.yaml tells the truth: its stages are the commands, and its lists are what the code reads."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import pytest
import yaml
from closure import PACKAGES, ROOT, closure, parsed
from settings_read import sections_read, takes_experiment

from pipeline.cli import ferry
from pipeline.config import layout
from pipeline.config.experiment import Defaults, Experiment, RegressionDefaults
from pipeline.project.new import artifact
from pipeline.records import record_of

DVC_YAML: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = DVC_YAML["stages"]
WORKING = [name for name in STAGES if name != "short"]
"""Those that make something; the last one only gathers."""
ALWAYS = ("pull", "machine")
"""Those that look at what DVC does not know, and always run."""
DEPENDING = [name for name in WORKING if name not in ALWAYS]
"""Those that run when what they depend on has changed."""
PER_EXPERIMENT = [
    name
    for name, stage in STAGES.items()
    if stage.get("foreach") == "${experiments}" and name != "check"
]
"""Those that make something of an experiment."""
REGISTRIES = {
    "pipeline/datasets": "datasets",
    "pipeline/models/${item.model.name}.py": "models",
}


def body(stage: str) -> dict[str, Any]:
    """What DVC runs, with or without a foreach."""
    described = STAGES[stage]
    return dict(described.get("do", described))


def paths(stage: str, kind: str) -> dict[str, dict[str, Any]]:
    """The files of a list and the settings of each."""
    entries = body(stage).get(kind, [])
    return {
        path: settings or {}
        for entry in entries
        for path, settings in (entry.items() if isinstance(entry, dict) else [(entry, {})])
    }


@cache
def code_of(stage: str) -> set[str]:
    """The files of code that a stage imports; those of a registry by their template."""
    files = set(closure(f"pipeline.stages.{stage}"))
    for entry, registry in REGISTRIES.items():
        if entry in body(stage)["deps"]:
            files.add(entry)
            for module in registered(ROOT / "pipeline" / registry):
                own = module.relative_to(ROOT).as_posix()
                found = closure(own.removesuffix(".py").replace("/", "."))
                files |= found if lies_under(own, entry) else found - {own}
    return {path for path in files if not is_empty(path)}


def registered(folder: Path) -> list[Path]:
    """The files whose names are keys."""
    return [*folder.glob("[!_]*.py"), *folder.glob("readers/[!_]*.py")]


def is_empty(path: str) -> bool:
    """Whether a package's `__init__` holds nothing but what the package is for."""
    return path.endswith("/__init__.py") and len(parsed(ROOT / path).body) <= 1


def is_code(path: str) -> bool:
    return path.split("/", maxsplit=1)[0] in PACKAGES


def lies_under(path: str, dependency: str) -> bool:
    return path == dependency or path.startswith(f"{dependency}/")


def read_by_the_command(stage: str) -> set[str]:
    """What the command itself reads of an experiment, such as where the data set lies."""
    own = ROOT / "pipeline" / "commands" / "stages" / f"{stage}.py"
    if not own.exists():
        return sections_read("pipeline.cli", stage)
    functions = [node.name for node in ast.parse(own.read_text()).body if named(node)]
    return set().union(
        *(sections_read(f"pipeline.commands.stages.{stage}", name) for name in functions)
    )


def named(node: ast.stmt) -> TypeGuard[ast.FunctionDef]:
    return isinstance(node, ast.FunctionDef)


def with_names(path: Path) -> str:
    return path.as_posix().replace("NAME", "${key}").replace("DATA", "${item.dataset}")


def test_the_stages_are_those_of_the_pipeline_in_order() -> None:
    assert list(STAGES) == [
        *("pull", "preprocess", "check", "machine", "teach", "train", "evaluate", "export"),
        *("quantize", "parity", "benchmark", "bundle", "report", "short"),
    ]


@pytest.mark.parametrize("stage", WORKING)
def test_a_stage_is_a_command_a_module_and_a_function(stage: str) -> None:
    argument = " ${key}" if "foreach" in STAGES[stage] else ""
    assert body(stage)["cmd"] == f"ferry {stage}{argument}"
    assert stage in ferry.commands
    tree = ast.parse((ROOT / "pipeline" / "stages" / f"{stage}.py").read_text())
    assert stage in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("stage", DEPENDING)
def test_the_code_that_a_stage_imports_lies_under_what_it_depends_on(stage: str) -> None:
    listed = [path for path in body(stage)["deps"] if is_code(path)]
    assert len(listed) == len(set(listed)), f"{stage} lists a path twice"
    needed = code_of(stage)
    lines = [
        f"add     - {path}, or its folder"
        for path in sorted(needed)
        if not any(lies_under(path, dependency) for dependency in listed)
    ]
    lines += [
        f"remove  - {dependency}"
        for dependency in listed
        if not any(lies_under(path, dependency) for path in needed)
    ]
    assert not lines, "\n".join([f"the deps of {stage} in dvc.yaml:", *lines])


@pytest.mark.parametrize("stage", DEPENDING)
def test_another_model_data_set_or_stage_leaves_a_stage_up_to_date(stage: str) -> None:
    listed = [path for path in body(stage)["deps"] if is_code(path)]
    for folder in ("pipeline/datasets", "pipeline/models", "pipeline/stages"):
        for module in (ROOT / folder).glob("[!_]*.py"):
            path = module.relative_to(ROOT).as_posix()
            if path not in code_of(stage):
                assert not any(lies_under(path, dependency) for dependency in listed), path


def test_no_stage_imports_code_that_dvc_does_not_see() -> None:
    ignored = [line for line in (ROOT / ".dvcignore").read_text().split() if is_code(line)]
    for path in sorted(set().union(*(code_of(stage) for stage in DEPENDING))):
        assert not any(lies_under(path, unseen) for unseen in ignored), path
    for unseen in ignored:
        assert (ROOT / unseen).exists(), unseen


@pytest.mark.parametrize("stage", PER_EXPERIMENT)
def test_the_model_is_templated(stage: str) -> None:
    deps = body(stage)["deps"]
    entry = "pipeline/models/${item.model.name}.py"
    assert (entry in deps) == ("pipeline/models/__init__.py" in deps)


@pytest.mark.parametrize("stage", PER_EXPERIMENT)
def test_the_parameters_of_a_stage_are_the_sections_that_it_reads(stage: str) -> None:
    read = sections_read(f"pipeline.stages.{stage}", stage) | read_by_the_command(stage)
    assert "dataset" in read
    assert read <= {field.name for field in fields(Experiment)}
    own = {f"experiments.${{key}}.{section}" for section in read - {"name"}}
    with_defaults = read & {field.name for field in fields(Defaults)}
    expected = own | {f"defaults.{section}" for section in with_defaults}
    if read & {field.name for field in fields(RegressionDefaults)}:
        expected.add("defaults.regression")
    assert sorted(body(stage)["params"]) == sorted(expected)


def test_each_section_that_a_stage_depends_on_is_there() -> None:
    """DVC stops at a missing key, long after it could have been told."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in PER_EXPERIMENT:
        for entry in body(stage)["params"]:
            for name in settings["experiments"]:
                node = settings
                for key in entry.replace("${key}", name).split("."):
                    assert key in node, f"{entry} of {name}"
                    node = node[key]


def test_no_function_keeps_an_experiment_for_later() -> None:
    # What it reads then could not be followed.
    imported = set().union(*(closure(f"pipeline.stages.{stage}") for stage in WORKING))
    for path in (ROOT / name for name in sorted(imported)):
        if path.suffix == ".py" and takes_experiment(path):
            assert not re.search(r"self\._?experiment\b", path.read_text()), path


def test_the_parameters_of_the_stages_of_a_data_set() -> None:
    assert body("preprocess")["params"] == ["datasets.${key}", "defaults.preprocess"]
    assert "params.dataset(params.load(), " in inspect.getsource(
        ferry.commands["preprocess"].callback
    )


def recorded(path: Path) -> list[Path]:
    """A file, and the record of its sha256 beside it."""
    return [path, record_of(path)]


OUTS = {
    "pull": [layout.raw("NAME")],
    "preprocess": [layout.ready("NAME")],
    "check": [layout.mark("NAME")],
    "machine": [layout.MACHINE],
    "teach": recorded(layout.taught("NAME")),
    "train": recorded(layout.weights("NAME")),
    "evaluate": [layout.pictures("NAME")],
    "export": recorded(layout.model("NAME")),
    "quantize": [layout.quantized("NAME")],
    "parity": [],
    "benchmark": [],
    "bundle": [layout.bundle("NAME")],
    "report": [layout.REPORT],
}


@pytest.mark.parametrize("stage", WORKING)
def test_outs_lie_where_the_layout_says(stage: str) -> None:
    outs = [with_names(path) for path in OUTS[stage]]
    if stage in PER_EXPERIMENT:
        outs.append(with_names(layout.report_files("NAME", stage).details))
    assert list(paths(stage, "outs")) == outs


def test_settings_are_read_before_training_and_by_nothing_that_it_loses() -> None:
    assert body("check")["params"] == ["experiments.${key}", "datasets", "defaults"]
    # A name that is wrong is told by ferry, and not by DVC for a file that is not there.
    assert "${item" not in str(STAGES["check"])


@pytest.mark.parametrize("stage", ALWAYS)
def test_what_lies_outside_is_always_looked_at(stage: str) -> None:
    # No file that DVC could know says that a picture of the user's own has changed.
    assert body(stage)["always_changed"] is True
    assert not body(stage).keys() & {"deps", "params"}


def test_what_is_true_of_one_machine_alone_is_not_pulled_from_another() -> None:
    for stage in ("machine", "report"):
        assert [*paths(stage, "outs").values()] == [{"cache": False}]


def test_raw_files_outlive_a_new_pull() -> None:
    # Else an interrupted download would start again from nothing.
    assert paths("pull", "outs")["data/raw/${key}"] == {"persist": True}


@pytest.mark.parametrize("stage", PER_EXPERIMENT)
def test_metrics_and_plots_are_files_for_git_and_details_are_for_the_cache(stage: str) -> None:
    files = layout.report_files("NAME", stage)
    outs, plots = paths(stage, "outs"), paths(stage, "plots")
    assert outs[with_names(files.details)] == {}
    # Among the plots, where they neither warn before they are made nor keep runs from the cache.
    assert plots.pop(with_names(files.metrics)) == {"cache": False}
    for path, settings in plots.items():
        assert path.startswith(with_names(layout.plots("NAME", stage)) + "/")
        assert settings["cache"] is False, path


def test_metrics_are_a_folder_so_that_those_of_what_has_not_run_are_not_missed() -> None:
    assert DVC_YAML["metrics"] == ["metrics"]
    assert (ROOT / "metrics").is_dir()


@pytest.mark.parametrize("stage", PER_EXPERIMENT)
def test_files_that_a_stage_reads_are_made_by_another(stage: str) -> None:
    made = {path for name in STAGES for path in paths(name, "outs")}
    made |= {with_names(layout.ready("DATA")), with_names(BEFORE)}
    data = [path for path in body(stage)["deps"] if not is_code(path)]
    assert with_names(layout.ready("DATA")) in data
    assert set(data) <= made


BEFORE = layout.mark("NAME").parent
"""The folder that holds the mark of each experiment, and what a teacher answered to some."""
WEIGHTS, MODEL = recorded(layout.weights("NAME")), recorded(layout.model("NAME"))
MODELS = [*MODEL, layout.quantized("NAME")]
MADE_BEFORE = {
    "train": [BEFORE],
    "evaluate": WEIGHTS,
    "export": [*WEIGHTS, layout.details("NAME", "train")],
    "quantize": [BEFORE, *WEIGHTS, *MODEL, layout.MACHINE],
    # No speeds: where quantization makes the same files again, what was proven of them stays.
    "parity": [*WEIGHTS, *MODELS],
    "benchmark": [*WEIGHTS, *MODELS, layout.MACHINE],
    "bundle": [
        *MODELS,
        *(layout.details("NAME", stage) for stage in ("train", "quantize", "parity", "benchmark")),
    ],
}


@pytest.mark.parametrize("stage", MADE_BEFORE)
def test_a_stage_waits_for_what_it_reads(stage: str) -> None:
    expected = {with_names(path) for path in (layout.ready("DATA"), *MADE_BEFORE[stage])}
    data = [path for path in body(stage)["deps"] if not is_code(path)]
    assert set(data) == expected


def test_a_student_waits_for_its_teacher() -> None:
    assert STAGES["teach"]["foreach"] == "${students}"
    made = [*recorded(layout.weights("NAME")), layout.details("NAME", "train")]
    data = [path for path in body("teach")["deps"] if not is_code(path)]
    assert data == [with_names(path).replace("${key}", "${item}") for path in made]
    assert layout.taught("NAME").parent == BEFORE
    assert set(body("teach")["params"]) == {
        "experiments.${key}.train",
        "defaults.train",
        "defaults.regression",
    }


def test_dvc_trains_the_teacher_then_asks_it_then_trains_the_student(tmp_path: Path) -> None:
    for name in (layout.PARAMS, layout.DVC_YAML):
        shutil.copy(ROOT / name, tmp_path)
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    command = [*dvc, "dag", "--dot", "train@cifar10-resnet8"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    edges = set(re.findall(r'"([^"]+)" -> "([^"]+)"', done.stdout))
    student, teacher, asked = "train@cifar10-resnet8", "train@cifar10-wide", "teach@cifar10-resnet8"
    assert {(teacher, asked), (asked, student)} <= edges


def test_the_bundle_of_each_experiment_is_an_artifact() -> None:
    experiments = yaml.safe_load((ROOT / "params.yaml").read_text())["experiments"]
    lines = [
        artifact(name, one["dataset"], one["model"]["name"]) for name, one in experiments.items()
    ]
    assert (ROOT / "dvc.yaml").read_text().endswith("\n".join(["artifacts:", *lines, ""]))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_it_does(stage: str) -> None:
    assert body(stage)["desc"].endswith(".")


def test_one_target_makes_the_short_experiments() -> None:
    assert STAGES["short"]["foreach"] == "${short}"
    assert body("short") == {
        "desc": body("short")["desc"],
        "cmd": "ferry results ${item}",
        "deps": ["bundles/${item}", "reports/details/${item}/evaluate.json"],
    }


def test_the_report_waits_for_all_reports_and_pictures() -> None:
    assert layout.DETAILS.as_posix() in body("report")["deps"]
    assert layout.PICTURES.as_posix() in body("report")["deps"]
    assert layout.MACHINE.as_posix() in body("report")["deps"]
    assert "foreach" not in STAGES["report"]
