"""MLflow, and the only place that imports it: one run per training, which later stages add to.

Tracking never stops a stage. What MLflow could not record is told in one warning at the end, and
the metrics files are complete without it.
"""

from pipeline.tracking.models import Signature
from pipeline.tracking.runs import (
    MAX_FAILURES,
    WEIGHTS_TAG,
    Tracker,
    run_of_training,
    run_of_weights,
)
from pipeline.tracking.store import store_uri

__all__ = [
    "MAX_FAILURES",
    "WEIGHTS_TAG",
    "Signature",
    "Tracker",
    "run_of_training",
    "run_of_weights",
    "store_uri",
]
