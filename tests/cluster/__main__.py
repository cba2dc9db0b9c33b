"""Runs jobs on a cluster of machines that share nothing, and disturbs them.

    sudo python -m tests.cluster [results=FILE] [keep=FOLDER] [STEP ...]

Without steps, those that FILE has no result of yet. Needs root, `unshare`, `nsenter` and `ip`.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.cluster.board import UNDISTURBED
from tests.cluster.machines import FOLDER, in_namespaces
from tests.cluster.outcome import Outcome
from tests.cluster.stand import running
from tests.cluster.steps import Steps

NAMES = [name for name in vars(Steps) if not name.startswith("_")]


def main(arguments: list[str]) -> int:
    """Runs the steps one after the other; returns 1 if one of them failed."""
    options = dict(one.split("=", 1) for one in arguments if "=" in one)
    results_file = Path(options.get("results", "cluster_results.json"))
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    steps = [one for one in arguments if "=" not in one]
    if unknown := [step for step in steps if step not in NAMES]:
        print(f"no step {unknown[0]}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    steps = steps or [name for name in NAMES if not results.get(name, {}).get("passed")]
    with running(Path(os.environ[FOLDER]), num_workers=2) as stand:
        before = results.get(UNDISTURBED, {}).get("outcome")
        board = Steps(stand, Outcome(**before) if before else None)
        for step in steps:
            begun = time.monotonic()
            try:
                found = {"passed": True, "seen": getattr(board, step)()}
            except Exception as error:  # the next step still says something
                found = {"passed": False, "seen": f"{type(error).__name__}: {error}"}
            found["seconds"] = round(time.monotonic() - begun)
            if step == UNDISTURBED and board.reference is not None:
                found["outcome"] = asdict(board.reference)
            results[step] = found
            results_file.write_text(json.dumps(results, indent=1))
            shown = "passed" if found["passed"] else "FAILED"
            print(f"{step}: {shown} after {found['seconds']} s: {found['seen']}", flush=True)
            if "keep" in options:
                stand.keep(Path(options["keep"]))
    return 0 if all(results[step]["passed"] for step in steps) else 1


if __name__ == "__main__":
    if FOLDER in os.environ:
        sys.exit(main(sys.argv[1:]))
    if os.geteuid() != 0 or not shutil.which("unshare"):
        sys.exit("tests.cluster needs root and unshare, to make namespaces")
    sys.exit(in_namespaces(sys.argv[1:]))
