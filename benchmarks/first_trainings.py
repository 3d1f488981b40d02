"""Whether trainings that are the first ones in a project, and queued ones, all leave their runs.

Run: python benchmarks/first_trainings.py --pairs 20 [--jobs 2] [--publish docs/results]

Takes about 15 minutes. Two real `ferry train` at once in a project that has no store yet, again and
again, and `ferry track --sync` after them; then four experiments of `dvc exp run --queue`, which
`dvc queue start -j 2` runs in copies of the project. Aims: every store whole, every run in it; four
runs in the store of the project itself.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from benching import Line, parser, show

from pipeline.tracking.journal import journals
from pipeline.tracking.store import load_mlflow

EXPERIMENT, OTHER = "xor-linear", "xor-mlp"
FERRY = [sys.executable, "-c", "from pipeline.cli import main; main()"]
QUEUED = 4
SECONDS_OF_QUEUE = 300.0


def main() -> None:
    """Train in pairs and in a queue; exit status 1 when anything is not as it must be."""
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=20)
    arguments.add_argument("--jobs", type=int, default=1, help="Pairs at once.")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepare(folder / "prepared")
        lines = list(pairs(prepared, given.pairs, given.jobs))
        lines.append(queue(prepared))
    show(lines, given.publish)
    sys.exit(any(line.met is False for line in lines))


def prepare(project: Path) -> Path:
    """A project with the preprocessed data."""
    project.mkdir()
    for name in ("params.yaml", "dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(name, project)
    for name in ("pipeline", "serving"):  # which the stages depend on
        shutil.copytree(name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    dataset = EXPERIMENT.partition("-")[0]
    for command in ("pull", "preprocess"):
        run([*FERRY, command, dataset], project)
    return project


def pairs(prepared: Path, count: int, jobs: int) -> Iterator[Line]:
    """Two first trainings at once."""

    def train(number: int) -> tuple[bool, bool]:
        project = prepared.with_name(f"pair-{number}")
        shutil.copytree(prepared, project)
        both = [
            started([*FERRY, "train", name, "--set", "epochs=20"], project)
            for name in (EXPERIMENT, OTHER)
        ]
        ended = [process.wait() for process in both] == [0, 0]
        synced = run([*FERRY, "track", "--sync"], project) == 0
        found = (is_whole(project), ended and synced and runs(project) == ["FINISHED"] * 2)
        print(f"pair {number}: whole {found[0]}, both runs {found[1]}", flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(train, range(1, count + 1)))
    for what, good in (
        ("two first trainings at once: the store is whole", sum(one for one, _ in found)),
        ("both of their runs are in it", sum(both for _, both in found)),
    ):
        yield Line(what, f"{good} of {count}", f"{count} of {count}", good == count)


def queue(prepared: Path) -> Line:
    """Experiments that DVC runs in copies of the project."""
    project = prepared.with_name("queued")
    shutil.copytree(prepared, project)
    for command in (
        ["git", "init", "--quiet"],
        ["dvc", "init", "--quiet"],
        ["dvc", "repro", "--quiet", f"preprocess@{EXPERIMENT.partition('-')[0]}"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "--quiet", "-mx"],
    ):
        run(command, project)
    for seed in range(QUEUED):
        setting = f"++experiments.{EXPERIMENT}.train.seed={seed + 2}"
        run(["dvc", "exp", "run", "--queue", "-S", setting, f"train@{EXPERIMENT}"], project)
    run(["dvc", "queue", "start", "-j", "2"], project)
    end = time.monotonic() + SECONDS_OF_QUEUE
    while time.monotonic() < end and busy(project):
        time.sleep(1)
    run([*FERRY, "track", "--sync"], project)
    there, kept = runs(project), len(journals(project))
    found = min(there.count("FINISHED"), kept)
    what = "queued experiments with a run in the project's own store"
    return Line(what, f"{found} of {QUEUED}", f"{QUEUED} of {QUEUED}", found == QUEUED)


def busy(project: Path) -> bool:
    """Whether the queue has something to do."""
    done = subprocess.run(
        ["dvc", "queue", "status"], capture_output=True, text=True, check=False, cwd=project
    )
    return "Queued" in done.stdout or "Running" in done.stdout


def is_whole(project: Path) -> bool:
    """Whether SQLite finds nothing wrong, and no store had to be set aside."""
    stores = [path.name for path in project.glob("mlflow.db*")]
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        (answer,) = database.execute("PRAGMA integrity_check").fetchone()
    return answer == "ok" and stores == ["mlflow.db"]


def runs(project: Path) -> list[str]:
    """The state of each run in its store."""
    client = load_mlflow().MlflowClient(f"sqlite:///{project}/mlflow.db")
    places = [one.experiment_id for one in client.search_experiments()]
    return [run.info.status for run in client.search_runs(places)]


def started(command: list[str], project: Path) -> "subprocess.Popen[bytes]":
    """A program in a project, whose words are kept there."""
    plain = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with (project / "output.txt").open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, cwd=project, env=plain)


def run(command: list[str], project: Path) -> int:
    """A program to its end."""
    return started(command, project).wait()


if __name__ == "__main__":
    main()
