"""Decode on a GPU: a random Llama in bfloat16, batch 1 to 64, beside Transformers and what the memory allows.

python benchmarks/gpu_generate.py                            1 and 8 billion parameters, and a narrow model
python benchmarks/gpu_generate.py --sizes 8b --batches 1 8
python benchmarks/gpu_generate.py --device cpu --sizes tiny  a dry run: the same code without a graph
python benchmarks/gpu_generate.py --env transformers-5.23.0=/usr/bin/python3

Weights are drawn on the device, nothing is read from a network. A peer's figure is (new - 1) tokens a row
over the time of `new` tokens less the time of one. The bound is the bytes that a step must read (all weights
but the token table, and the rows' keys and values) over the speed of a copy on that device. Steps of the
narrow model are mostly launches: what recording them as a graph saves is phyla over phyla-eager.
"""

import argparse
import datetime
import json
import statistics
from typing import Any

import environments
from runner import RESULTS, commit, log, machine, verdict
from workers import Found, Worker

GOAL = 0.7  # of the bound, at batch 1
RECORDED_GOAL = 1.4  # times phyla-eager, for the narrow model at batch 1
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
    "narrow": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 24,
               "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1024},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 49152},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
           "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
# name -> environment, mode
PEERS = {
    "phyla": ("phyla", "captured"),
    "phyla-eager": ("phyla", "eager"),
    "transformers-default": ("transformers-5.23.0", "default"),
    "transformers-static": ("transformers-5.23.0", "static"),
}


def main() -> None:
    arguments = parse()
    given = dict(pair.split("=", 1) for pair in arguments.env)
    everything: Found = {"device": None, "sizes": {}}
    for size in arguments.sizes:
        found: Found = {}
        for name in arguments.peers:
            environment, mode = PEERS[name]
            python = environments.interpreter(environment, given)
            asked = {"library": environment.split("-")[0], "mode": mode, "device": arguments.device,
                     "config": SIZES[size], "prompt": arguments.prompt, "new": arguments.new}  # fmt: skip
            try:
                worker = Worker(python, "gpu_model.py", asked)
                found[name] = measured(worker, name, arguments, everything)
                worker.end()
            except RuntimeError as error:  # it ended: the other peers go on
                log(f"{name}: {error}")
                found[name] = {"failed": str(error)}
        everything["sizes"][size] = found
        print(table(size, found), flush=True)
    print("\n".join(["goals", *(verdict(*row) for row in goals(everything))]))
    if not arguments.no_save:
        save(arguments, given, everything)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="*", default=["narrow", "1b", "8b"], choices=SIZES)
    parser.add_argument("--batches", nargs="*", type=int, default=list(BATCHES))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--no-save", action="store_true")
    return parser.parse_args()


def measured(worker: Worker, name: str, arguments: argparse.Namespace, everything: Found) -> Found:
    """Per batch: tokens a second, share of the bound; with what the device is and how fast it copies."""
    opened = worker.tell({"do": "open"})
    log(f"{name}: {opened}")
    if "failed" in opened:
        return {"failed": opened["failed"]}
    everything["device"] = {key: opened[key] for key in ("device", "copy_bytes_per_second")}
    rows: Found = {}
    for batch in arguments.batches:
        told = worker.tell({"do": "decode", "with": [batch, arguments.repeats]})
        log(f"  batch {batch}: {told}")
        if "failed" in told:
            rows[str(batch)] = told
            continue
        rate = batch * (arguments.new - 1) / statistics.median(told["seconds"])
        step = opened["weight_bytes"] + batch * told["memory_bytes"]
        bound = batch * opened["copy_bytes_per_second"] / step
        rows[str(batch)] = {"rate": rate, "first": told["first"], "bound": bound, "share": rate / bound,
                            "recorded": told["recorded"], "samples": told["seconds"]}  # fmt: skip
    peak = worker.tell({"do": "peak"}).get("bytes")
    return {"batches": rows, "parameters": opened["parameters"], "peak_bytes": peak}


def table(size: str, found: Found) -> str:
    """Tokens a second of each peer, its share of the bound, and how many times faster phyla is."""
    lines = ["", f"{size}: tokens a second (share of the bound; phyla is)"]
    for name, told in found.items():
        if "failed" in told:
            lines.append(f"  {name}: failed: {told['failed']}")
            continue
        for batch, row in told["batches"].items():
            own: Any = found.get("phyla", {}).get("batches", {}).get(batch, {}).get("rate")
            if "rate" not in row:
                lines.append(f"  {name:22} batch {batch:>3}: failed: {row['failed']}")
                continue
            ratio = f"; {own / row['rate']:.2f} times" if own and name != "phyla" else ""
            found_out = f"{row['rate']:10.1f} ({row['share']:.1%}{ratio})"
            graph = ", recorded" if row["recorded"] else ""
            lines.append(f"  {name:22} batch {batch:>3}: {found_out}{graph}")
    return "\n".join(lines)


def goals(everything: Found) -> list[tuple[str, float, str, bool]]:
    """(what, found, wanted, reached)."""
    rows = []
    for size, found in everything["sizes"].items():
        one = {name: told.get("batches", {}).get("1", {}) for name, told in found.items()}
        share = one.get("phyla", {}).get("share")
        if size == "narrow":
            plain = one.get("phyla-eager", {}).get("rate")
            if share is not None and plain:
                times = one["phyla"]["rate"] / plain
                what = "narrow, one text: recorded steps, times plain ones"
                rows.append((what, times, f">= {RECORDED_GOAL}", times >= RECORDED_GOAL))
        elif share is not None:
            what = f"{size}, one text: share of what memory allows"
            rows.append((what, share, f">= {GOAL}", share >= GOAL))
    return rows


def save(arguments: argparse.Namespace, given: dict[str, str], everything: Found) -> None:
    """Write all of it beside the earlier results."""
    pythons = {PEERS[n][0]: environments.interpreter(PEERS[n][0], given) for n in arguments.peers}
    content = {
        "machine": machine(), "commit": commit(),
        "settings": {"prompt": arguments.prompt, "new": arguments.new, "dtype": "bfloat16"},
        "versions": {name: environments.versions(python) for name, python in pythons.items()},
        **everything,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu_generate-{datetime.date.today().isoformat()}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
