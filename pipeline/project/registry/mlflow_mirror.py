"""MLflow's model registry as a mirror of ferry's: the files say what is true.

    mirror(mlflow, "mnist-cnn")    # may be called again and again, and after a kill at any point

A version is found by its tag `ferry.version`, whatever number MLflow gave it. The registered
model's tag `ferry.head` says how many lines were mirrored and the sha256 of the last, so that a
checkout that is behind, or that went another way, changes nothing.
"""

import contextlib
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.config import layout
from pipeline.project.registry.history import describe, signed
from pipeline.project.registry.versions import LOCK_SECONDS
from pipeline.tracking.models import SHA256_TAG
from pipeline.tracking.store import SQLITE, open_store, path_of, store_uri
from serving.batch.lock import lock_output
from serving.bundles.registry import (
    REGISTRY,
    Promoted,
    Registered,
    Registry,
    names,
    read_registry,
)
from serving.errors import FerryError, UsageError, one_line
from serving.files import here_or_above

logger = logging.getLogger(__name__)

SECONDS, MOST_SECONDS = 5, 60
"""That a command waits for MLflow, and that its process may take in all."""
LATER = "`ferry track --sync` does it later"
VERSION, HEAD = "ferry.version", "ferry.head"
LINK = "mlflow.modelVersions"
MODELS, READY = "models:/", "READY"
MOST_CHARACTERS, MOST_OF_DESCRIPTION, TAG_DIGITS = 500, 4000, 10
"""Of a tag or a message, of a version's description, and of a sha256 that is shown."""


def mirror(mlflow: Any, name: str) -> tuple[str, ...]:
    """Make MLflow's versions and aliases of a name those of its events; returns warnings.

    `mlflow` is the module, whose tracking URI is set. Raises FerryError where the file cannot be
    read, and what MLflow raises.
    """
    with lock_output(read_registry(name).path.with_suffix(".mlflow"), LOCK_SECONDS):
        registry = read_registry(name)
        client = mlflow.MlflowClient()
        model = _registered_model(mlflow, client, registry)
        if stale := _stale(registry, model.tags.get(HEAD, "")):
            return (stale,)
        known = client.search_model_versions(f"name='{name}'")
        made, warnings = _send_versions(client, registry, known)
        _set_aliases(client, registry, made)
        for one in known:
            if one.tags.get(VERSION) and str(one.version) not in made.values():
                client.delete_model_version(name, one.version)
        client.set_registered_model_tag(name, HEAD, _head(registry, len(registry.entries)))
    return tuple(warnings)


def mirror_all(log: Callable[[str], None]) -> list[str]:
    """Mirror every name of the project; warns, and returns what went wrong."""
    failures: list[str] = []
    for name in names(layout.project() / REGISTRY):
        log(f"the versions of {name}")
        try:
            for line in mirror(open_store(), name):
                logger.warning("%s", line)
        except Exception as error:  # noqa: BLE001 - MLflow raises what it likes, and is told
            failures.append(f"MLflow's registry lacks {name}: {one_line(error, MOST_CHARACTERS)}")
    return failures


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


def _send_versions(
    client: Any, registry: Registry, known: Sequence[Any]
) -> tuple[dict[int, str], list[str]]:
    """The number that MLflow has of each version, which is made where there is none, and warnings.

    A version of a bundle's folder is made anew once a run has logged its model, as MLflow changes
    no source. Two of one version are what a killed process left.
    """
    made: dict[int, str] = {}
    warnings: list[str] = []
    for version, one in registry.versions.items():
        mine = [found for found in known if found.tags.get(VERSION) == str(version)]
        mine.sort(key=lambda found: (not found.source.startswith(MODELS), int(found.version)))
        best = mine[0] if mine else None
        if best is None or not best.source.startswith(MODELS):
            logged = _logged_model(client, one)
            if logged or best is None:
                best = _created(client, registry, version, logged)
            if logged is None and not mine:
                warnings.append(
                    f"{registry.name}/{version} has no model in MLflow to load, only its bundle: "
                    f"no run has logged the file yet"
                )
        made[version] = str(best.version)
        _describe(client, registry, version, best)
    return made, warnings


def _logged_model(client: Any, one: Registered) -> Any | None:
    """The model that a run logged of the very file, if there is one that is complete."""
    found = client.get_experiment_by_name(one.experiment)
    if found is None:
        return None
    models = client.search_logged_models(
        [found.experiment_id], filter_string=f"tags.`{SHA256_TAG}` = '{one.model_sha256}'"
    )
    return next((model for model in models if str(model.status) == READY), None)


def _created(client: Any, registry: Registry, version: int, logged: Any | None) -> Any:
    source = registry.copy_of(registry.versions[version].digest).resolve().as_uri()
    made = client.create_model_version(
        registry.name,
        f"{MODELS}{logged.model_id}" if logged else source,
        run_id=logged.source_run_id if logged else None,
        tags=tags_of(registry, version),
        description=described(registry, version),
        model_id=logged.model_id if logged else None,
    )
    if logged:
        # By this tag MLflow's pages lead from the model to its versions.
        own = {"name": registry.name, "version": int(made.version)}
        others = json.loads(logged.tags.get(LINK, "[]"))
        client.set_logged_model_tags(logged.model_id, {LINK: json.dumps([*others, own])})
    return made


def _describe(client: Any, registry: Registry, version: int, found: Any) -> None:
    for key, value in tags_of(registry, version).items():
        if found.tags.get(key) != value:
            client.set_model_version_tag(registry.name, found.version, key, value)
    if found.description != (text := described(registry, version)):
        client.update_model_version(registry.name, found.version, text)


def tags_of(registry: Registry, version: int) -> dict[str, str]:
    """The few things to find a version by: MLflow's pages show all of them in a table."""
    one = registry.versions[version]
    tags = {
        **one.tags,
        VERSION: str(version),
        "ferry.variant": one.variant,
        **{f"ferry.{name}": f"{value:.6g}" for name, value in one.metrics.items()},
        SHA256_TAG: one.model_sha256[:TAG_DIGITS],
    }
    for entry in registry.entries:
        if isinstance(entry.event, Promoted) and entry.event.version == version:
            tags["ferry.promoted"] = entry.time[:10]
            tags["ferry.forced"] = entry.event.forced
    return {key: value[:MOST_CHARACTERS] for key, value in tags.items() if value}


def described(registry: Registry, version: int) -> str:
    """The figures of a version and all that happened to it, for its page; in Markdown."""
    one = registry.versions[version]
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in one.metrics.items())
    lines = [", ".join(filter(None, [metrics, f"{one.variant} of {one.experiment}"]))]
    lines += ["", one.description] if one.description else []
    lines += ["", f"Bundle {one.digest}, data {one.dataset} {one.data_sha256}".rstrip(), ""]
    for entry in registry.entries:
        if entry.event.version == version:
            lines.append(f"- {describe(entry)}: {signed(entry)}")
            gates = entry.event.gates if isinstance(entry.event, Promoted) else ()
            lines += [f"  - {gate.name} {gate.status}: {gate.detail}" for gate in gates]
    return "\n".join(lines)[:MOST_OF_DESCRIPTION]


def _set_aliases(client: Any, registry: Registry, made: Mapping[int, str]) -> None:
    """Move and remove aliases; those that others set are left alone."""
    # Asked anew: the first answer may be of a time before the versions.
    have = client.get_registered_model(registry.name).aliases
    for alias, version in registry.aliases.items():
        wanted = made[version] if version is not None else None
        if wanted is None and alias in have:
            client.delete_registered_model_alias(registry.name, alias)
        elif wanted is not None and str(have.get(alias)) != wanted:
            client.set_registered_model_alias(registry.name, alias, wanted)


@contextlib.contextmanager
def mirrored(name: str, *, wanted: bool) -> Iterator[None]:
    """Mirror a name when the block ends, also by an error of ferry's, but not after Ctrl-C.

    A mistake of the user's is none of these: nobody waits to be told of it.

    In a process of its own, which imports MLflow while the block runs. Nobody waits for it longer
    than `SECONDS`; it may end a little later by itself. What goes wrong is one warning.
    """
    process = _start() if wanted and _has_store() else None
    ended = False
    try:
        yield
        ended = True
    except FerryError as error:
        ended = error.exit_code != UsageError.exit_code
        raise
    finally:
        if process and ended and here_or_above(REGISTRY / f"{name}.jsonl").exists():
            _finish(process, name)
        elif process:
            process.kill()
            process.communicate()


def _start() -> "subprocess.Popen[str]":
    """The process, which is told the name by its stdin, and by the end of that to give up."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
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
    return not uri.startswith(SQLITE) or path_of(uri).exists()


def main() -> None:
    """Mirror the name that a line of stdin says, and end in time even if nobody waits any more."""
    signal.alarm(MOST_SECONDS)
    try:
        mlflow = open_store()
        mlflow.MlflowClient().search_registered_models(max_results=1)  # the first call takes long
        signal.alarm(0)  # the gates of a promotion take what they take
        name = sys.stdin.readline().strip()
        signal.alarm(MOST_SECONDS)
        warnings = mirror(mlflow, name) if name else ()
    except Exception as error:  # noqa: BLE001 - MLflow raises what it likes, and is told
        sys.exit(one_line(error, MOST_CHARACTERS))
    sys.stdout.write("".join(f"{line}\n" for line in warnings))


if __name__ == "__main__":
    main()
