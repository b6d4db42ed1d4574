"""Record what the reference computes under options that the shared goldens do not use.

    REFERENCE_PYTHON tools/record_options.py GOLDENS tools/option_cases/albert.json ...

The interpreter has the reference installed; PYTHONPATH names this repository. A case is an object with
`name`, `cls`, and what differs from the golden of that class: `changes` (config keys; null removes one),
`inputs` (nested lists, or {"shape": [...]} for seeded floats; left out: the golden's), `call`, `labels`
(tensors, a list of named ones, or {"items": [...]} for a list of unequal ones), `options` (of
from_pretrained), `generate` (arguments). `from` names another class's golden to start from. Cases of the
same name in tests/goldens/options/FAMILY.json.xz are replaced.
"""

import importlib
import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from phyla.testing.goldens import read_folder
from phyla.testing.seeded import seeded_input, seeded_weight

TARGET = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "options"
MOST = 256  # values kept of each output


def leaves(value: Any, path: str = "") -> Any:
    """(dotted path, tensor) of every float tensor of an output."""
    if torch.is_tensor(value):
        if value.is_floating_point() and value.numel():
            yield path, value
    elif hasattr(value, "items"):
        for key, inner in value.items():
            if key != "past_key_values":
                yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (tuple, list)):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{index}" if path else str(index))


def sampled(tensor: torch.Tensor) -> list[float]:
    flat = tensor.detach().float().contiguous().flatten()
    if flat.numel() > MOST:
        flat = flat[torch.linspace(0, flat.numel() - 1, MOST).long()]
    return [float(f"{x:.6g}") for x in flat.tolist()]


def by_image(value: Any) -> bool:
    """Whether a value is a list of named tensors, one for each image."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def stored(value: Any) -> dict[str, Any]:
    """An input as the file keeps it; several by name where a model takes them so."""
    if isinstance(value, dict) and "items" in value:
        return {"items": [stored(v) for v in value["items"]]}
    if isinstance(value, dict):
        return value if "shape" in value else {k: stored(v) for k, v in value.items()}
    if by_image(value):
        return {"items": [stored(v) for v in value]}
    tensor = value if torch.is_tensor(value) else torch.tensor(value)
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype)[6:], "values": tensor.flatten().tolist()}


def tensor(value: Any, name: str) -> Any:
    if isinstance(value, dict) and "items" in value:
        return [tensor(v, f"{name}.{i}") for i, v in enumerate(value["items"])]
    if by_image(value):
        return [tensor(v, f"{name}.{i}") for i, v in enumerate(value)]
    if isinstance(value, dict) and "shape" not in value:
        return {k: tensor(v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, dict):
        return torch.from_numpy(seeded_input(name, value["shape"]))
    return value if torch.is_tensor(value) else torch.tensor(value)


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The config with changes laid over it, into nested configurations; null removes a key."""
    result = dict(config)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def record(case: dict[str, Any], goldens: dict[str, Any]) -> dict[str, Any]:
    import transformers

    golden = goldens[case.get("from", case["cls"])]
    cls = getattr(transformers, case["cls"])
    config = cls.config_class.from_dict(merged(golden.facts["config"], case.get("changes", {})))
    options = case.get("options", {})
    inputs = case.get("inputs")
    if inputs is None:
        inputs = golden.inputs()
        large = {k for k, v in inputs.items() if torch.is_tensor(v) and v.numel() > 600}
        kept = {k: v for k, v in inputs.items() if torch.is_tensor(v)}
        inputs = {
            k: {"shape": list(v.shape)} if k in large and v.is_floating_point() else v
            for k, v in kept.items()
        }
    call = {**golden.facts["call"], **case["call"]} if "call" in case else golden.facts["call"]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        fresh = cls(config, **options) if options else cls._from_config(config)
        try:
            fresh.save_pretrained(folder)
        except RuntimeError:  # tensors with two names, which the reference saves as pickles alone
            fresh.config.save_pretrained(folder)
            last = {t.data_ptr(): n for n, t in fresh.state_dict().items()}
            state = {n: t.clone() for n, t in fresh.state_dict().items() if last[t.data_ptr()] == n}
            save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        path = Path(folder) / "model.safetensors"
        weights = load_file(path)
        weights = {
            n: torch.from_numpy(seeded_weight(n, list(t.shape))).reshape(t.shape)
            if t.is_floating_point()
            else t
            for n, t in weights.items()
            if not n.endswith("inv_freq")  # computed, though files of some families hold it
        }
        save_file(weights, path, metadata={"format": "pt"})
        written = json.loads((Path(folder) / "config.json").read_text())
        model = cls.from_pretrained(folder, **options).eval()
        # The reference forgets a bias that is tied to its output matrix when it loads (BERT's relatives).
        model.load_state_dict(weights, strict=False)
    passed = {k: tensor(v, k) for k, v in inputs.items()}
    with torch.no_grad():
        torch.manual_seed(7)
        out = model(**passed, **call)
        written.pop("transformers_version", None)
        made = {
            "name": f"{config.model_type}-{case['name']}", "cls": case["cls"], "config": written,
            "tensors": [
                [n, list(t.shape), str(t.dtype)[6:]] for n, t in weights.items() if t.is_floating_point()
            ],
            "inputs": {k: stored(v) for k, v in inputs.items()}, "call": call,
            "outputs": {p: {"shape": list(t.shape), "values": sampled(t)} for p, t in leaves(out)},
        }  # fmt: skip
        if options:
            made["options"] = options
        if "labels" in case:
            made["labels"] = {k: stored(v) for k, v in case["labels"].items()}
            torch.manual_seed(7)
            loss = model(**passed, **{k: tensor(v, k) for k, v in case["labels"].items()}).loss
            made["loss"] = float(loss)
        if "generate" in case:
            made["generate"] = case["generate"]
            made["generated"] = stored(model.generate(**passed, **case["generate"]))
    return made


def main() -> None:
    root, *files = sys.argv[1:]
    reference = importlib.import_module("transformers")
    reference.logging.set_verbosity_error()
    for file in files:
        family = Path(file).stem
        goldens = {g.class_name: g for g in read_folder(Path(root) / family)}
        target = TARGET / f"{family}.json.xz"
        kept: dict[str, Any] = {}
        if target.exists():
            kept = {g["name"]: g for g in json.loads(lzma.decompress(target.read_bytes()))["goldens"]}
        for case in json.loads(Path(file).read_text()):
            try:
                made = record(case, goldens)
            except Exception as error:
                print(
                    f"{family} {case['name']}: the reference refuses: {type(error).__name__}: {error}"[:300]
                )
                continue
            kept[made["name"]] = made
        made_by = f"transformers {reference.__version__}"
        text = json.dumps({"reference": made_by, "goldens": list(kept.values())}, separators=(",", ":"))
        target.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
        print(f"{target.name}: {len(kept)} cases, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
