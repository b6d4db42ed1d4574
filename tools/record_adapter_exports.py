"""Record what public libraries compute from adapters that phyla saves:

    record_adapter_exports.py ADAPTERS_PYTHON PEFT_PYTHON [PATTERN ...]

The interpreters have `adapters` 1.3.0 and `peft` 0.21.2. Every case of tests/adapter_exports.py is saved,
loaded there and run on the same inputs; outputs must agree. With no PATTERN the record in tests/goldens is
written anew: a digest of each folder and values of the peer's output, and the cases that the peer does not
load, with its reason. With patterns (fnmatch on case ids) nothing is written.
"""

import collections
import fnmatch
import json
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import adapter_exports  # noqa: E402
from adapter_exports import Export  # noqa: E402

from phyla.errors import AdapterError  # noqa: E402
from phyla.testing.adapters import ABSOLUTE, RELATIVE  # noqa: E402

# Cases in which the public library computes something else, and why that is no fault of the folder.
DEPARTURES = {
    "adapters/*/adapter.direft": "load_adapter drops that DiReFT takes nothing off; checkpoints keep it",
    "adapters/*/setup.1.Stack": "of parallel bottlenecks in a Stack only the last one counts there",
    "adapters/*/setup.13.Average": "the average is divided by the number of adapters once more there",
    "adapters/*/whole.prompt_tuning": "prompts are not implemented there, and passed over in silence",
    "adapters/gemma2/whole.prefix_tuning": "prefixes are not implemented there, and passed over in silence",
    "adapters/qwen2/whole.prefix_tuning": "prefixes are not implemented there, and passed over in silence",
    "adapters/qwen2/whole.unipelt": "prefixes are not implemented there, and passed over in silence",
    "peft/bert/peft.tokens*": "an output matrix that is tied to the table loses its bias there",
    "adapters/vit/whole.seq_bn_inv": "such adapters are not implemented there, and passed over in silence",
}


def main(adapters: str, peft: str, *patterns: str) -> int:
    """Save, load, compare, record; the exit status is 1 if something disagrees without a known reason."""
    record: dict[str, Any] = {"cases": {}, "refused": {}, "without_place": {}}
    wrong = 0
    for library, python in (("adapters", adapters), ("peft", peft)):
        cases = [c for c in adapter_exports.exports() if c.library == library]
        cases = [c for c in cases if not patterns or any(fnmatch.fnmatch(c.id, p) for p in patterns)]
        with tempfile.TemporaryDirectory() as folder:
            wrong += run(cases, python, Path(folder), record)
    kinds = collections.Counter(name.split("/")[0] for name in record["cases"])
    print(f"agree: {dict(kinds)}; not loaded there: {len(record['refused'])}; disagree: {wrong}")
    reasons = collections.defaultdict(list)
    for table in ("refused", "without_place"):
        for name, reason in record[table].items():
            reasons[f"{table}: {reason}"].append(name)
    for reason, names in reasons.items():
        print(f"{reason} -- {', '.join(names)}")
    if not patterns:
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        adapter_exports.RECORD.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
        print(f"{adapter_exports.RECORD}: {adapter_exports.RECORD.stat().st_size} bytes")
    return int(wrong > 0)


def run(cases: list[Export], python: str, folder: Path, record: dict[str, Any]) -> int:
    """The cases of one library; how many disagree."""
    (folder / "inputs").mkdir()
    kept: list[tuple[Export, torch.Tensor, dict[str, str]]] = []
    for case in cases:
        try:
            model = adapter_exports.build(case, folder / "bases")
            inputs = adapter_exports.inputs_of(case)
            due = adapter_exports.output(model, inputs)
            saved = folder / "saved" / str(len(kept))
            adapter_exports.save(case, model, saved)
        except AdapterError as error:
            record["without_place"][case.id] = str(error)[:200]
            continue
        path = folder / "inputs" / f"{len(kept)}.safetensors"
        safetensors.torch.save_file({k: v.clone() for k, v in inputs.items()}, path)
        kept.append((case, due, adapter_exports.digests(saved)))
    (folder / "cases.json").write_text(json.dumps([case.facts() for case, _, _ in kept]))
    peer = Path(__file__).parent / "adapter_exports_peer.py"
    made = subprocess.run([python, str(peer), str(folder)], capture_output=True, text=True)
    if made.returncode:
        print(made.stderr[-2000:])
        made.check_returncode()
    wrong = 0
    for number, (case, due, digests) in enumerate(kept):
        fault = compare(case, folder / "out" / str(number), due, digests, record)
        reason = next((r for p, r in DEPARTURES.items() if fault and fnmatch.fnmatch(case.id, p)), None)
        if fault and holds_parts(folder / "saved" / str(number)):
            reason = "the adapter stands at parts of a joined matrix, for which its files have no words"
        if reason:
            record["refused"][case.id] = f"computes something else: {reason}"
        elif fault:
            print(f"{case.id}: {fault}", flush=True)
            wrong += 1
    return wrong


def holds_parts(folder: Path) -> bool:
    """Whether a folder has tensors of parts that public files hold as one matrix (adapters/fused.py)."""
    names: list[str] = []
    for path in folder.glob("adapter.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            names += file.keys()
    return any(".parts." in name for name in names)


def compare(
    case: Export, path: Path, due: torch.Tensor, digests: dict[str, str], record: dict[str, Any]
) -> str:
    """Hold the peer's output against phyla's and record it; a fault where they differ."""
    text = path.with_name(path.name + ".txt")
    if text.exists():
        record["refused"][case.id] = text.read_text()
        return ""
    with safetensors.safe_open(path.with_name(path.name + ".safetensors"), "pt") as file:
        found, how = file.get_tensor("out"), file.metadata()["how"]
    if found.shape != due.shape:
        return f"{list(found.shape)} values there, {list(due.shape)} here"
    off = (found - due).abs()
    if not bool((off <= RELATIVE * found.abs() + ABSOLUTE * found.abs().max()).all()):
        return f"departs by {float(off.max()):.3g} (largest value {float(found.abs().max()):.3g})"
    values = [float(f"{v:.7g}") for v in adapter_exports.few(found).tolist()]
    record["cases"][case.id] = {**digests, "largest": float(found.abs().max()), "how": how, "out": values}
    return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
