"""What a student is taught: the logits of its teacher for each training row, in so many views.

`ferry teach` asks the teacher once, and every training of the student reads the file, whatever its
seed: to ask a large teacher at each step would take longer than the step.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from pipeline.config import layout
from pipeline.config.experiment import Experiment
from pipeline.records import read_recorded
from pipeline.records.train import Teaching
from pipeline.training.checkpoint import metadata
from serving.errors import IntegrityError
from serving.files import dump_json, sha256_of_bytes, write_bytes

KEY = "ferry"
"""Of the header, which says of what the logits are."""


def save(path: Path, logits: Tensor, teaching: Teaching) -> str:
    """Write float16 [views, rows, classes], whole or not at all; returns the file's sha256."""
    content = safetensors.torch.save({"logits": logits}, {KEY: dump_json(teaching)})
    write_bytes(path, content)
    return sha256_of_bytes(content)


def load(content: bytes) -> tuple[Tensor, Teaching]:
    """The logits and what they are of; IntegrityError for bytes that are no such file."""
    try:
        logits = safetensors.torch.load(content)["logits"]
        return logits, Teaching(**json.loads(metadata(content)[KEY]))
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise IntegrityError(f"no file of a teacher's logits: {error}") from error


def read(weights: Path, experiment: str) -> bytes:
    """The file of the logits that an experiment learns from, which lies beside `weights`, its own.

    Raises MissingInputError where its teacher was not asked yet, and IntegrityError for bytes that
    are not those that were written.
    """
    path = weights.parent.joinpath(*layout.taught(experiment).parts[-2:])
    return read_recorded(path, f"teach@{experiment}")


def lessons(content: bytes, experiment: Experiment, data_sha256: str) -> tuple[Tensor, Teaching]:
    """What `load` gives, if it is for the experiment's settings and data; else IntegrityError."""
    logits, teaching = load(content)
    teacher, augment = experiment.train.teacher, asdict(experiment.train.augment)
    wanted = replace(teaching, augment=augment, data_sha256=data_sha256)
    if teacher:
        wanted = replace(wanted, experiment=teacher.experiment, views=teacher.views)
    if wanted != teaching:
        raise IntegrityError(
            f"the logits for {experiment.name} are of other settings or data; "
            f"`ferry teach {experiment.name}` makes them anew, with those of params.yaml"
        )
    return logits, teaching
