"""Run recorded adapter cases: check_adapter_goldens.py FOLDER [MODEL_TYPE[/CASE]] ... [-v]

FOLDER is goldens_adapters/public; a CASE may be a pattern with `*`. Prints faults and a count by kind.
"""

import collections
import fnmatch
import sys
import traceback
from pathlib import Path

import phyla
from phyla.testing.adapters import check, read_case


def main(folder: str, *wanted: str) -> int:
    """Run the cases; the exit status is 1 if one of them does not hold."""
    loud = "-v" in wanted
    patterns = [w if "/" in w else f"{w}/*" for w in wanted if w != "-v"] or ["*/*"]
    held: collections.Counter = collections.Counter()
    total: collections.Counter = collections.Counter()
    for meta in sorted(Path(folder).glob("*/*/meta.json")):
        label = f"{meta.parent.parent.name}/{meta.parent.name}"
        if not any(fnmatch.fnmatch(label, p) for p in patterns):
            continue
        case = read_case(meta.parent)
        kind = case.facts["kind"]
        total[kind] += 1
        try:
            faults = check(case, phyla)
        except Exception as error:
            if loud:
                traceback.print_exc(limit=-6)
            faults = [f"{type(error).__name__}: {error}"]
        held[kind] += not faults
        if faults:
            print(f"FAIL {label}: " + "; ".join(f[:260] for f in faults[:4]), flush=True)
    for kind, count in total.items():
        print(f"{kind}: {held[kind]} of {count} hold")
    return int(held != total)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
