"""What this project has deployed to devices: a file of each, and figures of the model's MLflow run.

    reports/devices/HOST_opt_model.0123abcd.json    the last deployment there, a `DeployReport`

`ferry devices` asks the devices themselves; these files say which there are, and what was measured.
"""

import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline import tracking
from pipeline.config import layout
from pipeline.records.places import PlaceReport, Places
from serving.bundles.bundle import FOREIGN
from serving.edge.deploy import DeployReport
from serving.edge.state import DeviceState
from serving.errors import FerryError, one_line
from serving.files import read_json, read_record, sha256_of_bytes, write_json

logger = logging.getLogger(__name__)

DEPLOYMENTS = Path("reports/devices")
"""Below the folder of params.yaml."""


def record(reports: Sequence[DeployReport], *, track: bool) -> None:
    """Keep what devices measured, if this is a project; what cannot be kept is a warning."""
    served = [one for one in reports if one.outcome != "failed"]
    if not served or not layout.PARAMS.is_file():
        return
    try:
        for one in served:
            write_json(DEPLOYMENTS / _file_name(one), one)
            if place := _place(one):
                write_json(layout.DEVICES / _file_name(one), place)
        _track([one.state for one in served if one.state and one.outcome == "deployed"], track)
    except (FerryError, OSError) as error:
        logger.warning("Not all of this was recorded: %s", one_line(error))


def deployed_here(project: Path = Path()) -> tuple[DeployReport, ...]:
    """The last deployment to each device; IntegrityError for a file that ferry did not write."""
    files = sorted((project / DEPLOYMENTS).glob("*.json"))
    return tuple(read_record(DeployReport, read_json(one), str(one)) for one in files)


def _file_name(one: DeployReport) -> str:
    place = f"{one.host}{one.state.path if one.state else ''}"
    # /opt/a/b and /opt/a_b are one word, and two places.
    return f"{_word(place)}.{sha256_of_bytes(place.encode())[:8]}.json"


def _place(one: DeployReport) -> Places | None:
    """What the page shows of it: the golden rows, which a device passes or does not serve."""
    state = one.state
    if not (state and state.machine and state.name and state.model_sha256 and state.golden_rows):
        return None
    machine, rows = state.machine, state.golden_rows
    report = PlaceReport(
        variant=state.variant or "",
        place=one.host,
        runtime=f"onnxruntime {machine.onnxruntime}",
        machine=f"{machine.processor}, {machine.architecture}",
        sha256=state.model_sha256,
        rows=rows,
        equal=rows,
        near_ties=0,
        flips=0,
        largest_diff=state.selftest or 0.0,
        diff_of="golden rows",
        p50_ms=state.p50_ms,
        bytes=state.model_bytes or 0,
        command=f"ferry deploy bundles/{state.name} {one.target}",
        revision="",
    )
    return Places(experiment=state.name, reports=(report,))


def _word(text: str) -> str:
    """What MLflow and every system of files take as a name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")


def _track(states: Sequence[DeviceState], track: bool) -> None:
    """Give the runs that trained the models what devices measured of them."""

    def weights(one: DeviceState) -> tuple[str, str]:
        return one.name or "", one.weights_sha256 or ""

    known = [one for one in states if all(weights(one)) and one.variant != FOREIGN]
    for (name, sha256), group in itertools.groupby(sorted(known, key=weights), key=weights):
        with tracking.run_of_weights(name, sha256, track=track) as tracker:
            for one in group:
                device = f"devices/{_word(one.host)}"
                figures = dict(one.bench)
                if one.selftest is not None:
                    figures["selftest"] = one.selftest
                tracker.log_metrics({f"{device}/{key}": value for key, value in figures.items()})
                about = {"digest": one.digest, "variant": one.variant, "since": one.since}
                if one.machine:
                    about |= {"machine": f"{one.machine.processor}, {one.machine.architecture}"}
                tracker.log_tags(
                    {f"ferry.{device}/{key}": value for key, value in about.items() if value}
                )
