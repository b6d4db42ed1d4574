"""The part `throughput` of generate.py: requests of mixed lengths, engine and Transformers.

Greedy, float32, the same ids for all: 16 to 512 in, 16 to 256 out. Each peer runs in a process of its own and
reports tokens a second of what it had written when it was done, or after `--seconds`. Ratios are of the same
piece.
"""

import argparse
import json
import statistics
import subprocess
import sys

import environments
import generate_models
from runner import HERE, commit
from workers import Found

PEERS = {
    "phyla": "phyla",
    "transformers-default": "transformers-5.23.0",
    "transformers-continuous": "transformers-5.23.0",
}
SETTINGS = ("requests", "rounds", "seconds", "batch", "threads")  # that a result is kept with


def options(parser: argparse.ArgumentParser) -> None:
    """The settings of this part."""
    group = parser.add_argument_group("throughput")
    group.add_argument("--requests", type=int, default=10, help="requests of a piece")
    group.add_argument("--rounds", type=int, default=20, help="pieces")
    group.add_argument("--seconds", type=float, default=45, help="a peer stops after so many seconds")
    group.add_argument("--batch", type=int, default=32, help="rows of Transformers' default batch")


def measure(arguments: argparse.Namespace, given: dict[str, str], keep) -> None:
    """Every piece by every peer in turn; `keep(found)` after each piece."""
    peers = [p for p in PEERS if not arguments.peers or p in arguments.peers]
    pythons = {peer: environments.interpreter(PEERS[peer], given) for peer in peers}
    samples: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for number in range(arguments.rounds):
        turn = number % len(peers)
        for peer in peers[turn:] + peers[:turn]:
            found = measured(pythons[peer], peer, number, arguments)
            print(f"round {number + 1}, {peer}: {found}", flush=True)
            samples[peer].append(found)
        keep({
            "commit": commit(), "settings": {name: getattr(arguments, name) for name in SETTINGS},
            "versions": {name: environments.versions(python) for name, python in pythons.items()},
            "samples": samples, "medians": summed(samples),
        })  # fmt: skip


def measured(python: str, peer: str, number: int, arguments: argparse.Namespace) -> dict[str, float]:
    """What one process of one peer reports; nothing where it fails, which is said."""
    asked = {
        "peer": peer, "requests": arguments.requests, "seed": number, "seconds": arguments.seconds,
        "batch": arguments.batch, "threads": arguments.threads,
        "folder": str(generate_models.folder("smollm2-135m", "float32")),
    }  # fmt: skip
    script = str(HERE / "peers" / "generation_throughput.py")
    done = subprocess.run(
        [python, script, json.dumps(asked)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    print(f"  FAILED: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", file=sys.stderr)
    return {}


def summed(samples: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians of the pieces, and of phyla's rate over each peer's on the same piece."""
    found: dict[str, dict[str, float]] = {}
    for peer, kept in samples.items():
        rates = [s.get("new_per_second", 0.0) for s in kept]
        if not rates:
            continue
        found[peer] = {"new_per_second": statistics.median(rates)}
        pairs = zip(samples.get("phyla", []), rates, strict=False)
        ratios = [own["new_per_second"] / rate for own, rate in pairs if own and rate]
        if peer != "phyla" and ratios:
            found[peer]["ratio"] = statistics.median(ratios)
    return found


def told(found: Found) -> list[str]:
    """The figures in lines."""
    lines = ["", "requests of mixed lengths"]
    for peer, figures in found.get("medians", {}).items():
        ratio = f", phyla is {figures['ratio']:.2f} times as fast" if "ratio" in figures else ""
        lines.append(f"  {peer}: {figures['new_per_second']:.1f} new tokens a second{ratio}")
    return lines


def goals(found: Found) -> list[tuple[str, float, str, bool]]:
    """(what, found, wanted, reached)."""
    rows = []
    for peer, least in (("transformers-default", 3.0), ("transformers-continuous", 1.3)):
        ratio = found.get("medians", {}).get(peer, {}).get("ratio")
        if ratio is not None:
            rows.append((f"mixed requests, times {peer}", ratio, f">= {least}", ratio >= least))
    return rows
