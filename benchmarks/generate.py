"""Generation beside Transformers, llama.cpp and OpenVINO GenAI, in parts that add up in one file of results.

python benchmarks/generate.py                                       every part, model and dtype: an hour
python benchmarks/generate.py --parts speed --models smollm2-135m --dtypes int4 --peers phyla llama.cpp
python benchmarks/generate.py --parts constrained copy              grammars; speculation
python benchmarks/generate.py --parts throughput --requests 200 --rounds 1 --seconds 1e9
python benchmarks/generate.py --prepare                             only what is made once
python benchmarks/generate.py --parts                               print what is there

Run it under a lock where others use the machine: the peers of a model and dtype take turns at each measure,
for a minute or so. Runs of one day add up; figures are medians of the runs.
"""

import argparse
import datetime
import json
import os
import statistics
from dataclasses import dataclass
from typing import Any

import environments
import generate_models
import generate_throughput
from runner import RESULTS, commit, log, machine, verdict
from workers import Found, Worker

DTYPES = ("float32", "bfloat16", "int8", "int4")
PARTS = ("speed", "constrained", "copy", "throughput")
PROMPTS = (16, 128, 512)
NEW = {1: 24, 8: 8, 32: 4}  # batch -> tokens after the first
BEHIND = {1: 128, 8: 16, 32: 16}  # batch -> tokens in front of them


@dataclass(frozen=True)
class Peer:
    """A library in one of its modes."""

    environment: str
    script: str = "generation_model"
    mode: str = "default"
    dtypes: tuple[str, ...] = DTYPES
    batches: tuple[int, ...] = tuple(NEW)
    files: tuple[tuple[str, str], ...] = ()  # dtype -> another dtype's file, where it reads no such


PEERS = {
    "phyla": Peer("phyla"),
    "transformers-default": Peer("transformers-5.23.0", dtypes=("float32", "bfloat16")),
    # each shape is compiled by itself, for half a minute: one is measured
    "transformers-static": Peer(
        "transformers-5.23.0", mode="static", dtypes=("float32", "bfloat16"), batches=(1,)
    ),
    "llama.cpp": Peer("llama.cpp", "generation_llama_cpp"),
    "openvino": Peer(
        "openvino-genai", "generation_openvino", files=(("float32", "float16"), ("bfloat16", "float16"))
    ),
}


def main() -> None:
    arguments = parse()
    given = dict(pair.split("=", 1) for pair in arguments.env)
    if arguments.prepare:
        prepare(arguments, given)
        return
    if "speed" in arguments.parts:
        for model in arguments.models:
            for dtype in arguments.dtypes:
                runs = speed(chosen(arguments, dtype), model, dtype, arguments, given)
                for name, run in runs.items():
                    save(arguments, given, ("speed", model, dtype, name), run)
    for part in ("constrained", "copy"):
        for dtype in [d for d in arguments.dtypes if d in ("float32", "bfloat16")]:
            for name, peer in chosen(arguments, dtype).items() if part in arguments.parts else ():
                if name == "phyla" or (part, name) == ("copy", "transformers-default"):
                    run = texts(started(peer, given, arguments), part, dtype)
                    if run:
                        save(arguments, given, (part, "smollm2-135m", dtype, name), run)
    if "throughput" in arguments.parts:
        generate_throughput.measure(arguments, given, lambda found: store(arguments, {"throughput": found}))
    print(shown(results()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--models", nargs="*", default=list(generate_models.MODELS))
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--peers", nargs="*", default=[], help=f"of {', '.join(PEERS)}; default all")
    parser.add_argument("--batches", nargs="*", type=int, default=list(NEW))
    parser.add_argument("--prompts", nargs="*", type=int, default=list(PROMPTS))
    parser.add_argument("--turns", type=int, default=3, help="how often each measure of `speed` is taken")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--prepare", action="store_true", help="make what is made once")
    parser.add_argument("--no-save", action="store_true")
    generate_throughput.options(parser)
    return parser.parse_args()


def chosen(arguments: argparse.Namespace, dtype: str) -> dict[str, Peer]:
    """The peers that were asked for and have a dtype."""
    return {
        name: peer for name, peer in PEERS.items()
        if dtype in peer.dtypes and (not arguments.peers or name in arguments.peers)
    }  # fmt: skip


def started(peer: Peer, given: dict[str, str], arguments: argparse.Namespace) -> Worker:
    asked = {
        "library": peer.environment.split("-")[0], "mode": peer.mode, "threads": arguments.threads,
        "tokenizer": str(generate_models.tokenizer()),
    }  # fmt: skip
    python = environments.interpreter(peer.environment, given)
    return Worker(python, f"{peer.script}.py", asked)


def ask(worker: Worker, do: str, *arguments: Any) -> Found:
    """What a peer answers; nothing where it fails, which is said."""
    found = worker.tell({"do": do, "with": arguments})
    if "failed" in found:
        log(f"  cannot {do} {arguments}: {found['failed']}")
        return {}
    return found


def opened(worker: Worker, peer: Peer, model: str, dtype: str) -> Found:
    log(f"{model}, {dtype}: {peer.environment}, {peer.mode}")
    path = generate_models.gguf(model, dict(peer.files).get(dtype, dtype)) if _reads_gguf(peer, dtype) else ""
    return ask(worker, "open", str(generate_models.folder(model, dtype)), dtype, str(path))


def _reads_gguf(peer: Peer, dtype: str) -> bool:
    return peer.script != "generation_model" or dtype in ("int8", "int4")


def speed(peers: dict[str, Peer], model: str, dtype: str, arguments: argparse.Namespace,
          given: dict[str, str]) -> dict[str, Found]:  # fmt: skip
    """First tokens, decode and memory: seconds, tokens a second, bytes; the peers in turn at each measure."""
    workers: dict[str, Worker] = {}
    runs: dict[str, Found] = {}
    for name, peer in peers.items():
        worker = started(peer, given, arguments)
        found = opened(worker, peer, model, dtype)
        if not found:
            worker.end()
            continue
        workers[name], runs[name] = worker, {"load": found["seconds"]}
        if peer.environment == "phyla":
            runs[name]["native"] = found["native"]
        warm(worker, peer)
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
    for number in range(arguments.turns):
        turn = number % max(len(workers), 1)
        order = [*workers][turn:] + [*workers][:turn]
        for prompt in arguments.prompts:
            for name in order:
                if peers[name].mode != "static":
                    keep(samples[name], f"first.{prompt}", ask(workers[name], "run", 1, prompt, 1), 1)
        for batch in arguments.batches:
            for name in order:
                if batch in peers[name].batches:
                    found = ask(workers[name], "run", batch, BEHIND[batch], NEW[batch] + 1)
                    keep(samples[name], f"decode.{batch}", found, batch)
    for name, worker in workers.items():
        runs[name] |= {measure: statistics.median(values) for measure, values in samples[name].items()}
        runs[name] |= {"memory": ask(worker, "memory")["bytes"], "turns": samples[name]}
        worker.end()
    return runs


def warm(worker: Worker, peer: Peer) -> None:
    """Let what is built or compiled at first use be there; compiled code serves one shape."""
    if peer.mode == "static":
        ask(worker, "run", 1, BEHIND[1], NEW[1] + 1)
    else:
        ask(worker, "warm", 1, 16)


def keep(samples: dict[str, list[float]], measure: str, found: Found, batch: int) -> None:
    """Add what a run gave: seconds to the first token, or tokens a second after it."""
    if found:
        value = found["first"] if measure.startswith("first") else batch / statistics.median(found["steps"])
        samples.setdefault(measure, []).append(value)


def texts(worker: Worker, part: str, dtype: str) -> Found:
    """Seconds of the same text in two ways, and their ratio."""
    run: Found = {}
    if opened(worker, PEERS["phyla"], "smollm2-135m", dtype):
        ask(worker, "warm", 1, 16)
        if part == "constrained":
            run = ask(worker, "constrained", 3)
            run = {**run, "ratio": run["grammar"] / run["free"]} if run else {}
        else:
            run = ask(worker, "copy", 96, 10)
            run = {**run, "ratio": run["plain"] / run["lookup"]} if run else {}
    worker.end()
    return run


def prepare(arguments: argparse.Namespace, given: dict[str, str]) -> None:
    """Models and environments; phyla's kernels and what torch.compile keeps on disk."""
    for model in arguments.models:
        for dtype in arguments.dtypes:
            for peer in chosen(arguments, dtype).values():
                worker = started(peer, given, arguments)
                if opened(worker, peer, model, dtype) and peer.mode == "static":
                    warm(worker, peer)
                worker.end()


def results() -> Found:
    path = RESULTS / f"generate-{datetime.date.today().isoformat()}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(arguments: argparse.Namespace, given: dict[str, str], place: tuple[str, ...], run: Found) -> None:
    """Add a run to those of this day, with what it was made by."""
    log(f"  {run}")
    everything = results()
    part, model, dtype, name = place
    kept = everything.setdefault(part, {}).setdefault(model, {}).setdefault(dtype, {}).setdefault(name, {})
    stamp = {"time": datetime.datetime.now().isoformat(timespec="seconds"), "commit": commit()}
    kept.setdefault("runs", []).append({**stamp, "threads": arguments.threads, **run})
    measures = dict.fromkeys(key for r in kept["runs"] for key in r if key != "threads")
    kept["medians"] = {
        key: statistics.median(values)
        for key in measures
        if (values := [r[key] for r in kept["runs"] if type(r.get(key)) in (int, float)])
    }
    python = environments.interpreter(PEERS[name].environment, given)
    versions = {**everything.get("versions", {}), PEERS[name].environment: environments.versions(python)}
    store(arguments, {part: everything[part], "versions": versions})


def store(arguments: argparse.Namespace, changed: Found) -> None:
    if arguments.no_save:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"generate-{datetime.date.today().isoformat()}.json"
    path.write_text(json.dumps({**results(), "machine": machine(), **changed}, indent=1) + "\n")


def shown(found: Found) -> str:
    """Tables of all that was measured, and each goal with what was found."""
    lines: list[str] = []
    for model, dtypes in found.get("speed", {}).items():
        for dtype, peers in dtypes.items():
            lines += ["", f"{model}, {dtype} (seconds; tokens a second; bytes)"]
            names = [n for n in PEERS if n in peers]
            lines.append(f"  {'':12}" + "".join(f"{n:>22}" for n in names))
            measures = list(dict.fromkeys(m for n in names for m in peers[n]["medians"]))
            for measure in measures:
                values = [peers[n]["medians"].get(measure) for n in names]
                cells = ["-" if v is None else f"{v:.4g}" for v in values]
                lines.append(f"  {measure:12}" + "".join(f"{cell:>22}" for cell in cells))
    for part, what in (("constrained", "by grammar / free"), ("copy", "plain / n-gram speculation")):
        for dtype, peers in found.get(part, {}).get("smollm2-135m", {}).items():
            for name, kept in peers.items():
                lines.append(f"{part}, {dtype}, {name}: {what} {kept['medians']['ratio']:.3f}")
    lines += generate_throughput.told(found.get("throughput", {}))
    return "\n".join([*lines, "", "goals", *(verdict(*row) for row in goals(found))])


def goals(found: Found) -> list[tuple[str, float, str, bool]]:
    """(what, found, wanted, reached)."""
    rows = []
    for model, dtypes in found.get("speed", {}).items():
        for dtype, peers in dtypes.items():
            rates = {n: kept["medians"].get("decode.1") for n, kept in peers.items()}
            own = rates.get("phyla")
            best = max((r for n, r in rates.items() if n.startswith("transformers") and r), default=None)
            for what, other, least in (
                ("Transformers' best mode", best, 2.0),
                ("llama.cpp", rates.get("llama.cpp"), 1.0),
            ):
                if own and other:
                    ratio = own / other
                    rows.append(
                        (f"{model} {dtype}, one text: times {what}", ratio, f">= {least}", ratio >= least)
                    )
    rows += generate_throughput.goals(found.get("throughput", {}))
    for part, what, holds, wanted in (
        ("constrained", "by grammar, times free", lambda r: r <= 1.05, "<= 1.05"),
        ("copy", "n-gram speculation, times plain", lambda r: r >= 1.5, ">= 1.5"),
    ):
        for dtype, peers in found.get(part, {}).get("smollm2-135m", {}).items():
            ratio = peers.get("phyla", {}).get("medians", {}).get("ratio")
            if ratio is not None:
                rows.append((f"{what}, {dtype}", ratio, wanted, holds(ratio)))
    return rows


if __name__ == "__main__":
    main()
