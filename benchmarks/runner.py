"""Measures phyla and its peers side by side: every task runs once a round for every peer, in turn.

python benchmarks/runner.py                 all of foundation.py, three rounds
python benchmarks/runner.py --quick         short prompts, one round, to see that it works
python benchmarks/runner.py --only speed    tasks whose names hold a word
python benchmarks/runner.py --env llama.cpp=/usr/bin/python3
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import environments
import foundation
from foundation import Task

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TIMEOUT_SECONDS = 1800

Samples = dict[str, dict[str, list[float]]]  # peer -> measure -> one value a round


def main() -> None:
    arguments = parse()
    given = dict(pair.split("=", 1) for pair in arguments.env)
    tasks = [t for t in foundation.TASKS if not arguments.only or any(w in t.name for w in arguments.only)]
    if not tasks:
        raise SystemExit(f"no task matches {arguments.only}; there are {[t.name for t in foundation.TASKS]}")
    peers = [
        p
        for p in ("machine", *foundation.ALL)
        if not arguments.peers or p in (*arguments.peers, "phyla", "machine")
    ]
    pythons = {peer: environments.interpreter(peer, given) for peer in peers}
    shared = foundation.QUICK if arguments.quick else foundation.FULL
    shared = {
        **shared,
        "threads": arguments.threads,
        "gguf": str(foundation.gguf_file()),
        "folders": folders(),
    }
    prepare(pythons, given, shared)
    samples: Samples = {peer: {} for peer in peers}
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    for number in range(rounds):
        for task in tasks:
            turn = [peer for peer in peers if peer in task.peers]
            for peer in turn[number % len(turn) :] + turn[: number % len(turn)]:
                log(f"round {number + 1} of {rounds}: {task.name}, {peer}")
                for measure, value in measured(pythons[peer], peer, task, shared).items():
                    samples[peer].setdefault(measure, []).append(value)
    medians = {peer: {m: statistics.median(v) for m, v in found.items()} for peer, found in samples.items()}
    print(table(medians))
    print(verdicts(medians))
    save(arguments, pythons, shared, samples, medians)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short prompts, one round")
    parser.add_argument("--rounds", type=int, help="default 3, or 1 with --quick")
    parser.add_argument("--only", nargs="*", default=[], help="tasks whose names hold one of these words")
    parser.add_argument("--peers", nargs="*", default=[], help=f"of {', '.join(foundation.ALL)}; default all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=PYTHON", help="use this interpreter"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def folders() -> dict[str, str]:
    """Where the same weights lie as safetensors."""
    return {
        dtype: str(environments.CACHE / "weights" / f"SmolLM2-135M-{dtype}") for dtype in foundation.BYTES
    }


def prepare(pythons: dict[str, str], given: dict[str, str], shared: dict[str, Any]) -> None:
    """Write the safetensors folders once, with Transformers' own save function."""
    if all((Path(folder) / "model.safetensors").exists() for folder in shared["folders"].values()):
        return
    log("writing the weights as safetensors (once)")
    python = pythons.get("transformers-4.50.3") or environments.interpreter("transformers-4.50.3", given)
    measured(python, "transformers-4.50.3", Task("folders", "folders", ()), shared)


def measured(python: str, peer: str, task: Task, shared: dict[str, Any]) -> dict[str, float]:
    """What one process of one peer reports; nothing where it fails, which is said."""
    script = HERE / "peers" / f"{foundation.SCRIPTS.get(peer, 'torch_library')}.py"
    asked = {**shared, "task": task.script_task, **task.arguments, "library": peer.split("-")[0]}
    done = subprocess.run(
        [python, str(script), json.dumps({**asked, "started": time.time()})],
        capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    log(f"  FAILED ({done.returncode}): {last}")
    return {}


def table(medians: dict[str, dict[str, float]]) -> str:
    """Medians of every measure, and behind each peer's how many times better phyla is."""
    peers = [peer for peer in medians if peer not in ("machine", "phyla")]
    measures = list(dict.fromkeys(m for found in medians.values() for m in found))
    rows = [["measure", "phyla", *(f"{peer} (phyla is)" for peer in peers)]]
    for measure in measures:
        own = medians.get("phyla", {}).get(measure)
        cells = [measure, shown(own if own is not None else medians.get("machine", {}).get(measure))]
        for peer in peers:
            other = medians[peer].get(measure)
            cells.append(shown(other) + (f"  ({ratio(measure, own, other):.2f}x)" if own and other else ""))
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def ratio(measure: str, own: float, other: float) -> float:
    """How many times better phyla is: above 1 is faster or smaller."""
    return other / own if foundation.smaller_is_better(measure) else own / other


def shown(value: float | None) -> str:
    """A value in at most four figures."""
    if value is None:
        return "-"
    if value >= 1e6:
        return f"{value / 1e6:.0f}M"
    return f"{value:.4g}"


def verdicts(medians: dict[str, dict[str, float]]) -> str:
    """Each goal with what was found."""
    lines = ["", "goals"]
    for what, measure, peers, least in foundation.GOALS:
        own = medians.get("phyla", {}).get(measure)
        found = [
            ratio(measure, own, medians[p][measure]) for p in peers if own and measure in medians.get(p, {})
        ]
        if found:
            lines.append(verdict(what, min(found), f">= {least}", min(found) >= least))
    lines += [verdict(*row) for row in foundation.own_goals(medians)]
    return "\n".join(lines)


def verdict(what: str, found: float, wanted: str, holds: bool) -> str:
    return f"  {'reached    ' if holds else 'NOT reached'}  {what}: {found:.3g} (goal {wanted})"


def save(
    arguments: argparse.Namespace,
    pythons: dict[str, str],
    shared: dict[str, Any],
    samples: Samples,
    medians: dict[str, dict[str, float]],
) -> None:
    """Write samples, medians, versions and machine beside the earlier results."""
    if arguments.no_save or arguments.quick:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"foundation-{datetime.date.today().isoformat()}.json"
    content = {
        "machine": machine(),
        "commit": commit(),
        "settings": {k: v for k, v in shared.items() if k not in ("gguf", "folders")},
        "versions": {peer: environments.versions(python) for peer, python in pythons.items()},
        "medians": medians,
        "samples": samples,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    log(f"written: {path.relative_to(environments.ROOT)}")


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system, without the machine's name."""
    facts: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    with open("/proc/cpuinfo") as file:
        facts["processor"] = next(
            (ln.split(":", 1)[1].strip() for ln in file if ln.startswith("model name")), "unknown"
        )
    with open("/proc/meminfo") as file:
        facts["memory_bytes"] = int(file.readline().split()[1]) * 1024
    return facts


def commit() -> str:
    """The commit measured, with a mark where files had changed."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return (head.stdout.strip() or "none") + ("+" if changed.stdout.strip() else "")


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
