"""Rows from stdin, `-` among the inputs: what the model takes, or what `--input-format` says."""

from collections.abc import Callable, Sequence
from pathlib import Path

from serving.errors import InputError, UnknownNameError
from serving.inputs.arrays import open_array_stream
from serving.inputs.decoding import image_decoder
from serving.inputs.images import open_image_list
from serving.inputs.items import Source
from serving.inputs.lines import open_lines, row_shape_of_texts
from serving.inputs.tables import open_table_of_lines, takes_numbers
from serving.runtime.tensors import TensorInfo

INPUT_FORMATS = ("list", "text", "csv", "jsonl", "arrow", "npy")
"""Paths of images and texts, one a line; tables; and an array."""


def format_of_stdin(info: TensorInfo, model: Path, asked: str | None) -> str:
    """What stdin holds for the input `info` of `model`: paths of images, texts or rows of numbers.

    Raises UnknownNameError for a format that is none, and InputError where none goes without
    saying.
    """
    if asked is not None:
        if asked not in INPUT_FORMATS:
            raise UnknownNameError("input format", asked, INPUT_FORMATS)
        return asked
    if row_shape_of_texts(info) is not None:
        return "text"
    if takes_numbers(info):
        return "csv"
    try:
        image_decoder("stdin", info, model, resize=False)
    except InputError as error:
        raise InputError(
            f"stdin: {model} takes {info.takes()}; say what comes, npy or arrow, with "
            f"--input-format"
        ) from error
    return "list"


def open_stdin(
    form: str, info: TensorInfo, model: Path, columns: Sequence[str], *, resize: bool
) -> Source:
    """The rows of stdin, which is of the format `form`, for the input `info` of `model`.

    No more is read than the names of the columns, or the header of an array. Raises InputError for
    what does not fit the model.
    """
    if form in ("csv", "jsonl"):
        return open_table_of_lines(None, info, model, columns, form=form)
    if form == "arrow":
        from serving.inputs.arrow import open_arrow

        return open_arrow(None, info, model, columns, resize=resize)
    openers: dict[str, Callable[[], Source]] = {
        "list": lambda: open_image_list(None, info, model, resize=resize),
        "text": lambda: open_lines(None, info, model),
        "npy": lambda: open_array_stream(info, model),
    }
    return openers[form]()
