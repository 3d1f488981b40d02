"""How many planted faults are named at the node that they were planted in.

Run: python benchmarks/planted_faults.py

The faults are those of tests/pipeline/planted_faults.py: each is planted in a small model of
ferry's own export and looked for with `first_divergence`, beside PyTorch and beside the sound ONNX
model. Those of tests/pipeline/foreign_faults.py are planted in files as other makers write them,
beside the sound file. Aim: all of ours, and 59 of 60 of the others.
"""

import sys
from pathlib import Path

from benching import Line, parser, show

from pipeline.proof.tracing.divergence import first_divergence
from serving.console import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pipeline"))

from foreign_faults import faults
from planted_faults import FAULTS, Fault, cases, planted


def main() -> None:
    """Print each fault, the node it was planted in and the node that was named."""
    publish = parser(__doc__).parse_args().publish
    rows = [row(fault, against) for fault, against in cases()]
    print(table(("fault", "beside", "planted in", "named", "right"), rows))
    right = sum(found[-1] == "yes" for found in rows)
    wrong = {found[0] for found in rows if found[-1] != "yes"}
    known = len(FAULTS) - len(wrong)
    foreign = [one.named() == one.node for one in faults()]
    share = sum(foreign) / len(foreign)
    print()
    show(
        [
            Line("faults named at the right node", f"{right} of {len(rows)}", "all", not wrong),
            Line("kinds of them", f"{known} of {len(FAULTS)}", "all", not wrong),
            Line(
                "faults in files of other makers",
                f"{sum(foreign)} of {len(foreign)}",
                "59 of 60",
                share >= 59 / 60,
            ),
        ],
        publish,
    )


def row(fault: Fault, against: str) -> tuple[str, ...]:
    """One line of the table."""
    case = planted(fault, against)
    found = first_divergence(case.reference, case.model, case.feeds, case.limit)
    named = found.node if found else "–"
    return (fault.kind, against, case.node, named, "yes" if named == case.node else "NO")


if __name__ == "__main__":
    main()
