"""MLflow's model registry as a mirror of ferry's: the files say what is true.

    mirror(mlflow, "mnist-cnn")    # may be called again and again, and after a kill at any point

A version is found by its tag `ferry.version`, whatever number MLflow gave it. The registered
model's tag `ferry.head` says how many lines were mirrored and the sha256 of the last, so that a
checkout that is behind, or that went another way, changes nothing.
"""

import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.project.registry.appending import locked
from pipeline.project.registry.history import signed, told
from pipeline.tracking.models import load_mlflow, store_uri
from serving.bundles.registry import (
    REGISTRY,
    Promoted,
    Registry,
    RegistryEntry,
    copy_of,
    read_registry,
)
from serving.errors import FerryError, one_line
from serving.files import here_or_above

logger = logging.getLogger(__name__)

SECONDS, MOST_SECONDS = 5, 60
"""That a command waits for MLflow, and that its process may take in all."""
LATER = "`ferry track --sync` does it later"
VERSION, HEAD = "ferry.version", "ferry.head"
MOST_CHARACTERS = 500
"""Of a tag."""
LOCAL = "sqlite:///"


def mirror(mlflow: Any, name: str) -> tuple[str, ...]:
    """Make MLflow's versions and aliases of a name those of its events; returns warnings.

    `mlflow` is the module, whose tracking URI is set. Raises FerryError where the file cannot be
    read, and what MLflow raises.
    """
    path = read_registry(name).path
    with locked(path.with_suffix(".mlflow")):
        registry = read_registry(name)
        client = mlflow.MlflowClient()
        model = _registered_model(mlflow, client, registry)
        if stale := _stale(registry, model.tags.get(HEAD, "")):
            return (stale,)
        known = {
            one.tags.get(VERSION): one for one in client.search_model_versions(f"name='{name}'")
        }
        numbers: dict[int, str] = {}
        warnings: list[str] = []
        for version in registry.versions:
            found = known.get(str(version))
            if found is None:
                found = _created(client, registry, version, warnings)
            numbers[version] = str(found.version)
            for key, value in tags_of(registry, version).items():
                if found.tags.get(key) != value:
                    client.set_model_version_tag(name, numbers[version], key, value)
        _set_aliases(client, registry, numbers)
        client.set_registered_model_tag(name, HEAD, _head(registry, len(registry.entries)))
    return tuple(warnings)


def _registered_model(mlflow: Any, client: Any, registry: Registry) -> Any:
    try:
        return client.get_registered_model(registry.name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    description = (
        f"Versions that `ferry register` made and `ferry promote` compared; "
        f"`ferry why {registry.name}` says why one is the champion."
    )
    return client.create_registered_model(registry.name, description=description)


def _head(registry: Registry, count: int) -> str:
    return f"{count} {registry.entries[count - 1].sha256 if count else ''}"


def _stale(registry: Registry, mirrored: str) -> str:
    """Why MLflow must be left alone, if so: it knows more than this file, or something else."""
    count = int(mirrored.split(maxsplit=1)[0]) if mirrored else 0
    here = len(registry.entries)
    if count > here:
        return f"MLflow knows {count} lines of {registry.path}, which has {here} here: `git pull`?"
    if count and mirrored != _head(registry, count):
        return (
            f"line {count} of {registry.path} is another one in MLflow: it was written in two "
            f"checkouts; remove the tag {HEAD} of the registered model there if this one is right"
        )
    return ""


def _created(client: Any, registry: Registry, version: int, warnings: list[str]) -> Any:
    """A new version: the LoggedModel of the very file, else the bundle's folder."""
    one = registry.versions[version]
    source = _logged_model(client, one.experiment, one.model_sha256)
    if source is None:
        source = copy_of(one.digest).resolve().as_uri()
        warnings.append(
            f"{registry.name}/{version} has no model in MLflow to load, only its bundle: no run "
            f"logged the file"
        )
    return client.create_model_version(
        registry.name,
        source,
        tags=tags_of(registry, version),
        description=one.description or f"{one.variant} of {one.experiment}",
    )


def _logged_model(client: Any, experiment: str, sha256: str) -> str | None:
    """The address of the model that was logged of a file, if a run did."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    models = client.search_logged_models(
        [found.experiment_id], filter_string=f"tags.`ferry.sha256` = '{sha256}'", max_results=1
    )
    return f"models:/{models[0].model_id}" if models else None


def tags_of(registry: Registry, version: int) -> dict[str, str]:
    """Everything that the events say of a version."""
    one = registry.versions[version]
    tags = {
        **one.tags,
        VERSION: str(version),
        "ferry.experiment": one.experiment,
        "ferry.variant": one.variant,
        "ferry.digest": one.digest,
        "ferry.sha256": one.model_sha256,
        "ferry.weights_sha256": one.weights_sha256,
        "ferry.data": f"{one.dataset} {one.data_sha256}".strip(),
        **{f"ferry.metric.{name}": f"{value:g}" for name, value in one.metrics.items()},
    }
    for entry in registry.entries:
        if entry.event.version == version:
            tags |= _tags_of_entry(entry)
    return {key: value[:MOST_CHARACTERS] for key, value in tags.items()}


def _tags_of_entry(entry: RegistryEntry) -> dict[str, str]:
    event = entry.event
    gates = event.gates if isinstance(event, Promoted) else ()
    return {
        f"ferry.entry.{entry.number:04}": f"{told(entry)}: {signed(entry)}",
        **{f"ferry.gate.{gate.name}": f"{gate.status}: {gate.detail}" for gate in gates},
    }


def _set_aliases(client: Any, registry: Registry, numbers: dict[int, str]) -> None:
    """Move and remove aliases; those that others set are left alone."""
    # Asked anew: the first answer may be of a time before the versions.
    have = client.get_registered_model(registry.name).aliases
    for alias, version in registry.aliases.items():
        wanted = numbers[version] if version is not None else None
        if wanted is None and alias in have:
            client.delete_registered_model_alias(registry.name, alias)
        elif wanted is not None and str(have.get(alias)) != wanted:
            client.set_registered_model_alias(registry.name, alias, wanted)


@contextlib.contextmanager
def mirrored(name: str, *, wanted: bool) -> Iterator[None]:
    """Mirror a name when the block ends, also by an error of ferry's, but not after Ctrl-C.

    In a process of its own, which imports MLflow while the block runs. Nobody waits for it longer
    than `SECONDS`; it may end a little later by itself. What goes wrong is one warning.
    """
    process = _start() if wanted and _has_store() else None
    ended = False
    try:
        yield
        ended = True
    except FerryError:
        ended = True
        raise
    finally:
        there = (here_or_above(REGISTRY) / f"{name}.jsonl").exists()
        if process and ended and there:
            _finish(process, name)
        elif process:
            process.kill()
            process.communicate()


def _start() -> "subprocess.Popen[str]":
    """The process, which is told the name by its stdin, and by the end of that to give up."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,  # Ctrl-C is for the command
    )


def _finish(process: "subprocess.Popen[str]", name: str) -> None:
    try:
        printed, said = process.communicate(f"{name}\n", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        logger.warning("MLflow's registry takes longer than %d s; if it fails, %s", SECONDS, LATER)
        return
    for line in printed.splitlines():
        logger.warning("%s", line)
    if process.returncode:
        lines = said.strip().splitlines() or [f"exit status {process.returncode}"]
        logger.warning("MLflow's registry does not agree yet (%s): %s", lines[-1], LATER)


def _has_store() -> bool:
    """Whether MLflow was used here: making a store takes longer than a command may wait."""
    uri = store_uri()
    return not uri.startswith(LOCAL) or Path(uri.removeprefix(LOCAL)).exists()


def main() -> None:
    """Mirror the name that a line of stdin says, and end in time even if nobody waits any more."""
    signal.alarm(MOST_SECONDS)
    mlflow = load_mlflow()
    mlflow.set_tracking_uri(store_uri())
    try:
        mlflow.MlflowClient().search_registered_models(max_results=1)  # the first call takes long
        name = sys.stdin.readline().strip()
        warnings = mirror(mlflow, name) if name else ()
    except (FerryError, OSError, mlflow.exceptions.MlflowException) as error:
        sys.stderr.write(f"{one_line(error, MOST_CHARACTERS)}\n")
        raise SystemExit(1) from error
    sys.stdout.write("".join(f"{line}\n" for line in warnings))


if __name__ == "__main__":
    main()
