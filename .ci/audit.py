"""Hold requirements.lock against the advisories of OSV, which has those of PyPI and of GitHub.

    make audit

Exit status: 0, no advisory is known; 1, some are, and each is printed; 75, the database could not
be asked, which says nothing of the lock. FERRY_ADVISORIES is the address of a mirror.
"""

import http.client
import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
DATABASE = os.environ.get("FERRY_ADVISORIES", "https://api.osv.dev")
SECONDS = 30
MOST_BYTES = 2**24
MOST_PAGES = 20
COULD_NOT = 75
"""EX_TEMPFAIL: try again later, or from another network."""
NO_ANSWER = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError)
"""No connection, or an answer that is not OSV's, such as the page of a proxy."""


def main() -> None:
    """Print what is known of the lock, a line for each advisory."""
    lock = dict(line.split("==") for line in LOCK.read_text(encoding="utf-8").split())
    try:
        found = advisories(lock)
    except NO_ANSWER as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        print(f"could not ask {DATABASE}, so nothing is known: {why}", file=sys.stderr)
        sys.exit(COULD_NOT)
    for name, one in found:
        print(f"{name} {lock[name]}: {one} https://osv.dev/vulnerability/{one}")
    print(f"{len(found)} advisories of {len(lock)} packages", file=sys.stderr)
    sys.exit(bool(found))


def advisories(lock: dict[str, str]) -> list[tuple[str, str]]:
    """The name of a package and the advisory that is of its locked version, for each there is."""
    asked: list[dict[str, Any]] = [
        {"package": {"ecosystem": "PyPI", "name": name}, "version": version}
        for name, version in lock.items()
    ]
    found = []
    for _ in range(MOST_PAGES):
        pairs = [*zip(asked, ask(asked), strict=True)]
        for query, answer in pairs:
            found += [(query["package"]["name"], one["id"]) for one in answer.get("vulns", ())]
        tokens = [(query, answer.get("next_page_token")) for query, answer in pairs]
        asked = [{**query, "page_token": token} for query, token in tokens if token]
        if not asked:
            return sorted(found)
    raise ValueError(f"more than {MOST_PAGES} pages of answers")


def ask(queries: list[dict[str, Any]]) -> list[Any]:
    """The answers to as many queries, as https://google.github.io/osv.dev/post-v1-querybatch/."""
    body = json.dumps({"queries": queries}).encode()
    request = urllib.request.Request(  # noqa: S310 - the address is the caller's own
        f"{DATABASE}/v1/querybatch", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
        results: list[Any] = json.loads(answer.read(MOST_BYTES))["results"]
        return results


if __name__ == "__main__":
    main()
