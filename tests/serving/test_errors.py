"""The exception tree is the one that the docstrings draw."""

import re
from types import ModuleType

import pytest

import pipeline.errors
import serving.errors
from serving.errors import FerryError, ModelError, UnknownNameError, nearest

LINE = re.compile(r"^[│├└─ ]*\b(\w+Error)\s+(?:\((\w+)\)\s+)?(?:exit (\d))?")


def drawn(module: ModuleType) -> dict[str, tuple[str, str | None, int | None]]:
    """Of each class that a docstring draws: its parent, its built-in base and its exit status."""
    tree: dict[str, tuple[str, str | None, int | None]] = {}
    above: list[str] = []
    root = None
    for found in filter(None, map(LINE.match, (module.__doc__ or "").splitlines())):
        name, builtin, status = found.groups()
        root = found.start(1) if root is None else root
        depth = (found.start(1) - root) // 4
        above = [*above[:depth], name]
        tree[name] = (above[-2] if depth else "", builtin, int(status) if status else None)
    return tree


MODULES = [serving.errors, pipeline.errors]
TREES = [(module, name) for module in MODULES for name in drawn(module)]


@pytest.mark.parametrize(("module", "name"), TREES, ids=[f"{m.__name__}.{n}" for m, n in TREES])
def test_each_class_hangs_where_it_is_drawn(module: ModuleType, name: str) -> None:
    parent, builtin, status = drawn(module)[name]
    error = getattr(module, name)
    if parent:
        assert error.__bases__[0].__name__ == parent
    if builtin:
        assert error.__bases__[1].__name__ == builtin
        assert error.__bases__[1].__module__ == "builtins"
    else:
        assert len(error.__bases__) == 1
    assert error.exit_code == (status or 1)
    assert error.__doc__


def test_the_drawings_are_found() -> None:
    assert drawn(serving.errors)["UsageError"] == ("FerryError", "ValueError", 2)
    assert drawn(pipeline.errors)["ParityError"] == ("GateError", None, None)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_class_is_drawn(module: ModuleType) -> None:
    own = {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    assert own <= set(drawn(module))


def test_a_caller_can_catch_the_builtin() -> None:
    with pytest.raises(FileNotFoundError):
        raise serving.errors.MissingInputError("x is not there")
    with pytest.raises(LookupError):
        raise UnknownNameError("model", "x", ())
    with pytest.raises(pipeline.errors.GateError):
        raise pipeline.errors.ParityError("x")


def test_the_message_is_the_text_itself() -> None:
    # A KeyError would put it in quotes, an OSError of two arguments would number it.
    for module in MODULES:
        for name in set(drawn(module)) - {"UnknownNameError", "DamagedError"}:
            error = getattr(module, name, FerryError)
            assert issubclass(error, FerryError)
            assert str(error("what it is")) == "what it is"


def test_an_unknown_name_tells_its_kind() -> None:
    error = UnknownNameError("data set", "mnits", ["digits", "mnist"])
    assert str(error) == "no data set named 'mnits'; did you mean 'mnist'?"
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("name", "known", "tail"),
    [
        ("mnits", ["mnist", "digits"], "; did you mean 'mnist'?"),
        ("zebra", ["mnist", "digits"], "; there are digits, mnist"),
        ("zebra", [], "; there are none"),
        ("", ["b", "a"], "; there are a, b"),
        ("epoch", {"epochs": 1, "epic": 2}, "; did you mean 'epochs'?"),
    ],
)
def test_nearest(name: str, known: list[str], tail: str) -> None:
    assert nearest(name, known) == tail


def test_nearest_takes_an_iterator() -> None:
    assert nearest("x", iter(("b", "a"))) == "; there are a, b"


def test_a_message_ends_where_a_name_of_millions_does_not() -> None:
    said = str(ModelError(f"the name {'n' * 10_000_000} is too long"))
    assert said.startswith("the name nnn")
    assert len(said) < 50_000
