"""What the stages leave in `metrics/`: one file of records per stage that others read.

They import no heavy package, so that results, report and bundle read them without torch.
"""

from pathlib import Path
from typing import TypeVar

from serving.files import read_json, read_record, require

Record = TypeVar("Record")


def read(record: type[Record], path: Path, command: str) -> Record:
    """Read what a stage wrote; `command` is what makes it.

    Raises MissingInputError without the file and IntegrityError when it is not such a record.
    """
    return read_record(record, read_json(require(path, command)), str(path))
