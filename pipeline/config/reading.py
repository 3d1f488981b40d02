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

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import ConfigError, running
from serving.errors import MissingInputError, UnknownNameError, nearest, one_line

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

Record = TypeVar("Record")
_adapters: dict[type[Any], TypeAdapter[Any]] = {}
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
MISSING_KEY = ("missing", "missing_argument", "missing_keyword_only_argument")
LONGEST_VALUE = 80
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
            return f"{path} is not a key{nearest(str(detail['loc'][-1]), siblings)}"
        case kind if kind in MISSING_KEY:
            return f"{path} is missing"
        case "too_short":
            return f"{path} must not be empty"
        case "float_type" if isinstance(value, str) and _is_exponent(value):
            return f"{path} must be a number, got the text {value!r}; write {_with_point(value)}"
    expected = detail["msg"].removeprefix("Input should be ")
    for theirs, ours in PLAIN_WORDS.items():
        expected = expected.replace(theirs, ours)
    return f"{path or 'params.yaml'} must be {expected}, got {_shortened(value)}"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _keys_beside(record: type[Any], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section holding `location` knows."""
    schema = _adapter(record).json_schema()
    node: dict[str, Any] = schema
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


def with_entry(path: Path, section: str, entry: str) -> str:
    """The text of a file that `read_yaml` reads, with one more entry at the end of a section.

    All else stays as it is, comments too. `entry` is indented by two. Raises ConfigError where the
    section stands in braces.
    """
    text = path.read_text(encoding="utf-8")
    root: Any = yaml.compose(text, yaml.SafeLoader)
    lines, keys = text.splitlines(), [key.value for key, _ in root.value]
    place = keys.index(section)
    key, node = root.value[place]
    begin = key.start_mark.line
    if not node.value:
        lines[begin] = f"{section}:"
        return "\n".join([*lines[: begin + 1], entry, *lines[begin + 1 :], ""])
    if node.flow_style:
        raise ConfigError(f"{path}: {section} stands in braces; write each entry on its own line")
    others = root.value[place + 1 :]
    end = others[0][0].start_mark.line if others else len(lines)
    # What is said above the next section belongs to it.
    while not lines[end - 1].strip() or lines[end - 1].startswith("#"):
        end -= 1
    more = " " * (node.value[0][0].start_mark.column - 2)
    shifted = [f"{more}{line}" for line in entry.splitlines()]
    return "\n".join([*lines[:end], "", *shifted, *lines[end:], ""])


TAG = "tag:yaml.org,2002:"
TEXT = f"{TAG}str"
MAPPING = f"{TAG}map"
MERGE = f"{TAG}merge"
PLAIN = (TEXT, f"{TAG}int", f"{TAG}float", f"{TAG}bool", f"{TAG}null", f"{TAG}seq", MAPPING)


def read_yaml(path: Path, entries_of: str) -> tuple[object, dict[str, str]]:
    """Read the one document of a file, which must hold plain values alone.

    What YAML would let pass in silence, or turn into something else, is refused: a key that stands
    twice, a date, a key that is no text. An entry of the section `entries_of` with such a mistake
    is read as an empty mapping, and the second answer says what is wrong in it.

    Raises MissingInputError when there is no such file and ConfigError for any other mistake.
    """
    try:
        loader = yaml.SafeLoader(path.read_bytes())
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{path} is empty")
        wrong = _take_out_wrong_entries(node, entries_of)
        _check(node, (), ())
        return loader.construct_document(node), wrong
    except FileNotFoundError as error:
        raise MissingInputError(
            f"{path} is not there; run ferry where params.yaml lies or below, name that folder "
            f"with -C, or make a project with `ferry init`"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error


def read_value(text: str, where: str) -> object:
    """One value as it may stand in params.yaml; ConfigError, which begins with `where`."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            raise ConfigError(f"{where} has no value")
        _check(node, (where,), ())
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {text!r} is not YAML: {one_line(error)}") from error


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML that is taken as it is, such as dvc.lock: quickly, for libyaml does it if there.

    Raises ConfigError, which begins with `where`.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {one_line(error)}") from error


def dump_yaml(value: object) -> str:
    """Text that `read_yaml` reads back as it was; numbers with an exponent get their point."""
    text: str = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100)
    return text


def dump_value(value: object) -> str:
    """One value as it may stand in params.yaml, in one line."""
    text: str = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=sys.maxsize)
    return text.strip()[1:-1]


def _take_out_wrong_entries(node: yaml.Node, section: str) -> dict[str, str]:
    wrong: dict[str, str] = {}
    for key, entries in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == section and isinstance(entries, yaml.MappingNode):
            for index, (name, entry) in enumerate(entries.value):
                try:
                    _check(entry, (section, str(name.value)), (node, entries))
                except ConfigError as error:
                    wrong[str(name.value)] = str(error)
                    entries.value[index] = name, yaml.MappingNode(MAPPING, [])
    return wrong


def _check(node: yaml.Node, where: tuple[str, ...], above: tuple[yaml.Node, ...]) -> None:
    """Refuse what is not plain in `node`, which lies at `where`, inside of the nodes `above`."""
    if node in above:
        raise ConfigError(f"{_path(where)} holds itself")
    if node.tag not in PLAIN:
        raise ConfigError(
            f"{_path(where)} must be a plain value, got {node.tag.removeprefix(TAG)} "
            f"{_shown(node)}; a text of that form needs quotes"
        )
    if isinstance(node, yaml.MappingNode):
        _check_mapping(node, where, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check(item, (*where, str(index)), (*above, node))
    elif not node.value.isprintable():
        raise ConfigError(f"{_path(where)} must be printable text, got {node.value!r}")
    elif node.tag == f"{TAG}int" and len(node.value) > 100:
        raise ConfigError(f"{_path(where)} must be a number of fewer than 100 digits")


def _check_mapping(
    node: yaml.MappingNode, where: tuple[str, ...], above: tuple[yaml.Node, ...]
) -> None:
    seen: set[str] = set()
    for key, value in node.value:
        if key.tag not in (TEXT, MERGE) or not key.value.isprintable():
            raise ConfigError(f"{_path((*where, _shown(key)))} is not a key: keys are text")
        path = (*where, key.value)
        if key.value in seen:
            line = key.start_mark.line + 1
            raise ConfigError(f"{_path(path)} is there twice, the second time in line {line}")
        seen.add(key.value)
        _check(value, path, above)


def _path(where: tuple[str, ...]) -> str:
    return ".".join(where) or "the file"


def _shown(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"


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
