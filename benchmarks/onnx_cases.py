"""How many of the cases of ONNX's own tests our sessions answer as bare ONNX Runtime does.

Run: python benchmarks/onnx_cases.py

They are the cases of `onnx.backend.test` whose models come with the package. Aim: no case that is
answered or refused otherwise than by bare ONNX Runtime, and none that raises anything but a
`FerryError`. Where the answers are not those that came with a case, the runtime's are not either.
"""

import sys
from pathlib import Path

from benching import Line, parser, show

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "serving"))

from onnx_cases import KINDS, cases, outcome


def main() -> None:
    """Print what each case that is not as stored came to, and the counts."""
    publish = parser(__doc__).parse_args().publish
    found = [outcome(case) for kind in KINDS for case in cases(kind)]
    answered = [one for one in found if not one.ours]
    for one in found:
        if not one.right or (not one.ours and not one.as_stored):
            print(one.name, "WRONG" if not one.right else "as bare ONNX Runtime, not as stored")
    right, stored = sum(one.right for one in found), sum(one.as_stored for one in answered)
    total = len(found)
    print()
    show(
        [
            Line("cases as in bare ONNX Runtime", f"{right} of {total}", "all", right == total),
            Line("answered as ONNX defines", f"{stored} of {len(answered)} answered", "", None),
            Line("refused by both, in one line", f"{total - len(answered)} of {total}", "", None),
        ],
        publish,
    )


if __name__ == "__main__":
    main()
