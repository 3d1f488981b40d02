"""Answer one row and say so: the program whose cold start is measured, of PyTorch or of MLflow.

Run: python -m pipeline.stages.baselines.first_answer SETUP, the setup of a baseline as JSON
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Open what the setup says, answer one row, print a line."""
    setup = json.loads(sys.argv[1])
    if "saved" in setup:
        from pipeline.stages.baselines.mlflow_baseline import default_folder
        from pipeline.tracking.models import open_pyfunc

        answer, _ = open_pyfunc(default_folder(Path(setup["saved"])))
    else:
        from pipeline.stages.baselines.torch_model import open_torch

        answer = open_torch(setup).answer

    from pipeline.stages.baselines.torch_model import first_row

    answer(first_row(Path(setup["data"])))
    sys.stdout.write("answered\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
