"""The store that MLflow keeps its runs in: where it lies, and how MLflow is set up for it."""

import logging
import os
from pathlib import Path
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


def store_root() -> Path:
    """The folder of the checkout that keeps mlflow.db, mlruns/ and tracking/."""
    return layout.project().resolve()


def artifact_root() -> str | None:
    """Where a new experiment of the local store keeps its files; None where a server says it."""
    # An absolute place, else artifacts would follow the working directory.
    return (store_root() / "mlruns").as_uri() if store_uri().startswith("sqlite:") else None


def open_store() -> Any:
    """MLflow, set up for the store, which is made where there is none."""
    mlflow = load_mlflow()
    mlflow.set_tracking_uri(store_uri())
    return mlflow
