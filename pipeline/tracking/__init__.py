"""MLflow, and the only place that imports it: one run per training, which later stages add to.

Tracking never stops a stage. One warning at the end names what MLflow could not record, and
the metrics files are complete without it.
"""

from pipeline.tracking.models import Signature, store_uri
from pipeline.tracking.runs import (
    MAX_FAILURES,
    WEIGHTS_TAG,
    Tracker,
    run_of_predictions,
    run_of_training,
    run_of_weights,
)

__all__ = [
    "MAX_FAILURES",
    "WEIGHTS_TAG",
    "Signature",
    "Tracker",
    "run_of_predictions",
    "run_of_training",
    "run_of_weights",
    "store_uri",
]
