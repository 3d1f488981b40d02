"""Which columns of a table are the model's input.

`--column` names them; where it does not, there must be no choice, or a usual name.
"""

from collections.abc import Sequence

from serving.errors import InputError, nearest
from serving.runtime.tensors import TensorInfo

TEXT_NAMES = ("text", "sentence")


def refuse_unknown(name: str, there: Sequence[str], asked: Sequence[str]) -> None:
    """Raise InputError for the first column asked for that the file `name` has not."""
    unknown = [column for column in asked if column not in there]
    if unknown:
        raise InputError(f"{name} has no column {unknown[0]!r}{nearest(unknown[0], there)}")


def refuse_twice(name: str, there: Sequence[str], taken: Sequence[str]) -> None:
    """Raise InputError for a column to be read whose name the file gives to several."""
    twice = [column for column in taken if there.count(column) > 1]
    if twice:
        raise InputError(f"{name} has several columns named {twice[0]!r}")


def text_column(name: str, there: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """The one column with the text of the file `name`; InputError when that cannot be told."""
    if len(asked) > 1:
        raise InputError(f"{name}: the model takes one text, --column names {', '.join(asked)}")
    usual = [column for column in TEXT_NAMES if column in there]
    found = [*asked, *(there if len(there) == 1 else usual)]
    if not found:
        raise InputError(
            f"{name} has the columns {', '.join(there)}; name the one with the text with --column"
        )
    return (found[0],)


def number_columns(
    name: str, there: Sequence[str], asked: Sequence[str], info: TensorInfo
) -> tuple[str, ...]:
    """The columns with the features of the file `name`; InputError for too many or few."""
    if all(_is_number(column) for column in there):
        raise InputError(f"{name}: its first line is numbers; it should name the columns")
    names = tuple(asked or there)
    features = info.shape[1]
    if isinstance(features, int) and len(names) != features:
        raise InputError(
            f"{name}: the model takes {info.takes()}, and there are {len(names)} columns "
            f"({', '.join(names)}); name {features} of them with --column"
        )
    return names


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
