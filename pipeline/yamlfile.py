"""Read a YAML file that holds plain values alone: text, numbers, booleans, lists and mappings.

What YAML would let pass in silence, or turn into something else, is refused with its full path: a
key that stands twice, a date, a key that is no text.
"""

from pathlib import Path

import yaml

from pipeline.errors import ConfigError, MissingInputError

__all__ = ["dump_yaml", "read_yaml"]

TAG = "tag:yaml.org,2002:"
TEXT = f"{TAG}str"
MERGE = f"{TAG}merge"
PLAIN = (TEXT, f"{TAG}int", f"{TAG}float", f"{TAG}bool", f"{TAG}null", f"{TAG}seq", f"{TAG}map")


def read_yaml(path: Path) -> object:
    """Read the one document of a file.

    Raises MissingInputError when there is no such file and ConfigError for what is wrong in it.
    """
    try:
        loader = yaml.SafeLoader(path.read_bytes())
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{path} is empty")
        _check(node, (), ())
        return loader.construct_document(node)
    except FileNotFoundError as error:
        raise MissingInputError(
            f"{path} is not there; run ferry where params.yaml lies, or name that folder with -C"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error


def dump_yaml(value: object) -> str:
    """Text that `read_yaml` reads back as it was; numbers with an exponent get their point."""
    text: str = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100)
    return text


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
