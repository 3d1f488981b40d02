"""Turn what params.yaml says into records, plain values and modules, or say what is wrong in it.

Whatever is refused is told in one line: the key's full path, the value and what was expected.
Nothing is repaired, and nothing is filled in.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.yamlfile import shortened
from pipeline.errors import ConfigError, running
from serving.errors import UnknownNameError, nearest

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

Record = TypeVar("Record")
_adapters: dict[type[Any], TypeAdapter[Any]] = {}
_schemas: dict[type[Any], dict[str, Any]] = {}
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
MISSING_KEY = ("missing", "missing_argument", "missing_keyword_only_argument")
PLAIN_WORDS = {
    "a valid array": "a list",
    "an object": "a mapping",
    "a valid integer": "an integer",
    "a valid ": "a ",
}


def read_section(record: type[Record], raw: object, where: str) -> Record:
    """Read one mapping of params.yaml into `record`, a dataclass that is a `StrictSettings`.

    `where` is the path of the section, for instance "experiments.mnist-cnn.model".
    Raises ConfigError for the first key that is wrong.
    """
    try:
        # As JSON, a list stands for a tuple and a mapping for a record; all else stays strict.
        read: Record = _adapter(record).validate_json(json.dumps(raw))
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        raise ConfigError(_explain(_first(wrong), record, where)) from error
    return read


def check_defaults(record: type[Any], raw: object, where: str) -> None:
    """Refuse what `read_section` would, but for keys that are missing in a section of `raw`.

    Raises ConfigError for the first key that is wrong.
    """
    try:
        _adapter(record).validate_json(json.dumps(raw))
    except ValidationError as error:
        wrong = [
            detail
            for detail in error.errors(include_url=False)
            if detail["type"] not in MISSING_KEY or len(detail["loc"]) == 1
        ]
        if wrong:
            raise ConfigError(_explain(_first(wrong), record, where)) from error


def _adapter(record: type[Any]) -> TypeAdapter[Any]:
    """Kept for the next section of the kind: to make one takes longer than to read with it."""
    if record not in _adapters:
        _adapters[record] = TypeAdapter(record)
    return _adapters[record]


def _first(wrong: list[ErrorDetails]) -> ErrorDetails:
    """The error to tell: a misspelt key before the missing one that it stood for."""
    return min(wrong, key=lambda detail: detail["type"] not in UNKNOWN_KEY)


def _explain(detail: ErrorDetails, record: type[Any], where: str) -> str:
    """One line for a pydantic error: the key's path, the value and what was expected."""
    path = ".".join(str(part) for part in (where, *detail["loc"]) if part != "")
    value = detail["input"]
    match detail["type"]:
        case kind if kind in UNKNOWN_KEY:
            siblings = _keys_beside(record, detail["loc"])
            return f"{shortened(path)} is not a key{nearest(str(detail['loc'][-1]), siblings)}"
        case kind if kind in MISSING_KEY:
            return f"{path} is missing"
        case "too_short":
            return f"{path} must not be empty"
        case "float_type" if isinstance(value, str) and _is_exponent(value):
            return f"{path} must be a number, got the text {value!r}; write {_with_point(value)}"
    expected = detail["msg"].removeprefix("Input should be ")
    for theirs, ours in PLAIN_WORDS.items():
        expected = expected.replace(theirs, ours)
    return f"{path or 'params.yaml'} must be {expected}, got {shortened(repr(value))}"


def _keys_beside(record: type[Any], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section holding `location` knows."""
    if record not in _schemas:
        _schemas[record] = _adapter(record).json_schema()
    node = schema = _schemas[record]
    for part in location[:-1]:
        node = _resolve(node, schema)
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref", "")
    found: dict[str, Any] = schema["$defs"][reference.rsplit("/", 1)[-1]] if reference else node
    return found


def _is_exponent(text: str) -> bool:
    """Whether YAML 1.1 read a number as text for want of a point: `1e-3`."""
    try:
        float(text)
    except ValueError:
        return False
    return "e" in text.lower()


def _with_point(text: str) -> str:
    mantissa, exponent = text.lower().split("e", 1)
    sign = "" if exponent[:1] in "+-" else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}{exponent}"


# A folder of modules is a registry: the file name is the key, so adding a data set or an
# architecture is adding one file. A project's own package has folders of the same names.
OWN_PACKAGE = "FERRY_PACKAGE"
"""The variable with its folder, for the processes that a command starts as well."""


def use_package(folder: Path | None) -> None:
    """Let the registries have the modules of a project's own package too; None: of ferry alone."""
    if folder is None:
        os.environ.pop(OWN_PACKAGE, None)
    else:
        os.environ[OWN_PACKAGE] = str(folder.resolve())


def names(package: Path) -> tuple[str, ...]:
    """The public modules of a package's folder, sorted, found without importing any of them.

    Raises ConfigError for one of a project's own with a name that ferry has already.
    """
    built_in, own = _modules(package), own_modules(package)
    for name in built_in.keys() & own.keys():
        raise ConfigError(f"{own[name]}: ferry has {name} in its {package.name}; rename the file")
    return tuple(sorted(built_in | own))


def load(kind: str, package: str, folder: Path, name: str, needs: Sequence[str] = ()) -> ModuleType:
    """Import `package.name`, or a project's own module of that name, which must have `needs`.

    Raises UnknownNameError with the nearest name if there is no such file, and ConfigError for a
    module of the project that cannot be imported or lacks a name.
    """
    if name not in names(folder):
        raise UnknownNameError(kind, name, names(folder))
    own = own_modules(folder).get(name)
    if own is None:
        return importlib.import_module(f"{package}.{name}")
    module = _import_own(own)
    for need in needs:
        if not hasattr(module, need):
            raise ConfigError(f"{own} has no {need}, which each file of {folder.name} must have")
    return module


def _modules(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in folder.glob("*.py") if path.stem[0] != "_"}


def own_modules(package: Path) -> dict[str, Path]:
    """The public modules that a project has of its own beside those of a package's folder."""
    own = os.environ.get(OWN_PACKAGE)
    return _modules(Path(own) / package.name) if own else {}


def _import_own(path: Path) -> ModuleType:
    folder = str(path.parents[2])
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    with running(f"{path} cannot be imported", ConfigError):
        module = importlib.import_module(".".join((*path.parts[-3:-1], path.stem)))
    if not path.samefile(module.__file__ or ""):
        raise ConfigError(f"{path} is hidden by {module.__file__}; rename the package")
    return module


def check_gates(experiment: "Experiment") -> None:
    """Where a class is predicted, a gate must say how many may flip; elsewhere none can.

    Raises ConfigError also where what ships would not be compared.
    """
    where, config = f"experiments.{experiment.name}.parity", experiment.parity
    if "all" not in config.levels:
        raise ConfigError(f"{where}.levels must hold 'all', which ships, got {config.levels}")
    if "dynamo" not in config.exporters:
        raise ConfigError(
            f"{where}.exporters must hold 'dynamo', which ships, got {config.exporters}"
        )
    if experiment.train.loss == "mean_squared_error":
        return
    if config.fp32.max_abs_diff is None:
        raise ConfigError(
            f"{where}.fp32.max_abs_diff must be a number, got None: near-ties are told by it"
        )
    for variant in ("fp32", "fp16", "int8"):
        for limit in ("flips", "accuracy_loss"):
            if getattr(config.gate(variant), limit) is None:
                raise ConfigError(f"{where}.{variant}.{limit} must be a number, got None")
