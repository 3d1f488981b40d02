"""Mutated models: bytes or fields of real ones altered, and run in children on the real one's rows.

A mutation must be refused in a line, or answered. One that ends its child natively, or does not
end, is asked again of the program `ferry predict`, which must tell so.
"""

import contextlib
import functools
import io
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cases import Case, Outcome, Task, ferry
from children import DIED, HUNG, RAISED, attempts
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx_cases import cases as operator_cases
from tiny_classifier import classifier, images
from tiny_kinds import TEXTS, autoencoder, features, table_classifier, text_classifier
from tiny_onnx import recurrent

from serving.batch.predict import predict
from serving.batch.run import PredictOptions
from serving.errors import FerryError
from serving.runtime.tensors import Array

MUTATIONS = 100_000
PER_CASE = 500
SHORT = 100
LIMITS = ("--call-timeout", "2", "--max-memory", "2")
OPTIONS = PredictOptions(workers=1)
NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 255, 65_536, 2**31 - 1, 2**40, 2**62)
OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
REALS = (float("nan"), float("inf"), -1.0, 0.0, 1e-45, 3e38)


@dataclass(frozen=True, slots=True)
class Base:
    """A model that is answered, and its rows."""

    name: str
    content: bytes
    rows: Path
    answers: bytes


def cases(task: Task) -> Iterator[Case]:
    """So many mutations at a time."""
    found = bases(task)
    count = SHORT if task.short else task.count(MUTATIONS)
    for start in range(0, count, PER_CASE):
        numbers = range(start, min(start + PER_CASE, count))
        run = functools.partial(mutated, task, found, numbers)
        yield Case(f"{start} to {numbers[-1]}", run, seconds=1800.0)


def bases(task: Task) -> tuple[list[Base], list[Base]]:
    """Small models as ferry exports them, and those of ONNX's own tests that it answers."""
    own = {
        "classifier": (classifier(), images(4)),
        "colors": (classifier(3), images(4, 3)),
        "text": (text_classifier(), np.array(TEXTS)),
        "table": (table_classifier(), features(4)),
        "autoencoder": (autoencoder(), images(4)),
        "lstm": (recurrent("LSTM"), np.ones((2, 3, 2), np.float32)),
        "gru": (recurrent("GRU"), np.ones((2, 3, 2), np.float32)),
    }
    others = {}
    for kind in () if task.short else ("pytorch-converted", "node"):
        for case in operator_cases(kind):
            given = case.folder / "test_data_set_0" / "input_0.pb"
            if given.exists():
                with contextlib.suppress(ValueError, TypeError, DecodeError):
                    rows = numpy_helper.to_array(onnx.TensorProto.FromString(given.read_bytes()))
                    others[case.name] = ((case.folder / "model.onnx").read_bytes(), rows)
    return list(answered(task.scratch, own)), list(answered(task.scratch, others))


def answered(folder: Path, models: Mapping[str, tuple[bytes, Array]]) -> Iterator[Base]:
    """Those that ferry answers."""
    for name, (content, values) in models.items():
        rows = folder / f"{name}.npy"
        if values.dtype.kind == "U":
            rows = rows.with_suffix(".txt")
            rows.write_text("\n".join(values))
        elif values.dtype.hasobject:
            continue
        else:
            np.save(rows, values)
        with contextlib.suppress(FerryError):
            (folder / f"{name}.onnx").write_bytes(content)
            yield Base(name, content, rows, answers(folder / f"{name}.onnx", rows))


def answers(model: Path, rows: Path) -> bytes:
    """What `ferry predict` writes to stdout."""
    stdout, written = sys.stdout, io.BytesIO()
    sys.stdout = io.TextIOWrapper(written)
    try:
        predict(model, [rows], output=None, options=OPTIONS)
        sys.stdout.flush()
        return written.getvalue()
    finally:
        sys.stdout = stdout


def mutated(task: Task, found: tuple[list[Base], list[Base]], numbers: Sequence[int]) -> Outcome:
    """Try mutations in children, and those that end a child in `ferry predict` as well."""
    model = task.scratch / "mutated.onnx"

    def attempt(number: int) -> str:
        base, content = mutation(found, task.seed, number)
        model.write_bytes(content)
        try:
            again = answers(model, base.rows)
        except FerryError as error:
            str(error).encode()  # whoever prints it must
            return "refused"
        except MemoryError:  # which the program tells in a line
            return "no memory"
        return "answered the same" if again == base.answers else "answered"

    outcome = Outcome()
    for number, word in attempts(numbers, attempt):
        if word.startswith((DIED, HUNG)):
            base, content = mutation(found, task.seed, number)
            model.write_bytes(content)
            words = ("predict", model.name, base.rows, *LIMITS)
            one = ferry(*words, folder=task.scratch, seconds=60.0).judged()
            one = replace(one, seen={f"{word} in a child, then asked of `ferry predict`": 1})
        elif word.startswith(RAISED):
            one = Outcome(tracebacks=1, notes=(word,))
        else:
            one = Outcome(held=1, seen={word: 1})
        notes = tuple(
            f"{number}, of {mutation(found, task.seed, number)[0].name}: {note}"
            for note in one.notes
        )
        outcome += replace(one, notes=notes)
    return outcome


def mutation(found: tuple[list[Base], list[Base]], seed: int, number: int) -> tuple[Base, bytes]:
    """The mutation of a number, the same each time, and what it is one of."""
    chance = random.Random(f"{seed} {number}")  # noqa: S311 - no secret is drawn
    own, others = found
    base = chance.choice(others if others and chance.random() < 0.5 else own)
    alter = chance.choice((bytes_altered, fields_altered, fields_altered))
    return base, alter(base.content, chance)


def bytes_altered(content: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, overwritten, taken out, doubled or put in."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = chance.randrange(len(found) or 1)
        size = min(chance.choice((1, 1, 4, 32)), len(found) - at)
        match chance.randrange(5):
            case 0 if found:
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                found[at : at + size] = chance.randbytes(size)
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = found[at : at + size]
            case _:
                found[at:at] = chance.choice((b"\0", b"\xff", b"\x80", b"\xed\xa0\x80")) * size
    return bytes(found)


def fields_altered(content: bytes, chance: random.Random) -> bytes:
    """One or two values of the message set to what is hostile, removed or doubled."""
    model = onnx.load_from_string(content)
    for _ in range(chance.choice((1, 1, 2))):
        places = list(values_of(model))
        message, field = chance.choice(places)
        alter_field(message, field, chance, places)
    serialized: bytes = model.SerializeToString()
    return serialized


def values_of(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every field that is set, of a message and of all within it."""
    for field, value in message.ListFields():
        yield message, field
        if field.type == field.TYPE_MESSAGE:
            for one in value if is_repeated(message, field) else [value]:
                yield from values_of(one)


def is_repeated(message: Any, field: Any) -> bool:
    """Whether a field holds several values."""
    return hasattr(getattr(message, field.name), "extend")


def alter_field(message: Any, field: Any, chance: random.Random, places: Sequence[Any]) -> None:
    """Change one field."""
    value = getattr(message, field.name)
    if is_repeated(message, field):
        at = chance.randrange(len(value))
        if chance.random() < 0.3:
            del value[at]
        elif field.type == field.TYPE_MESSAGE:
            value.add().CopyFrom(value[at])
        else:
            value[at] = another(value[at], field, chance, places)
    elif field.type == field.TYPE_MESSAGE:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, another(value, field, chance, places))


def another(value: Any, field: Any, chance: random.Random, places: Sequence[Any]) -> Any:
    """A hostile value of the same type."""
    if field.enum_type:
        return chance.choice(field.enum_type.values).number
    if isinstance(value, float):
        return chance.choice(REALS)
    if isinstance(value, int):
        bits = 31 if field.cpp_type == field.CPPTYPE_INT32 else 63
        fitting = (one for one in (value - 1, value + 1, *NUMBERS) if -(2**bits) <= one < 2**bits)
        return chance.choice(list(fitting))
    if isinstance(value, bytes):
        return bytes_altered(value, chance)
    if field.name == "op_type":
        return chance.choice(OPERATORS)
    texts = [one for place, field in places if isinstance(one := getattr(place, field.name), str)]
    return chance.choice([*texts, "", "\0", "\x1b]0;title\a", "../" * 8 + "etc/passwd", "é" * 4000])
