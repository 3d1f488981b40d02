"""Which model a name means: a path, a bundle of `bundles/` by its name alone, or a registered one.

located("mnist-cnn")                    # bundles/mnist-cnn, where there is no path of that name
located("models:/mnist-cnn@champion")   # the registry's copy of that bundle; also models:/NAME/3
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from serving.bundles.integrity import MOST_TEXT_BYTES, RunnerError, plain_bytes
from serving.errors import IntegrityError, MissingInputError
from serving.files import here_or_above, parse_json

if TYPE_CHECKING:
    from serving.bundles.registry import Registry

BUNDLES = Path("bundles")
"""Below the folder of params.yaml, where `ferry bundle` writes."""
MANIFEST = "manifest.json"
GIT_SECONDS = 30


def located(name: str | Path) -> Path:
    """The path itself, or the bundle of that name where there is no such path.

    For the name of a registered model it raises what `version_named` and `folder_of` do.
    """
    path = Path(name)
    if is_registered_name(str(name)):
        from serving.bundles.registry import version_named

        return folder_of(*version_named(str(name)))
    made = here_or_above(BUNDLES) / path
    # A path with folders is no name; joined to a folder an absolute one stays as it is.
    known = len(path.parts) == 1 and not path.exists() and (made / MANIFEST).is_file()
    return made if known else path


def is_registered_name(name: str) -> bool:
    """Whether it names a model of the registry."""
    return name.startswith("models:/")


def folder_of(registry: "Registry", version: int) -> Path:
    """The bundle of a version: the registry's copy, or one of `bundles/` with the same digest.

    Raises MissingInputError, saying how to get it, where there is neither, and IntegrityError for a
    copy that is another bundle.
    """
    one = registry.versions[version]
    copy = registry.copy_of(one.digest)
    if copy.exists():
        if _digest_of(copy) != one.digest:
            raise IntegrityError(
                f"{copy} is not the bundle that was registered as {registry.name}/{version}: "
                f"remove it, and {_how_to_get(registry, version)}"
            )
        return copy
    made = here_or_above(BUNDLES)
    for folder in sorted(made.iterdir()) if made.is_dir() else ():
        if _digest_of(folder) == one.digest:
            return folder
    raise MissingInputError(
        f"the bundle of {registry.name}/{version} is not here: {_how_to_get(registry, version)}"
    )


def _digest_of(folder: Path) -> str | None:
    """What its manifest says; whether that is true `open_bundle` finds out."""
    with contextlib.suppress(RunnerError, IntegrityError):
        raw = parse_json(plain_bytes(folder / MANIFEST, MOST_TEXT_BYTES), MANIFEST)
        return raw.get("digest") if isinstance(raw, dict) else None
    return None


def _how_to_get(registry: "Registry", version: int) -> str:
    """The command that brings a bundle from DVC's cache or remote.

    At the commit that has its line, for the one before was made without the bundle.
    """
    from serving.machine.environment import output_of

    one = registry.versions[version]
    pickaxe = ("git", "log", "--format=%h", f"-S{one.digest}", "--", str(registry.path))
    commits = output_of(pickaxe, seconds=GIT_SECONDS).decode().split()
    made, copy = BUNDLES / one.experiment, registry.copy_of(one.digest)
    if not commits:
        return f"git has no commit of it; `dvc checkout {made}` brings it if it was the last one"
    get = f"dvc get . {made} --rev {commits[-1]} --out {copy}"
    return f"`{get}` brings it from DVC's cache or remote"


def set_aside(folder: Path) -> Path:
    """Where a bundle lies while another takes its place, if the system needs two steps for that."""
    return folder.with_name(f".{folder.name}.old")


def not_there(path: Path) -> MissingInputError:
    """The error for a model that is not there, with the one that may be meant."""
    import difflib
    import shlex

    from serving.bundles.registry import HOW, NAMED

    found = NAMED.fullmatch(str(path).replace("models:", "models:/", 1))
    if str(path).startswith("models:") or (found and found["alias"]):
        return MissingInputError(f"{path} is not there; of a registered model: {HOW}")
    for there in (path, here_or_above(BUNDLES) / path):
        if (old := set_aside(there)).is_dir():
            again = shlex.join(["mv", str(old), str(there)])
            return MissingInputError(
                f"{there} is not there: what was to take its place was killed; `{again}` brings it "
                f"back"
            )
    others = {one.name: one for one in (*_models(here_or_above(BUNDLES)), *_models(path.parent))}
    close = difflib.get_close_matches(path.name, others, n=1)
    if close:
        return MissingInputError(f"{path} is not there; did you mean {others[close[0]]}?")
    hint = "it should be a bundle or an ONNX file"
    if len(path.parts) == 1 and not path.suffix:
        hint += f"; `ferry bundle {path}` makes the bundle of an experiment"
    return MissingInputError(f"{path} is not there; {hint}")


def _models(folder: Path) -> Iterator[Path]:
    """The bundles and the ONNX files in a folder."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix == ".onnx" or (path / MANIFEST).is_file():
            yield path
