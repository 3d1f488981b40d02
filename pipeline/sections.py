"""Read a section of params.yaml into its record, or say in one line what is wrong in it.

The line names the key's full path, the value and what was expected: nothing is repaired, and
nothing is filled in.
"""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import ConfigError
from serving.errors import nearest

__all__ = ["read_section"]

Record = TypeVar("Record")
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
LONGEST_VALUE = 80
PLAIN_WORDS = {
    "a valid array": "a list",
    "an object": "a mapping",
    "a valid integer": "an integer",
    "a valid ": "a ",
}


def read_section(record: type[Record], raw: object, where: str) -> Record:
    """Read one mapping of params.yaml into `record`, a dataclass with a strict pydantic config.

    `where` is the path of the section, for instance "experiments.mnist-cnn.model".
    Raises ConfigError for the first key that is wrong.
    """
    try:
        # As JSON, a list stands for a tuple and a mapping for a record; all else stays strict.
        return TypeAdapter(record).validate_json(json.dumps(raw))
    except ValidationError as error:
        raise ConfigError(_explain(_first(error), record, where)) from error


def _first(error: ValidationError) -> ErrorDetails:
    """The error to tell: a misspelt key before the missing one that it stood for."""
    details = error.errors(include_url=False)
    return min(details, key=lambda detail: detail["type"] not in UNKNOWN_KEY)


def _explain(detail: ErrorDetails, record: type[Any], where: str) -> str:
    """One line for a pydantic error: the key's path, the value and what was expected."""
    path = ".".join(str(part) for part in (where, *detail["loc"]) if part != "")
    value = detail["input"]
    match detail["type"]:
        case kind if kind in UNKNOWN_KEY:
            siblings = _keys_beside(record, detail["loc"])
            return f"{path} is not a key{nearest(str(detail['loc'][-1]), siblings)}"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
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
    schema = TypeAdapter(record).json_schema()
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
