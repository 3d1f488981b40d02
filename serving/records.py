"""Read JSON into frozen records as strictly as they are typed; what ferry wrote must come back.

Missing, unknown and mistyped keys are refused by their path, as the file may have been altered.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from serving.errors import IntegrityError

__all__ = ["read_record"]

Record = TypeVar("Record")


def read_record(record: type[Record], raw: object, where: str) -> Record:
    """Make a `record`, a dataclass, of what `json.loads` gave; `where` names it in messages.

    Fields may be str, int, float, bool, None, unions of these, literal texts, records,
    `tuple[X, ...]` and `Mapping[str, X]`. Raises IntegrityError for the first key that is missing,
    unknown or mistyped.
    """
    if not isinstance(raw, dict):
        raise IntegrityError(f"{where} must be a JSON object, got {_short(raw)}")
    hints = _fields(record)
    for name in raw:
        if name not in hints:
            raise IntegrityError(f"{where} has an unknown key {name!r}")
    for name in hints:
        if name not in raw:
            raise IntegrityError(f"{where} lacks the key {name!r}")
    return record(**{name: _value(hints[name], raw[name], f"{where}.{name}") for name in hints})


def _fields(record: Any) -> dict[str, Any]:
    """The type of each field; a class variable is none."""
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in dataclasses.fields(record)}


def _value(hint: Any, raw: object, where: str) -> Any:
    if isinstance(raw, dict):
        # Of several records that could stand here, the one whose fields these are.
        records = [one for one in (hint, *get_args(hint)) if dataclasses.is_dataclass(one)]
        hint = next((one for one in records if set(_fields(one)) == set(raw)), hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read_record(hint, raw, where)
    origin = get_origin(hint)
    if origin is tuple:
        return _tuple(get_args(hint)[0], raw, where)
    if origin is Mapping:
        return _mapping(get_args(hint)[1], raw, where)
    allowed = get_args(hint) or (hint,)
    if origin is Literal and type(raw) is str and raw in allowed:
        return raw
    # A whole number stands for a float as well: JSON does not tell them apart. bool is no int.
    if type(raw) in allowed or (type(raw) is int and float in allowed):
        return raw
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
    raise IntegrityError(f"{where} must be {names}, got {_short(raw)}")


def _tuple(hint: Any, raw: object, where: str) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        raise IntegrityError(f"{where} must be a list, got {_short(raw)}")
    return tuple(_value(hint, item, f"{where}[{index}]") for index, item in enumerate(raw))


def _mapping(hint: Any, raw: object, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise IntegrityError(f"{where} must be a JSON object, got {_short(raw)}")
    return {key: _value(hint, item, f"{where}.{key}") for key, item in raw.items()}


def _short(raw: object) -> str:
    text = repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."
