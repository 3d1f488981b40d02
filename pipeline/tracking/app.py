"""MLflow's pages as `ferry ui` serves them: they open on trained models, not on language models.

`mlflow server --app-name ferry` finds this module by its entry point. Its one change is a script
before MLflow's own, which presses what a person would press, once, and leaves it to him later.
"""

import json
from pathlib import Path

from flask import Response
from mlflow.server import app as pages
from mlflow.server.fastapi_app import app

__all__ = ["app"]

CHOICES = {
    "mlflow.workflowType_v1": json.dumps("machine_learning"),
    # The assistant, which takes a fifth of the page, opens when it is asked for.
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    # An advertisement that covers the registry.
    "_mlflow_model_registry_promo_modal_dismissed_v1": "true",
}
SCRIPT = f"""<script>
for (const [key, value] of Object.entries({json.dumps(CHOICES)}))
  if (localStorage.getItem(key) === null) localStorage.setItem(key, value);
</script>"""


def page() -> Response:
    """MLflow's one page, with the choices made."""
    text = (Path(pages.static_folder or "") / "index.html").read_text(encoding="utf-8")
    return Response(text.replace("<head>", f"<head>{SCRIPT}", 1), mimetype="text/html")


pages.view_functions["serve"] = page
