"""Throughput of requests of mixed lengths: the engine, and both kinds of batches of Transformers.

Greedy, float32, the same ids for all.

python benchmarks/generate.py                         200 requests in 20 pieces, every peer in turn
python benchmarks/generate.py --requests 200 --rounds 1 --seconds 1e9   all at once
python benchmarks/generate.py --peers phyla --before nice   some peers, through a command

Each peer runs in a process of its own and reports tokens a second of what it had written when it was done, or
after `--seconds`. Ratios are of the same piece; the last line has their medians.
"""

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import environments
from runner import commit, machine

HERE = Path(__file__).resolve().parent
FOLDER = environments.CACHE / "weights" / "SmolLM2-135M-float32"
PEERS = {
    "phyla": "phyla",
    "transformers-default": "transformers-5.23.0",
    "transformers-continuous": "transformers-5.23.0",
}
SETTINGS = ("requests", "rounds", "seconds", "batch", "threads")  # that a result is kept with
Request = tuple[list[int], int]


def requests(count: int, seed: int) -> list[Request]:
    """(ids, new tokens): 16 to 512 in, 16 to 256 out."""
    numbers = random.Random(seed)
    return [
        ([numbers.randrange(10, 49000) for _ in range(numbers.randint(16, 512))], numbers.randint(16, 256))
        for _ in range(count)
    ]


def main() -> None:
    arguments = parse()
    if arguments.run:
        told = json.loads(arguments.run)
        print("RESULT " + json.dumps(run(told)))
        return
    given = dict(pair.split("=", 1) for pair in arguments.env)
    pythons = {peer: environments.interpreter(PEERS[peer], given) for peer in arguments.peers}
    samples: dict[str, list[dict[str, float]]] = {peer: [] for peer in arguments.peers}
    for number in range(arguments.rounds):
        turn = (
            arguments.peers[number % len(arguments.peers) :]
            + arguments.peers[: number % len(arguments.peers)]
        )
        for peer in turn:
            found = measured(pythons[peer], peer, number, arguments)
            print(f"round {number + 1}, {peer}: {found}", flush=True)
            samples[peer].append(found)
        found = summed(samples)
        for peer, told in found.items():
            ratio = f", phyla is {told['ratio']:.2f} times as fast" if "ratio" in told else ""
            print(f"{peer}: {told['new_per_second']:.1f} new tokens a second{ratio}", flush=True)
        if not arguments.no_save:
            kept = {
                "machine": machine(),
                "commit": commit(),
                "settings": {name: getattr(arguments, name) for name in SETTINGS},
                "versions": {name: environments.versions(python) for name, python in pythons.items()},
                "samples": samples,
                "medians": found,
            }
            name = f"generate-{datetime.date.today()}.json"
            (HERE / "results" / name).write_text(json.dumps(kept, indent=1) + "\n")


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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10, help="requests of a piece")
    parser.add_argument("--rounds", type=int, default=20, help="pieces")
    parser.add_argument("--before", default="", help="a command that runs each peer, such as a lock")
    parser.add_argument("--seconds", type=float, default=45, help="a peer stops after so many seconds")
    parser.add_argument("--batch", type=int, default=32, help="rows of Transformers' default batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--env", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(python: str, peer: str, number: int, arguments: argparse.Namespace) -> dict[str, float]:
    """What one process of one peer reports; nothing where it fails, which is said."""
    asked = {
        "peer": peer, "requests": arguments.requests, "seed": number, "seconds": arguments.seconds,
        "batch": arguments.batch, "threads": arguments.threads,
    }  # fmt: skip
    done = subprocess.run(
        [*arguments.before.split(), python, __file__, "--run", json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    print(f"  FAILED: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", file=sys.stderr)
    return {}


def run(asked: dict[str, Any]) -> dict[str, float]:
    """One peer's figures: tokens a second, and the processor's seconds for a thousand of them."""
    import torch

    torch.set_num_threads(asked["threads"])
    every = requests(asked["requests"], asked["seed"])
    runner = {
        "phyla": by_phyla, "transformers-default": by_batches, "transformers-continuous": by_continuous,
    }[asked["peer"]]  # fmt: skip
    seconds, processor, read, new, finished = runner(every, asked)
    return {
        "seconds": round(seconds, 2), "finished": finished, "read": read, "new": new,
        "new_per_second": round(new / seconds, 2), "all_per_second": round((read + new) / seconds, 2),
        "processor_seconds_per_thousand": round(1000 * processor / (read + new), 3),
    }  # fmt: skip


Figures = tuple[float, float, int, int, int]


def by_phyla(every: list[Request], asked: dict[str, Any]) -> Figures:
    """The engine with its defaults."""
    import phyla
    from phyla.fast import native

    native.enable(background=False)
    model = phyla.AutoModelForCausalLM.from_pretrained(str(FOLDER))
    model.generate_batch([[5, 6, 7]], max_new_tokens=4, eos_token_id=None)
    begun, used = time.perf_counter(), time.process_time()
    with phyla.Engine(model) as engine:
        handles = [engine.submit(ids, max_new_tokens=new, eos_token_id=None) for ids, new in every]
        while engine.open and time.perf_counter() - begun < asked["seconds"]:
            engine.step()
        seconds, used = time.perf_counter() - begun, time.process_time() - used
        read = sum(len(h.prompt) if h.tokens else h.rows[0].done for h in handles)
        new = sum(len(h.tokens) for h in handles)
        return seconds, used, read, new, sum(h.finished for h in handles)


def by_batches(every: list[Request], asked: dict[str, Any]) -> Figures:
    """`generate` on padded batches, in the order of arrival; only what a request asked for counts as new."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, eos_token_id=None, pad_token_id=0)
    begun, used, read, new, finished = time.perf_counter(), time.process_time(), 0, 0, 0
    for start in range(0, len(every), asked["batch"]):
        batch = every[start : start + asked["batch"]]
        longest, most = max(len(ids) for ids, _ in batch), max(count for _, count in batch)
        ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in batch])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in batch])
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            max_time=max(1.0, asked["seconds"] - (time.perf_counter() - begun)),
        )
        steps = out.shape[1] - longest
        read += sum(len(ids) for ids, _ in batch)
        new += sum(min(count, steps) for _, count in batch)
        finished += sum(count <= steps for _, count in batch)
        if time.perf_counter() - begun > asked["seconds"]:
            break
    return time.perf_counter() - begun, time.process_time() - used, read, new, finished


def by_continuous(every: list[Request], asked: dict[str, Any]) -> Figures:
    """`generate_batch`'s manager, a limit of new tokens for each request."""
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    settings = GenerationConfig(max_new_tokens=256, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # the sizes that it finds by itself are a GPU's
    sizes = ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=256)
    manager = model.init_continuous_batching(generation_config=settings, continuous_batching_config=sizes)
    manager.start()
    begun, used = time.perf_counter(), time.process_time()
    for ids, count in every:
        manager.add_request(ids, max_new_tokens=count, streaming=True)
    told: dict[str, Any] = {}
    while time.perf_counter() - begun < asked["seconds"] and manager.is_running():
        found = manager.get_result(timeout=1)
        if found is not None:
            told[found.request_id] = found
            if found.is_finished() and sum(t.is_finished() for t in told.values()) == len(every):
                break
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    manager.stop(block=True, timeout=5, hard_stop=True)
    read = sum(len(t.prompt_ids) for t in told.values())
    new = sum(len(t.generated_tokens) for t in told.values())
    return seconds, used, read, new, sum(t.is_finished() for t in told.values())


if __name__ == "__main__":
    main()
