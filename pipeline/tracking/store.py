"""The store that MLflow keeps its runs in: where it lies, and how it is made and mended.

The project's own store is `mlflow.db`, with artifacts in `mlruns/` beside it. It is made whole
under a lock, as two processes that let MLflow do so at once break it. One that cannot be used is
set aside under another name, never removed.
"""

import contextlib
import functools
import logging
import os
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from pipeline.config import layout
from pipeline.tracking.journal import FOLDER, SENT
from serving.batch.lock import lock_output
from serving.errors import FerryError, OutputError, one_line, redacted
from serving.files import building, write_bytes

logger = logging.getLogger(__name__)

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow would make a run twice where only the answer was lost. The sender looks before.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "5",
}
SQLITE = "sqlite:///"
DATABASE, ARTIFACTS = "mlflow.db", "mlruns"
"""Of the project's own store."""
EXPERIMENTS = Path(".dvc/tmp/exps")
"""Below a project, where DVC keeps the copies in which it runs queued experiments."""
SECONDS_TO_WAIT = 60.0
"""For another process that makes or mends the store."""
SECONDS_OF_A_WRITE = 20.0
"""How long another program may write before the store is taken for locked; MLflow waits as long."""
BYTES_TO_CHECK = 64 << 20
"""A larger store is not read to its end each time: that takes seconds."""
BESIDE = ("-journal", "-wal", "-shm")
"""Ends of the names of SQLite's files beside a database."""
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""What SQLite says of a file that holds no store; all else, as a lock, may pass."""
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns that tell where artifacts lie, as absolute paths or addresses of files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLook:
    """What a look at the project's store found."""

    state: Literal["whole", "missing", "moved", "older", "newer", "broken"]
    reason: str = ""


def store_root() -> Path:
    """The folder that keeps the project's `mlflow.db` and `mlruns/`: that of params.yaml.

    DVC runs a queued experiment in a copy of the project, which it removes: its runs belong into
    the project itself.
    """
    project = layout.project().resolve()
    for real in reversed(project.parents):
        if project.is_relative_to(real / EXPERIMENTS):
            above = (project, *project.parents)
            copy = next((one for one in above if (one / ".dvc").is_dir()), project)
            return real / project.relative_to(copy)
    return project


def store_uri() -> str:
    """Where runs are kept: MLFLOW_TRACKING_URI, or `mlflow.db` in the folder of `store_root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or uri_of(store_root() / DATABASE)


def uri_of(database: Path) -> str:
    """The address of a file as SQLAlchemy reads it, which takes `%41` for an A."""
    return SQLITE + re.sub("[%?#]", lambda found: quote(found[0]), str(database))


def path_of(uri: str) -> Path:
    """The file of such an address."""
    return Path(unquote(uri.removeprefix(SQLITE)))


def store_key() -> str:
    """What notes of the store call it: the project's own is the same wherever the project lies.

    Another password leads to the same store.
    """
    uri = store_uri()
    return DATABASE if uri == uri_of(store_root() / DATABASE) else redacted(uri)


def artifact_root() -> str | None:
    """Where artifacts of a local store are kept; None where the server says where.

    MLflow's own choice would follow the working directory.
    """
    return (store_root() / ARTIFACTS).as_uri() if store_uri().startswith("sqlite:") else None


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


def open_store() -> Any:
    """MLflow, set to the store, which is made or mended before; OutputError as `prepare` does."""
    prepare()
    mlflow = load_mlflow()
    mlflow.set_tracking_uri(store_uri())
    return mlflow


def prepare() -> None:
    """Make the store where there is none, and mend what is wrong with the project's own.

    What is mended is logged, a line each. A store elsewhere, of MLFLOW_TRACKING_URI, is only made.
    Raises OutputError for one that is locked, that cannot be read or written, or that another
    process is making; nothing was changed then.
    """
    uri = store_uri()
    if not uri.startswith(SQLITE) or "?" in uri:
        return
    path = path_of(uri).absolute()
    try:
        if _look(path).state == "whole":
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_output(path, SECONDS_TO_WAIT):
            # Another process may have mended it meanwhile, and one fault may hide another.
            while (look := _look(path)).state != "whole":
                MENDS[look.state](path, look)
    except FerryError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise OutputError(f"the store of runs {path} cannot be used: {one_line(error)}") from error


# What is wrong


def _look(path: Path) -> StoreLook:
    """Say what is wrong with a store, if anything; sqlite3.Error for what may pass."""
    if not path.exists() or path.stat().st_size == 0:
        return StoreLook(state="missing")
    if path != store_root() / DATABASE:
        return StoreLook(state="whole")  # whoever named it knows what it is
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError("it cannot be read and written; see its permissions")
    try:
        with closing(_connect(path)) as database:
            return _look_inside(database, path.stat().st_size)
    except sqlite3.DatabaseError as error:
        if _may_pass(error):
            raise
        return StoreLook(state="broken", reason=one_line(error))


def _look_inside(database: sqlite3.Connection, size: int) -> StoreLook:
    if size <= BYTES_TO_CHECK:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            return StoreLook(state="broken", reason=" ".join(found.split()))
    known, tables = _schema()
    (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
    if revision and revision not in known:
        return StoreLook(state="newer", reason=revision)
    if revision and revision != known[0]:
        return StoreLook(state="older", reason=revision)
    there = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if lacking := sorted(tables - there):
        return StoreLook(state="broken", reason=f"it lacks the table {lacking[0]}")
    old = _other_roots(database)
    return StoreLook(state="moved", reason=" and ".join(old)) if old else StoreLook(state="whole")


@functools.cache
def _schema() -> tuple[Sequence[str], set[str]]:
    """The revisions that this MLflow knows, the newest first, and the tables of that one."""
    load_mlflow()
    import mlflow.store.db.utils  # which names all tables to SQLAlchemy
    from alembic.script import ScriptDirectory
    from mlflow.store.db.base_sql_model import Base

    folder = Path(mlflow.store.db.utils.__file__).parents[1] / "db_migrations"
    revisions = [one.revision for one in ScriptDirectory(str(folder)).walk_revisions()]
    return revisions, set(Base.metadata.tables)


def _other_roots(database: sqlite3.Connection) -> list[str]:
    """The folders other than the project's that its experiments keep artifacts in.

    They are absolute, so that a project that was moved looks in the place that it left, and a copy
    writes into the original. Places that were not made by ferry are not called `mlruns`.
    """
    found = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    addresses = (urlsplit(location or "") for (location,) in found)
    roots = {unquote(one.path) for one in addresses if one.scheme == "file" and not one.netloc}
    return sorted(
        one
        for one in roots
        if Path(one).name == ARTIFACTS and Path(one) != store_root() / ARTIFACTS
    )


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=SECONDS_OF_A_WRITE)


def _may_pass(error: sqlite3.Error) -> bool:
    """Whether it is no fault of the file: a lock, a full disk, a folder that cannot be read."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF not in BROKEN


# Mending


def _create(path: Path, _look: StoreLook) -> None:
    """Make a store in memory, and write it down whole."""
    load_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    memory = f"file:{uuid.uuid4().hex}?mode=memory&cache=shared"
    with closing(sqlite3.connect(memory, uri=True)) as database:
        SqlAlchemyStore(f"{SQLITE}{memory}&uri=true", artifact_root()).engine.dispose()
        content = database.serialize()
    if path.exists():
        logger.warning("%s was empty; it is made anew", path)
    # Else what is left of another database would be played into this one.
    _rename(path, "old", BESIDE)
    # The journals are sent again: the store that had them is gone.
    for note in (store_root() / FOLDER).glob(f"*/{SENT}"):
        note.unlink(missing_ok=True)
    write_bytes(path, content)


def _set_aside(path: Path, look: StoreLook) -> None:
    """Give a store that cannot be used another name, so that the next look finds none."""
    # The database last: whoever comes between finds a broken one, as it was.
    kept = _rename(path, look.state, (*BESIDE, ""))
    what = "was written by a newer MLflow, of schema" if look.state == "newer" else "is broken:"
    logger.warning("%s %s %s; it is kept as %s, runs begin anew", path, what, look.reason, kept)


def _rename(path: Path, word: str, ends: Sequence[str]) -> str:
    name = f"{path.name}.{word}-{time.strftime('%Y%m%d-%H%M%S')}"
    for end in ends:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(path.with_name(name + end))
    return name


def _upgrade(path: Path, look: StoreLook) -> None:
    """Bring a copy to the schema of this MLflow, and put it in place; the old store is kept."""
    kept = path.with_name(f"{path.name}.{look.reason}")
    with (
        closing(_connect(path)) as database,
        building(path, folder=True) as (folder, _),
    ):
        database.execute("BEGIN IMMEDIATE")  # nobody writes into what is left behind
        copy = folder / path.name
        write_bytes(kept, database.serialize())
        shutil.copyfile(kept, copy)
        if error := _failure_of_upgrade(copy):
            cause = getattr(error, "orig", None)
            if isinstance(cause, sqlite3.Error) and _may_pass(cause):
                raise cause
            reason = f"MLflow cannot upgrade it: {one_line(error, 200)}"
            _set_aside(path, StoreLook(state="broken", reason=reason))
            return
        copy.replace(path)
    logger.warning("%s has MLflow's new schema; the old one is kept as %s", path, kept.name)


def _failure_of_upgrade(path: Path) -> Exception | None:
    load_mlflow()
    from mlflow.db import upgrade

    try:
        upgrade.main([uri_of(path)], standalone_mode=False)
    except Exception as error:  # noqa: BLE001 - a migration may raise what it likes
        return error
    return None


def _move_artifacts(path: Path, look: StoreLook) -> None:
    """Let the store name the artifacts where they lie now, in one transaction."""
    new = store_root() / ARTIFACTS
    with closing(_connect(path)) as database, database:
        for old in _other_roots(database):
            _replace_root(database, old, str(new))
            _replace_root(database, Path(old).as_uri(), new.as_uri())
    logger.warning(
        "the project was moved or copied: artifacts of %s are now in %s", look.reason, new
    )


def _replace_root(database: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in PLACES:
        database.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - of PLACES
            f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )


MENDS: Mapping[str, Callable[[Path, StoreLook], None]] = {
    "missing": _create,
    "moved": _move_artifacts,
    "older": _upgrade,
    "newer": _set_aside,
    "broken": _set_aside,
}
