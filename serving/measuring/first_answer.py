"""Answer one row and say so: the program whose cold start is measured.

Run: python -m serving.measuring.first_answer MODEL PROVIDER [ROWS]

It stands alone because every import counts: it reads what `ferry predict` reads and no more.
"""

import sys
from pathlib import Path


def main() -> None:
    """Open the model as `ferry predict` does, answer one row, print a line."""
    from serving.runtime.guard import be_killed_with_parent

    be_killed_with_parent()
    from serving.bundles.bundle import model_source
    from serving.measuring.feeds import feeds_of, fixed_batch, read_rows
    from serving.runtime.session import open_session

    model, provider, *files = sys.argv[1:]
    path = Path(model)
    content, shared = model_source(path, provider)
    session = open_session(content, provider=provider, shared=shared)
    rows = fixed_batch(session.inputs) or 1
    real = read_rows(Path(files[0]), session.inputs, path, rows) if files else {}
    session.run(feeds_of(session.inputs, real, rows))
    sys.stdout.write("answered\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
