"""What MLflow's page of an experiment shows of its runs: one table with the columns that compare.

MLflow keeps such a view as a tag of the experiment. It opens by its address, or by the page's
button Views.
"""

import json

KEY = "results"
MACHINE_LEARNING = "workflowType=machine_learning"
"""Without it MLflow opens its pages for language models."""
COLUMNS = (
    *(f"metrics.`{name}`" for name in ("accuracy", "loss", "flips", "p50_ms", "speedup", "bytes")),
    *("tags.`ferry.ships`", "tags.`ferry.parity`", "attributes.`Models`"),
)
FIRST = ("attributes.`Run Name`", "runDateAndNestInfo")
WIDTHS = {**dict.fromkeys(COLUMNS, 100), FIRST[0]: 250, FIRST[1]: 130}
"""In pixels."""


def experiment_tags() -> dict[str, str]:
    """The tags of every experiment."""
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "selectedColumns": COLUMNS,
        "columnOrder": [*FIRST, *COLUMNS],
        "columnWidths": WIDTHS,
    }
    view = {"name": "Results", "createdAt": 1, "updatedAt": 1, "state": json.dumps(state)}
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{KEY}": json.dumps(view),
    }


def address_of_results(experiments: list[str]) -> str:
    """Where the pages open: the runs of the one experiment, by its id, or the list of several."""
    if len(experiments) == 1:
        return f"/#/experiments/{experiments[0]}/runs?viewStateShareKey={KEY}&{MACHINE_LEARNING}"
    return f"/#/experiments?{MACHINE_LEARNING}"
