"""Adapters in phyla beside adapters 1.3.0 and peft 0.21.2: the same models and methods, in turn.

python benchmarks/adapters.py                      both models, three rounds
python benchmarks/adapters.py --only minilm        one model; the other's results stay
python benchmarks/adapters.py --env peft-0.21.2=/usr/bin/python3
"""

import argparse
import datetime
import json
import os
import statistics
from typing import Any

import environments
from runner import RESULTS, commit, log, machine
from workers import Found, Worker

PEERS = ("adapters-1.3.0", "peft-0.21.2")
ROWS = (1, 8, 64)
MODELS: dict[str, dict[str, Any]] = {
    "minilm": {
        "class": "BertForSequenceClassification", "model_type": "bert", "classes": True,
        "config": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
                   "intermediate_size": 1536, "hidden_dropout_prob": 0.0,
                   "attention_probs_dropout_prob": 0.0},
        "shape": [8, 128], "many": [64, 32],
    },
    "smollm2-135m": {
        "class": "LlamaForCausalLM", "model_type": "llama", "classes": False,
        "config": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                   "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                   "tie_word_embeddings": True},
        "shape": [1, 128], "many": [64, 8],
    },
}  # fmt: skip


class Library(Worker):
    """A process of one library with one model; what it cannot do is said and left out."""

    def __init__(self, python: str, library: str, threads: int) -> None:
        self.library = library
        super().__init__(python, "adapter_model.py", {"library": library, "threads": threads})

    def ask(self, do: str, *arguments: Any, **more: Any) -> Found:
        found = self.tell({"do": do, "with": arguments, **more})
        if "failed" in found:
            log(f"  {self.library} cannot {do} {arguments}: {found['failed']}")
        return found


def main() -> None:
    arguments = parse()
    given = dict(pair.split("=", 1) for pair in arguments.env)
    names = [n for n in MODELS if not arguments.only or n in arguments.only]
    if not names:
        raise SystemExit(f"no model is named {arguments.only}; there are {list(MODELS)}")
    pythons = {name: environments.interpreter(name, given) for name in ("phyla", *PEERS)}
    for name in names:
        workers = {p: Library(python, p.split("-")[0], arguments.threads) for p, python in pythons.items()}
        samples = measured(workers, MODELS[name], arguments)
        for worker in workers.values():
            worker.end()
        medians = {m: {p: statistics.median(v) for p, v in by.items()} for m, by in samples.items()}
        found = save(arguments, pythons, name, {"medians": medians, "samples": samples})
        print(f"{name}\n{table(found['medians'])}\n{verdicts(found)}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help=f"of {', '.join(MODELS)}")
    parser.add_argument("--parts", nargs="*", default=["calls", "many"], help="calls, many, or both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=PYTHON", help="use this interpreter"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def measured(
    workers: dict[str, Library], case: Found, arguments: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """measure -> library -> seconds of every round, the order turning from round to round."""
    samples: dict[str, dict[str, list[float]]] = {}
    rounds = arguments.rounds

    def keep(measure: str, name: str, found: Found, key: str = "seconds") -> None:
        if key in found:
            samples.setdefault(measure, {}).setdefault(name, []).append(found[key])

    def turns(measure: str, do: str, *arguments: Any, skip: str = "none") -> None:
        names = [n for n in workers if not n.startswith(skip)]
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                keep(measure, name, workers[name].ask(do, *arguments))

    for name, worker in workers.items():
        worker.ask("open", **case)
        keep("add the 1st", name, worker.ask("method", "l0", "lora"))
        worker.ask("method", "l1", "lora")
    if "calls" in arguments.parts:
        calls(workers, rounds, keep, turns)
    if "many" in arguments.parts:
        many(workers, keep, turns)
    return samples


def calls(workers: dict[str, Library], rounds: int, keep: Any, turns: Any) -> None:
    """Calls and training steps with one adapter, and with none active."""
    turns("call, LoRA", "forward", "l0")
    for number in range(rounds):  # in turn: the machine's speed drifts
        for name in list(workers)[:: 1 if number % 2 else -1]:
            found = workers[name].ask("forward_idle")
            keep("call, bare", name, found, "bare")
            keep("call, inactive LoRA", name, found, "idle")
    turns("training step, LoRA", "train", "l0")
    for name, worker in workers.items():
        if not name.startswith("peft"):
            worker.ask("method", "s", "seq_bn")
    turns("call, seq_bn", "forward", "s", skip="peft")
    turns("training step, seq_bn", "train", "s", skip="peft")


def many(workers: dict[str, Library], keep: Any, turns: Any) -> None:
    """Switching, adding, loading, and batches of many adapters."""
    turns("switch", "switch")
    for name, worker in workers.items():
        found = worker.ask("fill")
        for measure, key in (
            ("load a 2nd", "load_1"),
            ("add the 100th", "add_100"),
            ("load the 100th", "load_100"),
        ):
            keep(measure, name, found, key)
    for count in ROWS:
        turns(f"64 rows, {count} adapters", "rows", count)


def table(medians: dict[str, dict[str, float]]) -> str:
    """Milliseconds of every library, and how many times faster phyla is."""
    rows = [["ms", "phyla", *(f"{p} (phyla is)" for p in PEERS)]]
    for measure, found in medians.items():
        own = found.get("phyla")
        cells = [measure, "-" if own is None else f"{own * 1e3:.4g}"]
        for peer in PEERS:
            other = found.get(peer)
            cells.append("-" if other is None or not own else f"{other * 1e3:.4g}  ({other / own:.2f}x)")
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def verdicts(found: Found) -> str:
    """Each goal with what was found; ratios of one library are medians over the rounds."""
    medians, samples = found["medians"], found["samples"]
    own = {measure: found["phyla"] for measure, found in medians.items() if "phyla" in found}
    slower = [
        f"{m} ({medians[m][p] / own[m]:.2f}x of {p})"
        for m in own
        for p in PEERS
        if p in medians[m] and medians[m][p] < own[m]
    ]
    lines = ["goals", f"  never slower: {'holds' if not slower else 'not for ' + ', '.join(slower)}"]
    for goal, measure, base in (
        ("inactive against bare (1.00)", "call, inactive LoRA", "call, bare"),
        ("64 adapters against one (at most 1.5)", "64 rows, 64 adapters", "64 rows, 1 adapters"),
    ):
        if measure in own and base in own:
            pairs = zip(samples[measure]["phyla"], samples[base]["phyla"], strict=False)
            lines.append(f"  {goal}: {statistics.median(a / b for a, b in pairs):.3f}")
    if "switch" in own:
        lines.append(f"  switching (under 1 ms): {own['switch'] * 1e3:.3f} ms")
    return "\n".join(lines)


def save(arguments: argparse.Namespace, pythons: dict[str, str], name: str, found: Found) -> Found:
    """Write the results beside what this day measured besides; all that was measured of this model."""
    if arguments.no_save:
        return found
    path = RESULTS / f"adapters-{datetime.date.today().isoformat()}.json"
    earlier = json.loads(path.read_text())["models"] if path.exists() else {}
    old = earlier.get(name, {})
    found = {key: {**old.get(key, {}), **value} for key, value in found.items()}
    stamp = {"commit": commit(), "time": datetime.datetime.now().isoformat(timespec="seconds")}
    content = {
        "machine": machine(),
        "settings": {"rounds": arguments.rounds, "threads": arguments.threads, "dtype": "float32"},
        "versions": {peer: environments.versions(python) for peer, python in pythons.items()},
        "models": {**earlier, name: {**stamp, "case": MODELS[name], **found}},
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
