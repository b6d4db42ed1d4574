"""Holds a public class against its golden: outputs, loss, greedy tokens, and the files it saves.

`check(golden, phyla)` returns the faults it found, first departing layer first. The library is an
argument, so the same runner also holds the reference against its own recordings.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from phyla.testing.goldens import Golden

RELATIVE = 1e-4
ABSOLUTE = 1e-5  # of the largest value of the output, or of 1 where that is larger
LOSS_RELATIVE = 1e-4
SAMPLES = 1024  # values kept of each recorded output
SEED = 7  # drawn before each recorded call

# Keys of config.json that tell of the writer, not of the model.
WRITER_KEYS = {
    "transformers_version",
    "phyla_version",
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "_attn_implementation_autoset",
}


def check(golden: Golden, library: Any) -> list[str]:
    """Faults of `library`'s class of that name against the golden; an empty list means that it holds."""
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as target, torch.no_grad():
        weights = golden.write_checkpoint(Path(source))
        model = getattr(library, golden.class_name).from_pretrained(source).eval()
        aspects: dict[str, Callable[[], Iterator[str]]] = {
            "forward": lambda: output_faults(golden, model),
            "loss": lambda: loss_faults(golden, model),
            "generate": lambda: generation_faults(golden, model),
            "save": lambda: saving_faults(golden, model, weights, Path(target)),
        }
        for aspect, find in aspects.items():
            with recording(faults, aspect):
                faults.extend(f"{aspect}: {fault}" for fault in find())
    return faults


@contextmanager
def recording(faults: list[str], aspect: str) -> Iterator[None]:
    """Turn an exception of one aspect into a fault, so that the others are still looked at."""
    try:
        yield
    except Exception as error:
        faults.append(f"{aspect}: {type(error).__name__}: {error}")


def output_faults(golden: Golden, model: Any) -> Iterator[str]:
    """Faults of the recorded call's outputs: missing, of another shape, or with other values."""
    torch.manual_seed(SEED)
    outputs = model(**golden.inputs(), **golden.facts["call"])
    if not hasattr(outputs, "keys"):
        outputs = {"output": outputs}
    recorded = golden.group("out")
    for path in sorted(recorded, key=depth_order):
        try:
            value = follow(outputs, path)
        except LookupError as error:
            yield f"{path} is missing: {error}"
            continue
        shape = golden.facts["outputs"][path]["shape"]
        if list(value.shape) != shape:
            yield f"{path} has shape {list(value.shape)}, the reference {shape}"
        elif fault := value_fault(sample(value), recorded[path]):
            yield f"{path} {fault}"


def depth_order(path: str) -> tuple[bool, list[tuple[bool, int, str]]]:
    """Sort key: hidden states from the embedding upwards, then the rest by name."""
    parts = path.split(".")
    return "hidden_states" not in path, [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts]


def follow(outputs: Any, path: str) -> Tensor:
    """The value at a dotted path such as `hidden_states.2` or `text_model_output.pooler_output`."""
    value: Any = outputs
    for step in path.split("."):
        if isinstance(value, Mapping) or hasattr(value, "keys"):
            if step not in value:
                raise KeyError(f"no {step!r} among {list(value.keys())}")
            value = value[step]
        elif isinstance(value, (list, tuple)):
            value = value[int(step)]
        else:
            raise KeyError(f"{step!r} of a {type(value).__name__}")
    if not isinstance(value, Tensor):
        raise KeyError(f"a tensor is due, found a {type(value).__name__}")
    return value


def sample(value: Tensor) -> Tensor:
    """At most SAMPLES values at evenly spaced flat positions, as the recordings keep them."""
    flat = value.detach().contiguous().flatten()
    if flat.numel() <= SAMPLES:
        return flat
    return flat[torch.linspace(0, flat.numel() - 1, SAMPLES).long()]


def value_fault(found: Tensor, wanted: Tensor) -> str | None:
    """How far `found` is from `wanted`, or None where it is within the tolerance."""
    wanted = wanted.flatten()
    if not wanted.is_floating_point():
        wrong = int((found.long() != wanted.long()).sum())
        return f"differs in {wrong} of {wanted.numel()} integers" if wrong else None
    found, wanted = found.float(), wanted.float()
    largest = float(wanted.nan_to_num(0, 0, 0).abs().max()) if wanted.numel() else 0.0
    if torch.allclose(found, wanted, rtol=RELATIVE, atol=ABSOLUTE * max(1.0, largest), equal_nan=True):
        return None
    distance = float((found - wanted).abs().nan_to_num(float("inf")).max())
    return f"is off by up to {distance:.2e} (reference up to {largest:.2g})"


def loss_faults(golden: Golden, model: Any) -> Iterator[str]:
    """The fault of the loss, if the recorded labels give another one."""
    labels, wanted = golden.group("label"), golden.facts["loss"]
    if not labels or wanted is None:
        return
    inputs = golden.inputs()
    if "labels" in labels:
        inputs.pop("decoder_input_ids", None)  # the labels, shifted, stand in for them
    torch.manual_seed(SEED)
    found = float(model(**inputs, **labels).loss)
    if not abs(found - wanted) <= LOSS_RELATIVE * max(1.0, abs(wanted)):
        yield f"{found:.6f}, reference {wanted:.6f}"


def generation_faults(golden: Golden, model: Any) -> Iterator[str]:
    """The fault of the greedy run, if it gives other token ids."""
    settings, wanted = golden.facts["generate"], golden.recorded.get("generated")
    if not settings or wanted is None:
        return
    inputs = {name: value for name, value in golden.inputs().items() if name != "decoder_input_ids"}
    if isinstance(inputs.get("attention_mask"), Tensor) and isinstance(inputs.get("input_ids"), Tensor):
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    torch.manual_seed(SEED)
    found = model.generate(**inputs, **settings)
    found = found if isinstance(found, Tensor) else found.sequences
    if found.shape != wanted.shape or not torch.equal(found, wanted):
        yield f"{found.tolist()}, reference {wanted.tolist()}"


def saving_faults(golden: Golden, model: Any, weights: dict[str, Tensor], folder: Path) -> Iterator[str]:
    """Faults of the saved files: tensors lost, added or changed by a bit, and config keys lost or changed."""
    model.save_pretrained(folder)
    saved: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        saved |= safetensors.torch.load_file(file)
    changed = [n for n in weights if n in saved and not same_bits(weights[n], saved[n])]
    for fault, names in (
        ("lost", sorted(weights.keys() - saved.keys())),
        ("added", sorted(saved.keys() - weights.keys())),
        ("changed", changed),
    ):
        if names:
            yield f"{len(names)} tensors {fault}: {', '.join(names[:3])}"
    written = json.loads((folder / "config.json").read_text())
    if departed := departed_keys(golden.facts["config"], written):
        yield f"config.json departs in {', '.join(departed)}"


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have one dtype, one shape and one bit pattern."""
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)


def departed_keys(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Keys of a config that were lost or got another value; writers' marks do not count."""
    return [
        key
        for key, value in wanted.items()
        if key not in WRITER_KEYS
        and not key.startswith("_")
        and value is not None
        and (key not in found or departs(value, found[key]))
    ]


def departs(wanted: Any, found: Any) -> bool:
    """Whether a config value changed; of a nested config only keys that both sides have are held together."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return any(
            departs(value, found[key])
            for key, value in wanted.items()
            if key in found and key not in WRITER_KEYS and not key.startswith("_")
        )
    return wanted != found
