"""How a run of `ferry predict` is done, and what of that its answers depend on."""

from dataclasses import dataclass, fields
from typing import Literal

from serving.errors import OutputError

Engine = Literal["local", "ray"]
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """How a run is done."""

    provider: str = "cpu"
    threads: int | None = None
    """Within one operator; None: as the bundle's profile says, or one without one."""
    workers: int | None = None
    """Batches at a time, and processes that decode images; None: as the profile says, or as many
    as the allowed cores have room for."""
    batch_rows: int | None = None
    """None: as the bundle's profile says, or 32 without one that fits."""
    array: str | None = None
    """The array to take from `.npz` files."""
    columns: tuple[str, ...] = ()
    """The columns to read of tables; () for all, or the one that fits."""
    input_format: str | None = None
    """What stdin holds; None: what the model takes."""
    resize: bool = False
    """Whether images are fitted to the model in size and mode."""
    limit: int | None = None
    """The most rows to read, unreadable ones counted."""
    probabilities: bool = False
    """Whether the score of every class is written too; for classifiers only."""
    top_k: int | None = None
    """Whether the best classes of each row are written too, and how many; for classifiers only."""
    format: str | None = None
    """One of `serving.batch.writers.FORMATS`; None: by the output's suffix."""
    default_format: str = "csv"
    """What goes to stdout when `format` is None."""
    overwrite: bool = False
    """Whether what is at the output is replaced; else a run that was stopped goes on."""
    max_errors: int | None = None
    """The most unreadable rows; None for any number."""
    reference: bool = False
    """Whether the rows are held against the statistics of the training data in the bundle."""
    engine: Engine = "local"
    ray_address: str | None = None
    """Of a cluster of Ray that runs; None for one on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKey:
    """What the answers of a run depend on: two runs of the same key write the same rows."""

    schema: int = SCHEMA
    model_sha256: str
    provider: str
    batch_rows: int
    inputs: tuple[str, ...]
    fingerprint: str | None
    """Of the inputs; None where one is a stream, whose shards carry digests instead."""
    array: str | None
    columns: tuple[str, ...]
    input_format: str | None
    resize: bool
    limit: int | None
    probabilities: bool
    top_k: int | None
    format: str
    reference: bool


WORDS = {
    "model_sha256": "another model",
    "fingerprint": "other inputs, or inputs that have changed since",
    "inputs": "other inputs",
}


def refuse_another(found: RunKey, key: RunKey, where: str) -> None:
    """Raise OutputError when what lies at `where` was begun by a run of another key."""
    for field in fields(RunKey):
        before, now = getattr(found, field.name), getattr(key, field.name)
        if before == now:
            continue
        name = field.name.replace("_", " ")
        message = WORDS.get(field.name, f"{name} {before}, not {now}")
        raise OutputError(
            f"{where} was begun with {message}; --overwrite begins again, or name another --output"
        )
