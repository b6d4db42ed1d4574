"""Recorded behaviour of the reference's preprocessing: reading the packs and holding a class against them.

A pack (goldens/processors/KIND.tar.xz) holds CLASS/CASE.json with config, inputs by rule (processor_inputs),
facts about every output, and CLASS/CASE.safetensors with sampled values.
"""

import base64
import functools
import io
import json
import lzma
import random
import tarfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from processor_inputs import SAMPLES, flatten, resolve, sample

import phyla

PACKS = Path(__file__).parent / "goldens" / "processors"
TOLERANCE = 1e-5  # of the reference's value range
UNCOMPARED = {"processor_class", "feature_extractor_type", "image_processor_type", "transformers_version"}


@dataclass(frozen=True)
class Golden:
    """What the reference computed for one class, one configuration and one call."""

    name: str  # CLASS/CASE
    facts: dict[str, Any]
    kept: dict[str, np.ndarray]


@functools.cache
def goldens(kind: str) -> dict[str, list[Golden]]:
    """All goldens of a pack by class."""
    texts: dict[str, bytes] = {}
    arrays: dict[str, bytes] = {}
    data = lzma.decompress((PACKS / f"{kind}.tar.xz").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive.getmembers():
            stem, suffix = member.name.rsplit(".", 1)
            (texts if suffix == "json" else arrays)[stem] = archive.extractfile(member).read()
    found: dict[str, list[Golden]] = {}
    for stem, text in sorted(texts.items()):
        kept = safetensors.numpy.load(arrays[stem]) if stem in arrays else {}
        found.setdefault(stem.split("/")[0], []).append(Golden(stem, json.loads(text), kept))
    return found


def write_files(golden: Golden, folder: Path) -> None:
    """Write the files that the golden was recorded from."""
    files = dict(golden.facts.get("files") or {})
    if golden.facts.get("config") is not None:
        files.setdefault("preprocessor_config.json", golden.facts["config"])
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict) and set(content) == {"$base64"}:
            target.write_bytes(base64.b64decode(content["$base64"]))
            continue
        target.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def made_of(facts: dict[str, Any], folder: Path):
    """The golden's object: loaded, or of a collator constructed, with the tokenizer of the folder."""
    cls = getattr(phyla, facts["class"])
    if facts["kind"] != "collator":
        return cls.from_pretrained(folder)
    arguments = resolve(facts.get("init") or {})
    if facts.get("files"):
        arguments["tokenizer"] = phyla.AutoTokenizer.from_pretrained(folder)
    return cls(**arguments)


def perform(golden: Golden, folder: Path):
    """The golden's class loaded from its folder, and the result of its call."""
    facts = golden.facts
    made = made_of(facts, folder)
    args, named = resolve(facts.get("args", [])), resolve(facts.get("kwargs", {}))
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with torch.no_grad():
        return made, getattr(made, facts["method"])(*args, **named, **resolve(facts.get("call", {})))


def faults(golden: Golden, folder: Path) -> list[str]:
    """How phyla departs from the golden; empty means that it holds."""
    write_files(golden, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if golden.facts.get("raises"):
            try:
                perform(golden, folder)
            except Exception as error:
                kinds = [c.__name__ for c in type(error).__mro__]
                return [] if golden.facts["raises"] in kinds else [f"raised {type(error).__name__}: {error}"]
            return [f"did not raise {golden.facts['raises']}"]
        made, result = perform(golden, folder)
        return compare(golden, result) + config_faults(golden, made, folder)


def compare(golden: Golden, result: Any) -> list[str]:
    """Faults of every output."""
    out, leaves = [], flatten(result)
    for path, want in golden.facts["outputs"].items():
        if path not in leaves:
            out.append(f"{path} is missing; there are {sorted(leaves)[:8]}")
            continue
        fault = leaf_fault(want, leaves.pop(path), golden.kept.get(want.get("key", f"out.{path}")), golden)
        if fault:
            out.append(f"{path or 'output'}: {fault}")
    return out + ([f"more outputs than the reference: {sorted(leaves)[:6]}"] if leaves else [])


def leaf_fault(want: dict, leaf: tuple, kept: np.ndarray | None, golden: Golden) -> str | None:
    """The fault of one output, or None."""
    if want["kind"] == "value":
        if "noisy" not in want and (leaf[0] != "value" or not same(want["value"], leaf[1])):
            return f"{str(leaf[1])[:100]}, reference {str(want['value'])[:100]}"
        return None
    if leaf[0] != want["kind"]:
        return f"is {leaf[0]}, reference {want['kind']}"
    array = leaf[1]
    if list(array.shape) != want["shape"] or leaf[2] != want["dtype"]:
        return f"{leaf[2]} {list(array.shape)}, reference {want['dtype']} {want['shape']}"
    if want.get("noisy"):
        return None
    flat = sample(array.reshape(-1), golden.facts.get("samples", SAMPLES))
    if kept.dtype.kind in "iub":
        bad = int((flat.astype(np.int64) != kept.astype(np.int64)).sum())
        whole = zlib.crc32(np.ascontiguousarray(array).astype(np.int64).tobytes())
        return (
            f"{bad} of {len(flat)} sampled integers differ"
            if bad or whole != want.get("crc32", whole)
            else None
        )
    ours, theirs = flat.astype(np.float64), kept.astype(np.float64)
    odd = ~np.isfinite(theirs)
    if not np.array_equal(ours[odd], theirs[odd], equal_nan=True) or not np.isfinite(ours[~odd]).all():
        return "not finite where the reference is, or the reverse"
    low, high = want["range"]
    span = max(high - low, 0.1 * max(abs(low), abs(high)), 1e-6)
    worst = float(np.abs(ours[~odd] - theirs[~odd]).max(initial=0.0))
    if worst > TOLERANCE * span:
        return f"largest difference {worst:.2e} in a range of {span:.3g}"
    mean = want.get("mean")
    if (
        mean is not None
        and array.size
        and abs(float(array.astype(np.float64).mean()) - mean) > TOLERANCE * span
    ):
        return f"mean {float(array.astype(np.float64).mean()):.6g}, reference {mean:.6g}"
    return None


def same(want: Any, got: Any) -> bool:
    """Plain values: numbers within the tolerance, all else equal."""
    if isinstance(want, float) or isinstance(got, float):
        if not isinstance(want, (int, float)) or not isinstance(got, (int, float)):
            return False
        return (
            want == got or (want != want and got != got) or abs(want - got) <= TOLERANCE * max(1, abs(want))
        )
    if isinstance(want, list):
        return isinstance(got, list) and len(want) == len(got) and all(map(same, want, got))
    if isinstance(want, dict) and isinstance(got, dict):
        return want.keys() == got.keys() and all(same(want[key], got[key]) for key in want)
    return want == got


def config_faults(golden: Golden, made: Any, folder: Path) -> list[str]:
    """Settings saved otherwise than the reference saves them, after loading and after construction."""
    facts = golden.facts
    if facts["kind"] not in ("image", "audio", "fast") or facts.get("config") is None:
        return []
    objects = {"loaded": made}
    if facts.get("init") is not None and not facts.get("files"):
        objects["constructed"] = getattr(phyla, facts["class"])(**resolve(facts["init"]))
    out = []
    for how, one in objects.items():
        one.save_pretrained(folder / how)
        got = json.loads((folder / how / "preprocessor_config.json").read_text())
        want = {k: v for k, v in facts["config"].items() if k not in UNCOMPARED and not k.startswith("_")}
        wrong = [key for key, value in want.items() if key not in got or not same(value, got[key])]
        wrong += [f"{key} (new)" for key in got if key not in want and key not in UNCOMPARED]
        if wrong:
            out.append(f"saved after being {how}, these differ: {wrong[:6]}")
    return out
