"""Options that the tiny goldens do not use, against recorded outputs of the reference.

Format of tests/goldens/options/<family>.json.xz: goldens with class, config, tensor names and shapes (weights
follow from them by phyla.testing.seeded), inputs (without `values` where they follow from name and shape),
call, and of each output its shape and evenly spaced values; some with options of from_pretrained, labels and
loss, generate and generated.
"""

import functools
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import phyla
from phyla.testing.parity import follow
from phyla.testing.seeded import seeded_input, seeded_weight

FOLDER = Path(__file__).with_name("goldens") / "options"
TOLERANCE = 1e-4


@functools.cache
def cases(family: str) -> dict[str, dict]:
    data = json.loads(lzma.decompress((FOLDER / f"{family}.json.xz").read_bytes()))
    return {golden["name"]: golden for golden in data["goldens"]}


def tensor(stored: dict, name: str = "") -> Any:
    if "items" in stored:
        return [tensor(v, f"{name}.{i}") for i, v in enumerate(stored["items"])]
    if "shape" not in stored:
        return {k: tensor(v, f"{name}.{k}") for k, v in stored.items()}
    if "values" not in stored:
        return torch.from_numpy(seeded_input(name, stored["shape"]))
    return torch.tensor(stored["values"], dtype=getattr(torch, stored["dtype"])).reshape(stored["shape"])


ALL = [
    (path.name.removesuffix(".json.xz"), name)
    for path in sorted(FOLDER.glob("*.json.xz"))
    for name in cases(path.name.removesuffix(".json.xz"))
]


@pytest.mark.parametrize(("family", "name"), ALL, ids=[name for _, name in ALL])
@torch.no_grad()
def test_option(family: str, name: str, tmp_path: Path) -> None:
    golden = cases(family)[name]
    weights = {
        n: torch.from_numpy(seeded_weight(n, shape)).reshape(shape) for n, shape, _ in golden["tensors"]
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(golden["config"]))
    model = getattr(phyla, golden["cls"]).from_pretrained(tmp_path, **golden.get("options", {}))
    inputs = {k: tensor(v, k) for k, v in golden["inputs"].items()}
    torch.manual_seed(7)
    out = model(**inputs, **golden["call"])
    faults = []
    for path, wanted in golden["outputs"].items():
        found = follow(out, path)
        assert list(found.shape) == wanted["shape"], path
        flat, values = found.float().flatten(), torch.tensor(wanted["values"])
        if flat.numel() > values.numel():
            flat = flat[torch.linspace(0, flat.numel() - 1, values.numel()).long()]
        endless = values.isinf()  # boxes of places that stand for none
        if not torch.equal(flat[endless], values[endless]):
            faults.append(f"{path} is finite where it must not be")
        flat, values = flat[~endless], values[~endless]
        error = ((flat - values).abs().max() / values.abs().max().clamp(min=1)).item()
        if not error <= TOLERANCE:
            faults.append(f"{path} departs by {error:.1e}")
    assert not faults, faults
    if "loss" in golden:
        labels = {k: tensor(v) for k, v in golden["labels"].items()}
        torch.manual_seed(7)
        assert float(model(**inputs, **labels).loss) == pytest.approx(golden["loss"], rel=TOLERANCE)
    if "generate" in golden:
        assert model.generate(**inputs, **golden["generate"]).tolist() == tensor(golden["generated"]).tolist()
