"""Every family takes every method that has a meaning for it; docs/adapters_matrix.md lists the others."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import phyla
from phyla.adapters.api import adapters_of
from phyla.errors import AdapterError
from phyla.registry import families
from phyla.testing.goldens import read_names, read_pack

GOLDENS = Path(__file__).parent / "goldens"
ABSENT = json.loads((Path(__file__).parent.parent / "tools" / "adapter_matrix.json").read_text())["absent"]
METHODS = {
    "bottleneck": "double_seq_bn[reduction_factor=4]",
    "invertible": "seq_bn_inv[reduction_factor=4]",
    "lora": "lora[r=2]",
    "prefix": "prefix_tuning_flat[prefix_length=3]",
    "prompt": "prompt_tuning[prompt_length=3]",
    "reft": "noreft[r=2]",
}


def base_of(row: Any) -> str | None:
    """The class of a family that is tried: the bare one, or the first with a golden."""
    path = GOLDENS / f"{row.model_type}.tar.xz"
    known = read_names(path) if path.exists() else ()
    return min(
        (n for n in row.classes if n in known), key=lambda n: row.classes[n] != "base-model", default=None
    )


CASES = {row.model_type: name for row in families() if (name := base_of(row)) is not None}


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of numbers in a model's outputs."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    inside = value.values() if hasattr(value, "values") else value if isinstance(value, tuple | list) else ()
    return [t for item in inside for t in tensors_in(item)]


def alike(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outputs are the same, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def reason(method: str, family: str) -> str | None:
    """Why a method has no meaning for a family."""
    return next((why for why, named in ABSENT[method].items() if family in named), None)


@pytest.mark.parametrize("family", CASES)
@torch.no_grad()
def test_every_family(family: str, tmp_path: Path) -> None:
    warnings.simplefilter("ignore")
    golden = next(g for g in read_pack(GOLDENS / f"{family}.tar.xz") if g.name == CASES[family])
    cls = getattr(phyla, golden.class_name)
    torch.manual_seed(0)
    model = cls(cls.config_class.from_dict(golden.facts["config"])).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 or parameter.shape == (1,):
            parameter.normal_(0, 0.1)

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        return tensors_in(model(**golden.inputs(), **golden.facts["call"]))

    plain, faults = run(), []
    for method, config in METHODS.items():
        if reason(method, family) is not None:
            with pytest.raises(AdapterError):  # else it works: take it off the list
                model.add_adapter("a", config=config)
            continue
        model.add_adapter("a", config=config, set_active=True)
        entry = adapters_of(model).get("a")
        for parameter in entry.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        changed = run()
        if alike(changed, plain):
            faults.append(f"{method}: does nothing")
        model.save_adapter(tmp_path / "a", "a", with_head=False)
        model.load_adapter(tmp_path / "a", load_as="b", set_active=True, with_head=False)
        if not alike(run(), changed):
            faults.append(f"{method}: saved and loaded, it computes something else")
        model.set_active_adapters(None)
        if not alike(run(), plain):
            faults.append(f"{method}: leaves something behind when inactive")
        for name in "ab":
            model.delete_adapter(name)
    assert not faults, "\n".join(faults)


def test_the_list_names_families() -> None:
    assert set(ABSENT) == set(METHODS)
    for method, reasons in ABSENT.items():
        named = [family for members in reasons.values() for family in members]
        assert len(named) == len(set(named)) and set(named) <= set(CASES), method
