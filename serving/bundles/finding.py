"""Which model a name means: a path, or a bundle of `bundles/` by its name alone.

located("mnist-cnn")    # bundles/mnist-cnn, where there is no path of that name
"""

from collections.abc import Iterator
from pathlib import Path

from serving.errors import MissingInputError
from serving.files import here_or_above

BUNDLES = Path("bundles")
"""Below the folder of params.yaml, where `ferry bundle` writes."""
MANIFEST = "manifest.json"


def located(name: str | Path) -> Path:
    """The path itself, or the bundle of that name where there is no such path."""
    path = Path(name)
    made = here_or_above(BUNDLES) / path
    # A path with folders is no name; joined to a folder an absolute one stays as it is.
    known = len(path.parts) == 1 and not path.exists() and (made / MANIFEST).is_file()
    return made if known else path


def not_there(path: Path) -> MissingInputError:
    """The error for a model that is not there, with the one that may be meant."""
    import difflib

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
