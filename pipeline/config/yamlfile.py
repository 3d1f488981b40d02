"""Read and write the YAML of settings: params.yaml, dvc.yaml and dvc.lock.

What is read is bounded before it is built: in bytes, in depth, and in what its aliases come to.
Whatever is refused is told in one line: the file and the line in it, or the key's full path.
"""

import stat
import sys
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from pipeline.errors import ConfigError
from serving.errors import MissingInputError, one_line

TAG = "tag:yaml.org,2002:"
TEXT = f"{TAG}str"
MAPPING = f"{TAG}map"
MERGE = f"{TAG}merge"
NUMBERS = (f"{TAG}int", f"{TAG}float", f"{TAG}bool")
PLAIN = (TEXT, *NUMBERS, f"{TAG}null", f"{TAG}seq", MAPPING)
LIBYAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_BYTES = 2**18
"""Of a file; some 300 experiments."""
MOST_WRITTEN_OUT = 2 * MOST_BYTES
"""Values and characters with each alias written out; without aliases no file has as many."""
MOST_LEVELS = 32
MOST_DIGITS = 100
LONGEST = 80
NOT_BUILT = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    ValueError,
)
"""What PyYAML raises for a value that is not of its kind: `!!int x`, `0x_`, 2026-13-45."""


def text_of(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file of settings, which must be a plain one, in UTF-8 and no larger than most.

    Raises ConfigError, and OSError when it is not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # to open a named pipe would wait for ever
        raise ConfigError(f"{path} is no plain file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    _refuse_large(content, str(path), most)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: byte {error.start} is not UTF-8") from error


def read_yaml(path: Path, entries_of: str) -> tuple[object, dict[str, str]]:
    """Read the one document of a file, which must hold plain values alone.

    What YAML would let pass in silence, or turn into something else, is refused: a key that stands
    twice, a date, a key that is no text. An entry of the section `entries_of` with such a mistake
    is read as an empty mapping, and the second answer says what is wrong in it.

    Raises MissingInputError when there is no such file and ConfigError for any other mistake.
    """
    try:
        node = _compose(text_of(path), str(path))
    except FileNotFoundError as error:
        raise MissingInputError(
            f"{path} is not there; run ferry where params.yaml lies or below, name that folder "
            f"with -C, or make a project with `ferry init`"
        ) from error
    if node is None:
        raise ConfigError(f"{path} is empty")
    wrong = _take_out_wrong_entries(node, entries_of)
    _check(node, ())
    return _built(node, str(path)), wrong


def read_value(text: str, where: str) -> object:
    """One value as it may stand in params.yaml; ConfigError, which begins with `where`."""
    node = _compose(text, f"{where}: {shortened(repr(text))}")
    if node is None:
        raise ConfigError(f"{where} has no value")
    _check(node, (where,))
    return _built(node, where)


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML that is taken as it is, as dvc.lock; ConfigError, which begins with `where`."""
    node = _compose(text, where)
    return None if node is None else _built(node, where)


def with_entry(path: Path, section: str, entry: str) -> str:
    """The text of a file that `read_yaml` reads, with one more entry at the end of a section.

    All else stays as it is, comments too. `entry` is indented by two. Raises ConfigError where the
    section is not there, is no mapping or stands in braces.
    """
    text = text_of(path)
    root: Any = _compose(text, str(path))
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


def dump_yaml(value: object) -> str:
    """Text that `read_yaml` reads back as it was; numbers with an exponent get their point."""
    text: str = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100)
    return text


def dump_value(value: object) -> str:
    """One value as it may stand in params.yaml, in one line."""
    text: str = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=sys.maxsize)
    return text.strip()[1:-1]


def _compose(text: str, where: str) -> yaml.Node | None:
    """The one document of a text; None where it has none."""
    _refuse_large(text, where)
    try:
        node = _composed(text, where, LIBYAML)
    except (yaml.YAMLError, UnicodeError):
        # Thirty times slower, PyYAML's own parser says better what is wrong.
        other = yaml.SafeLoader if len(text) <= MOST_BYTES // 4 else LIBYAML
        try:
            node = _composed(text, where, other)
        except (yaml.YAMLError, UnicodeError) as error:
            raise ConfigError(f"{where} is not YAML: {_said(error)}") from error
    if node is not None:
        _refuse_written_out(node, where)
    return node


def _said(error: Exception) -> str:
    return one_line(error, 300).replace(' in "<unicode string>",', " at")


def _composed(text: str, where: str, loader: Any) -> yaml.Node | None:
    level = 0
    for event in yaml.parse(text, loader):
        level += isinstance(event, yaml.CollectionStartEvent)
        level -= isinstance(event, yaml.CollectionEndEvent)
        _refuse_deep(event, level, where)
    return yaml.compose(text, loader)


def _refuse_large(content: bytes | str, where: str, most: int = MOST_BYTES) -> None:
    if len(content) > most:
        raise ConfigError(f"{where} is larger than {most >> 10} KiB, the most that is read")


def _refuse_deep(place: Any, level: int, where: str) -> None:
    if level > MOST_LEVELS:
        raise ConfigError(
            f"{where} is nested too deeply: more than {MOST_LEVELS} levels in line "
            f"{place.start_mark.line + 1}"
        )


def _refuse_written_out(root: yaml.Node, where: str) -> None:
    """Refuse what is too deep, or too much, with each alias written out."""
    size, waiting = 0, [(root, 1)]
    while waiting:
        node, level = waiting.pop()
        _refuse_deep(node, level, where)
        size += 1 + len(node.value)
        if size > MOST_WRITTEN_OUT:
            raise ConfigError(
                f"{where} comes to more than {MOST_WRITTEN_OUT >> 10} KiB with its aliases written "
                f"out; write the values themselves"
            )
        if isinstance(node, yaml.MappingNode):
            waiting += [(one, level + 1) for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(one, level + 1) for one in node.value]


def _built(node: yaml.Node, where: str) -> Any:
    try:
        return SafeConstructor().construct_document(node)
    except NOT_BUILT as error:
        raise ConfigError(f"{where} is not YAML: {_said(error)}") from error


def _take_out_wrong_entries(node: yaml.Node, section: str) -> dict[str, str]:
    wrong: dict[str, str] = {}
    for key, entries in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == section and isinstance(entries, yaml.MappingNode):
            for index, (name, entry) in enumerate(entries.value):
                try:
                    _check(entry, (section, str(name.value)))
                except ConfigError as error:
                    wrong[str(name.value)] = str(error)
                    entries.value[index] = name, yaml.MappingNode(MAPPING, [])
    return wrong


def _check(node: yaml.Node, where: tuple[str, ...]) -> None:
    """Refuse what is not plain in `node`, which lies at `where`."""
    if node.tag in NUMBERS and len(node.value) > MOST_DIGITS:
        raise ConfigError(f"{_path(where)} must be a number of at most {MOST_DIGITS} digits")
    if node.tag not in PLAIN or (node.tag in NUMBERS and not _can_be_built(node)):
        raise ConfigError(
            f"{_path(where)} must be a plain value, got {shortened(node.tag.removeprefix(TAG))} "
            f"{_shown(node)}; a text of that form needs quotes"
        )
    if isinstance(node, yaml.MappingNode):
        _check_mapping(node, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check(item, (*where, str(index)))
    elif not node.value.isprintable():
        raise ConfigError(f"{_path(where)} must be printable text, got {_shown(node)}")


def _can_be_built(node: yaml.Node) -> bool:
    try:
        SafeConstructor().construct_object(node)
    except NOT_BUILT:
        return False
    return True


def _check_mapping(node: yaml.MappingNode, where: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for key, value in node.value:
        text = isinstance(key, yaml.ScalarNode) and key.tag in (TEXT, MERGE)
        if not text or not key.value.isprintable():
            raise ConfigError(f"{_path((*where, _shown(key)))} is not a key: keys are text")
        path = (*where, key.value)
        if key.value in seen:
            line = key.start_mark.line + 1
            raise ConfigError(f"{_path(path)} is there twice, the second time in line {line}")
        seen.add(key.value)
        _check(value, path)


def _path(where: tuple[str, ...]) -> str:
    return shortened(".".join(where)) or "the file"


def _shown(node: yaml.Node) -> str:
    scalar = isinstance(node, yaml.ScalarNode)
    return shortened(repr(node.value)) if scalar else "a list or mapping"


def shortened(text: str) -> str:
    """As much of a value or a path as an error shows."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
