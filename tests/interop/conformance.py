"""The fuzzing client of the Autobahn test suite against the relay that echoes.

What runs is the relay built with `--cfg landline_echo`: its reader, outbox and writer. kosoku is
that suite, for a Python of today.
"""

import collections
import json
import subprocess
import sys

from support import ROOT, relay

CASES = 301
EXCLUDED = {"12.*": "permessage-deflate", "13.*": "permessage-deflate with its parameters"}
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
# The largest message of the suite, and what the relay wants around it.
FLAGS = ["--max-message", "16MiB", "--max-outbox", "32MiB"]
REPORT = ROOT / "target/conformance/report"


def run(address):
    """Runs the cases; what they came to, by case."""
    index = REPORT / "index.json"
    index.unlink(missing_ok=True)
    command = [ROOT / "target/python/bin/kosoku", "-p", "2", "-o", REPORT]
    for pattern in EXCLUDED:
        command += ["-x", pattern]
    # It fails where a case does, which is judged here: only without a report that is all there is.
    done = subprocess.run(
        [*command, f"{address}/ws"], capture_output=True, text=True, timeout=300, check=False
    )
    if not index.exists():
        sys.exit(f"no report:\n{done.stdout}{done.stderr}")
    (cases,) = json.loads(index.read_text()).values()
    return {case: (it["behavior"], it["behaviorClose"]) for case, it in cases.items()}


def main():
    with relay("target/conformance/landline", *FLAGS) as address:
        cases = run(address)
    bad = {case: came for case, came in cases.items() if not GOOD.issuperset(came)}
    for case, (behavior, close) in bad.items():
        print(f"case {case}: {behavior}, closing {close}")
    for pattern, why in EXCLUDED.items():
        print(f"excluded: {pattern}, {why}, which the relay declines")
    kinds = collections.Counter(behavior for behavior, _ in cases.values())
    print(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    print(f"{len(cases) - len(bad)} passed, {len(bad)} failed")
    if len(cases) != CASES:
        print(f"{len(cases)} cases were run, there are {CASES}")
    if bad or len(cases) != CASES:
        sys.exit(f"the report: {REPORT}/index.html")


main()
