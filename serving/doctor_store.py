"""Look at the place where MLflow keeps its runs, without importing mlflow.

A database file is opened for nothing but its first bytes, and a server is only asked to pick up.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

__all__ = ["StoreState", "look_at_store"]

SQLITE_MAGIC = b"SQLite format 3\x00"
CONNECT_SECONDS = 2.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass(frozen=True, slots=True)
class StoreState:
    """What was found, and the one-line fix if it will not do."""

    detail: str
    fix: str | None = None


def look_at_store(folder: Path, uri: str | None) -> StoreState:
    """Look at the store that `uri` (MLFLOW_TRACKING_URI) names, else at `folder`/mlflow.db."""
    if not uri:
        return _database(folder / "mlflow.db")
    # Never tell the address as it is given: it may hold a password.
    address = urlsplit(uri)
    scheme = address.scheme.split("+")[0]
    if scheme == "sqlite":
        # sqlite:///relative and sqlite:////absolute, as SQLAlchemy reads them.
        return _database(folder / unquote(address.path.removeprefix("/")))
    if scheme in ("", "file"):
        return _directory(folder / unquote(address.path))
    if scheme not in PORTS:
        return StoreState(f"kept by {scheme}, which is not looked at")
    return _server(address, PORTS[scheme])


def _database(path: Path) -> StoreState:
    if not path.exists():
        if os.access(path.parent, os.W_OK):
            return StoreState(f"{path} will be made by the first training")
        return StoreState(f"{path.parent} is not writable", f"chmod u+w {path.parent}")
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        return StoreState(f"{path} is not a writable file", f"chmod u+rw {path}")
    with path.open("rb") as file:
        start = file.read(len(SQLITE_MAGIC))
    if start not in (b"", SQLITE_MAGIC):
        return StoreState(f"{path} is not an SQLite database", f"mv {path} {path}.broken")
    return StoreState(f"{path}, {path.stat().st_size / 2**20:.1f} MiB, writable")


def _directory(path: Path) -> StoreState:
    there = path if path.exists() else path.parent
    if there.is_dir() and os.access(there, os.W_OK):
        return StoreState(f"folder {path}, writable")
    return StoreState(f"folder {path} cannot be written", "set MLFLOW_TRACKING_URI to one that can")


def _server(address: SplitResult, default_port: int) -> StoreState:
    try:
        host, port = address.hostname, address.port or default_port
    except ValueError:
        host = None
    fix = "start the server, or unset MLFLOW_TRACKING_URI to keep runs in mlflow.db"
    if host is None:
        return StoreState(f"MLFLOW_TRACKING_URI names no {address.scheme} server", fix)
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return StoreState(f"{host}:{port} does not answer: {reason}", fix)
    return StoreState(f"{host}:{port} answers")
