"""The store that MLflow keeps its runs in: where it lies, and how MLflow is set up for it."""

import logging
import os
from typing import Any

from pipeline.config import layout

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "5",
}


def store_uri() -> str:
    """Where runs are kept: MLFLOW_TRACKING_URI, or `mlflow.db` in the folder of params.yaml."""
    return (
        os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{layout.project().resolve()}/mlflow.db"
    )


def load_mlflow() -> Any:
    """The module, imported on the first call: that takes seconds."""
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    import mlflow

    # It logs its migrations line by line, and its advice is not about this run. After the import,
    # which sets the level itself.
    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow
