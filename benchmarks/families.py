"""One model of every skeleton beside Transformers: inference, training step and peak memory, in turn.

python benchmarks/families.py                      every model, three rounds
python benchmarks/families.py --only bert whisper  models whose names hold a word; the others' results stay
python benchmarks/families.py --prepare            only write the weights, which a first run does by itself
python benchmarks/families.py --env transformers-4.50.3=/usr/bin/python3
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import environments
from family_models import CASES, Case
from runner import RESULTS, commit, log, machine
from workers import Found, Worker

REFERENCE = "transformers-4.50.3"
FOLDERS = environments.CACHE / "families"
NEVER_BELOW, MEDIAN = 1.0, 1.25  # the goals: times faster than the reference
AGREE = 2e-3  # of the largest value: random weights make some models nearly chaotic


class Library(Worker):
    """A process of one library that opens models one after the other."""

    def __init__(self, python: str, library: str, threads: int, cpu_time: bool) -> None:
        asked = {"library": library, "threads": threads, "cpu_time": cpu_time}
        super().__init__(python, "family_model.py", asked)

    def heard(self) -> Found:
        found = super().heard()
        if "failed" in found:
            raise RuntimeError(found["failed"])
        return found

    def ask(self, do: str, **more: Any) -> Found:
        return self.tell({"do": do, **more})

    def open(self, case: Case, folder: str) -> Found:
        return self.ask(
            "open",
            **{
                "class": case.model, "model_type": case.model_type, "config": case.config, "folder": folder,
                "inputs": case.inputs, "labels": case.labels, "frozen": case.frozen,
            },
        )  # fmt: skip


def main() -> None:
    arguments = parse()
    given = dict(pair.split("=", 1) for pair in arguments.env)
    cases = [c for c in CASES if not arguments.only or any(w in c.name for w in arguments.only)]
    if not cases:
        raise SystemExit(f"no model matches {arguments.only}; there are {[c.name for c in CASES]}")
    pythons = {name: environments.interpreter(name, given) for name in ("phyla", REFERENCE)}

    def started(name: str) -> Library:
        return Library(pythons[name], name.split("-")[0], arguments.threads, arguments.cpu_time)

    workers = {name: started(name) for name in pythons}
    results: dict[str, Found] = {}
    everything: dict[str, Found] = {}
    for case in cases:
        folder = FOLDERS / case.name
        if not prepared(workers[REFERENCE], case, folder) or arguments.prepare:
            continue
        log(case.name)
        try:
            results[case.name] = compared(workers, case, str(folder), arguments.rounds)
            print(row(case.name, results[case.name]), flush=True)
            everything = save(arguments, pythons, {case.name: results[case.name]})
        except RuntimeError as error:
            log(f"  FAILED: {error}")
            for name in workers:  # whatever state the models are in
                workers[name].end()
                workers[name] = started(name)
    for worker in workers.values():
        worker.end()
    if results:
        print(verdicts(results if arguments.no_save else everything))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="models whose names hold one of these words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor seconds: where others use the machine too"
    )
    parser.add_argument("--prepare", action="store_true", help="only write the weights")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=PYTHON", help="use this interpreter"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def prepared(reference: Library, case: Case, folder: Path) -> bool:
    """Random weights, written by the reference where the model's description is not yet there."""
    described = folder / "described.json"
    wanted = json.dumps([case.model, case.model_type, case.config], sort_keys=True)
    if described.exists() and described.read_text() == wanted:
        return True
    log(f"writing weights of {case.name} (once)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        reference.open(case, str(folder))
        reference.ask("save")
        reference.ask("close")
    except RuntimeError as error:
        log(f"  FAILED: {error}")
        return False
    described.write_text(wanted)
    return True


def compared(workers: dict[str, Library], case: Case, folder: str, rounds: int) -> Found:
    """Samples and medians of one model in all libraries, the order turning from round to round."""
    names = list(workers)
    opened = {name: workers[name].open(case, folder) for name in names}
    found: Found = {"parameters": opened["phyla"]["parameters"], "inputs": case.inputs, "samples": {}}
    for phase, prepare, measure in (("forward", "ready", "forward"), ("train", "training", "train")):
        if phase == "train":  # a process of its own: nothing of inference is left in its memory
            for name in names:
                workers[name].ask("close")
                workers[name].open(case, folder)
        first = {name: workers[name].ask(prepare) for name in names}
        if phase == "forward":
            found["difference"] = difference(*(first[name]["values"] for name in names))
        else:
            norms = [first[name]["norm"] for name in names]
            found["gradient_difference"] = abs(norms[0] - norms[1]) / max(norms[1], 1e-30)
        samples: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for name in names[number % 2 :] + names[: number % 2]:
                samples[name].append(workers[name].ask(measure)["seconds"])
        found["samples"][phase] = samples
        found[phase] = {name: statistics.median(taken) for name, taken in samples.items()}
        found[f"{phase}_peak"] = {name: workers[name].ask("peak")["bytes"] for name in names}
    for name in names:
        workers[name].ask("close")
    return found


def difference(own: list[float], other: list[float]) -> float:
    """The largest difference as a share of the largest value."""
    if len(own) != len(other):
        return float("inf")
    largest = max(abs(v) for v in other) or 1.0
    return max(abs(a - b) for a, b in zip(own, other)) / largest


def ratio(found: Found, measure: str) -> float:
    """How many times better phyla is: above 1 is faster or smaller."""
    return found[measure][REFERENCE] / found[measure]["phyla"]


MEASURES = ("forward", "train", "forward_peak", "train_peak")


def row(name: str, found: Found) -> str:
    """One model: milliseconds and megabytes of phyla, and behind each how many times better that is."""
    cells = [f"{name:16} {found['parameters'] / 1e6:4.0f}M"]
    for measure in MEASURES:
        unit, scale = ("MB", 1e-6) if measure.endswith("peak") else ("ms", 1e3)
        cells.append(f"{measure} {found[measure]['phyla'] * scale:5.0f} {unit} {ratio(found, measure):5.2f}x")
    if found["difference"] > AGREE:
        cells.append(f"OUTPUTS DIFFER by {found['difference']:.1e}")
    return "  ".join(cells)


def verdicts(results: dict[str, Found]) -> str:
    """Each goal with what was found over all models."""
    lines = ["", f"goals, over {len(results)} models"]
    for measure in MEASURES:
        ratios = {name: ratio(found, measure) for name, found in results.items()}
        worst, median = min(ratios, key=lambda name: ratios[name]), statistics.median(ratios.values())
        below = sorted(name for name in ratios if ratios[name] < NEVER_BELOW)
        lines.append(
            f"  {measure}: median {median:.2f}x (goal {MEDIAN}), least {ratios[worst]:.2f}x of {worst}"
            f"{'; below 1: ' + ', '.join(below) if below else ''}"
        )
    both = [ratio(found, m) for found in results.values() for m in ("forward", "train")]
    lines.append(f"  forward and train together: median {statistics.median(both):.2f}x")
    return "\n".join(lines)


def save(
    arguments: argparse.Namespace, pythons: dict[str, str], results: dict[str, Found]
) -> dict[str, Found]:
    """Write the results beside what this day measured of other models; all of the day's results."""
    path = RESULTS / f"families-{datetime.date.today().isoformat()}.json"
    earlier = json.loads(path.read_text())["models"] if path.exists() else {}
    stamp = {"commit": commit(), "time": datetime.datetime.now().isoformat(timespec="seconds")}
    models = earlier | {name: {**stamp, **found} for name, found in results.items()}
    models = {case.name: models[case.name] for case in CASES if case.name in models}
    if arguments.no_save or arguments.cpu_time:
        return models
    RESULTS.mkdir(exist_ok=True)
    content = {
        "machine": machine(),
        "settings": {
            "rounds": arguments.rounds,
            "threads": arguments.threads,
            "dtype": "float32",
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        },
        "versions": {peer: environments.versions(python) for peer, python in pythons.items()},
        "models": models,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return models


if __name__ == "__main__":
    main()
