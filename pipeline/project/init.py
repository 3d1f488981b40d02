"""`ferry init my-project`: a folder with a data set, a model and an experiment that runs at once.

Its stages are those of ferry's own dvc.yaml. They depend on the version of ferry where those depend
on its source files, and on the project's own package.
"""

import contextlib
import importlib.util
import io
import keyword
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline import datasets
from pipeline.config.layout import DVC_YAML, PARAMS
from pipeline.config.params import brought_along
from pipeline.config.yamlfile import parse_yaml
from pipeline.project.new import artifact
from serving.errors import EngineError, OutputError, UnknownNameError
from serving.files import csv_text, write_text

TEMPLATES = Path(__file__).with_name("templates")
VERSION_CONTROL = {".git", ".dvc", ".dvcignore"}
"""What a folder may hold and count as empty."""
SKLEARN_DATA = "datasets/data"
"""Inside of scikit-learn."""
IMAGES_PER_CLASS = 100
FLOWER_COLUMNS = ("sepal_length", "sepal_width", "petal_length", "petal_width", "species")
MOST_NAMED = 3
MADE_FOLDERS = {
    *("bundles", "data", "metrics", "models", "mlruns", "plots", "registry", "reports"),
    "tracking",
}
"""What stages write, which is no place for sources."""
HEADER = """\
# The stages of ferry. What they depend on is data, settings, the project's own package and, as
# `ferry` in params.yaml, the version of ferry. To change what a stage does, change params.yaml.
"""
STAGE = re.compile(r"^(?=  \w+:$)", re.MULTILINE)
MARK = "models/${key}/before"
OWN_CODE = {"preprocess": ["datasets"], "check": ["datasets", "models"]}
"""The stages that depend on folders of the project's package."""
CODE = re.compile(r"^(?: +#.*\n)* +- (?:pipeline|serving)\b.*\n", re.MULTILINE)
"""A line of code that a stage depends on, and what is said of it above."""
NO_DEPS = re.compile(r"^ +deps:\n(?= +outs:)", re.MULTILINE)
OWN_TARGET = "  # `dvc repro short`"
"""Where the stage begins that only ferry's many experiments need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewProject:
    """What was made."""

    folder: Path
    package: str
    """The folder of its own data sets and models."""
    files: tuple[str, ...]
    """Relative to the folder."""


def init(folder: Path, template: str = "digits") -> NewProject:
    """Make a project in `folder`, which is empty or not there yet, and leave it all or nothing.

    Git and DVC are initialised where they are not; in a repository of git's the project is a part
    of it. Raises OutputError for a folder that holds something, UnknownNameError for a template
    that does not exist, and EngineError for git or DVC that will not.
    """
    if template not in templates():
        raise UnknownNameError("template", template, templates())
    _refuse_full(folder)
    folder = folder.absolute()
    package = package_name(folder.name)
    files = {**_files(folder.name, package, template), **SAMPLES.get(template, dict[str, bytes])()}
    with _all_or_nothing(folder):
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        _initialise(folder)
    return NewProject(folder=folder, package=package, files=tuple(files))


def templates() -> tuple[str, ...]:
    """The projects that one can begin with."""
    return tuple(sorted(path.stem for path in TEMPLATES.glob("*.yaml")))


def package_name(name: str) -> str:
    """The name of a folder as that of a Python package that hides no other one."""
    made = re.sub(r"\W+", "_", name.lower(), flags=re.ASCII).strip("_")
    taken = made in MADE_FOLDERS or keyword.iskeyword(made) or not made.isidentifier()
    return f"project_{made}".rstrip("_") if taken or _is_installed(made) else made


def _is_installed(package: str) -> bool:
    found = importlib.util.find_spec(package)
    # A folder without an __init__ may be the very one that is to be filled.
    return found is not None and found.origin is not None


def stages(text: str, package: str) -> str:
    """Turn ferry's own dvc.yaml into that of a project."""
    own = text.partition(OWN_TARGET)[0].rstrip().partition("\n\n")[2] + "\n"
    top, *bodies = STAGE.split(own)
    return "\n".join([HEADER, top + "".join(_stage(body, package) for body in bodies)])


def _artifacts(settings: str, template: str) -> str:
    """The section of dvc.yaml with the bundle of each experiment of a template."""
    experiments = parse_yaml(settings, template)["experiments"].items()
    entries = [artifact(name, one["dataset"], one["model"]["name"]) for name, one in experiments]
    return "\n".join(["\nartifacts:", *entries, ""])


def _stage(body: str, package: str) -> str:
    """A stage that depends on the version of ferry and on the package in place of its sources.

    What an experiment's model is made of stands in the mark of `check`, so that another model
    leaves the stages up to date.
    """
    for kind in OWN_CODE.get(body.strip().partition(":")[0], ()):
        code = rf"^(?: +#.*\n)*( +)- pipeline/{kind}(?:/__init__\.py)?$"
        body = re.sub(code, rf"\1- {package}/{kind}", body, flags=re.MULTILINE)
    if MARK not in body:
        body = re.sub(r"- pipeline/models/\$\{.*", f"- {MARK}", body)
    body = NO_DEPS.sub("", CODE.sub("", body))
    if "params: [" in body:
        return body.replace("params: [", "params: [ferry, ", 1)
    return re.sub(r"^( +)(cmd: .*\n)", r"\1\2\1params: [ferry]\n", body, flags=re.MULTILINE)


def _refuse_full(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder that is empty or not there yet")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    there = sorted(found - VERSION_CONTROL)
    if there:
        more = f" and {len(there) - MOST_NAMED} more" if len(there) > MOST_NAMED else ""
        raise OutputError(
            f"{folder} is not empty: it holds {', '.join(there[:MOST_NAMED])}{more}; a project "
            f"begins in a folder that is empty or not there yet"
        )


def _files(name: str, package: str, template: str) -> dict[str, bytes]:
    """What is in each file, by its path in the project."""
    own = brought_along(PARAMS).read_text(encoding="utf-8")
    defaults = re.search(r"^(?:#.*\n)*defaults:\n(?: .*\n)+", own, re.MULTILINE)
    head = f"ferry: {metadata.version('onnx-ferry')}  # the version that the stages are of"
    places = f"package: {package}  # has datasets/ and models/ of your own\nmirrors: []"
    places += "\nstudents: {}  # the teacher of each experiment that has one, by name"
    texts = {path.name: path.read_text(encoding="utf-8") for path in TEMPLATES.iterdir()}
    readme = texts["README.md"].replace("my_project", package).replace("my-project", name)
    files = {
        "params.yaml": "\n".join(
            [f"{head}\n{places}\n", texts[f"{template}.yaml"], defaults[0] if defaults else ""]
        ),
        "dvc.yaml": stages(brought_along(DVC_YAML).read_text(encoding="utf-8"), package)
        + _artifacts(texts[f"{template}.yaml"], template),
        f"{package}/__init__.py": f'"""What {name} has of its own."""\n',
        f"{package}/datasets/__init__.py": '"""The data sets, one file each."""\n',
        f"{package}/models/__init__.py": '"""The models, one file each."""\n',
        "metrics/README.md": "The few numbers of each stage that has run: `dvc metrics show`.\n",
        "README.md": readme,
        ".gitignore": texts["gitignore"],
        ".dvcignore": texts["dvcignore"],
    }
    return {path: text.encode() for path, text in files.items()}


@contextlib.contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """Remove what a block wrote to the folder, and the folder if it is new, unless it ends."""
    before = set(folder.iterdir()) if folder.exists() else set()
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    done = False
    try:
        yield
        done = True
    finally:
        if not done and new:
            shutil.rmtree(new[-1])
        elif not done:
            _remove(set(folder.iterdir()) - before)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _initialise(folder: Path) -> None:
    """Begin a repository of git's unless this is a part of one, and one of DVC's."""
    above = _run(folder, "git", "rev-parse", "--show-prefix", may_fail="not a git repository")
    if above is None:
        _run(folder, "git", "init", "--quiet")
    if not (folder / ".dvc").exists():
        part = ["--subdir"] if above else []
        _run(folder, sys.executable, "-P", "-m", "dvc", "init", "--quiet", *part)
        # It reports its use to nobody, unless its owner says otherwise.
        write_text(folder / ".dvc" / "config", "[core]\n    analytics = false\n")


def _run(folder: Path, *command: str, may_fail: str | None = None) -> str | None:
    """What a command prints; None where it says `may_fail`."""
    environment = os.environ | {"LC_ALL": "C", "DVC_NO_ANALYTICS": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise EngineError(f"{command[0]} is not installed, and a project needs it") from error
    if done.returncode == 0:
        return done.stdout.strip()
    if may_fail and may_fail in done.stderr:
        return None
    said = " ".join((done.stderr or done.stdout).split())
    raise EngineError(f"`{' '.join(command)}` failed in {folder}: {said}")


# The data of templates that have their own, made of what comes inside scikit-learn


def _images() -> dict[str, bytes]:
    """PNG files of handwritten digits by their path: `images/7/012.png`, 8 x 8, grey."""
    with resources.as_file(resources.files("sklearn") / SKLEARN_DATA) as raw:
        rows = datasets.get("digits").read(raw).train
    return {
        f"images/{label}/{number:03}.png": _png(pixels)
        for label in range(int(rows.labels.max()) + 1)
        for number, pixels in enumerate(rows.inputs[rows.labels == label][:IMAGES_PER_CLASS])
    }


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    # They go from 0 to 16.
    Image.fromarray(pixels[..., 0] * np.uint8(15)).save(file, "PNG")
    return file.getvalue()


def _flowers() -> dict[str, bytes]:
    """`flowers.csv`, iris: four measures of 150 flowers, and the species of each."""
    file = resources.files("sklearn") / SKLEARN_DATA / "iris.csv"
    (_, _, *species), *rows = (line.split(",") for line in file.read_text().splitlines())
    named = [[*values, species[int(label)]] for *values, label in rows]
    return {"flowers.csv": csv_text(FLOWER_COLUMNS, named).encode()}


SAMPLES: dict[str, Callable[[], dict[str, bytes]]] = {"image_folder": _images, "table": _flowers}
