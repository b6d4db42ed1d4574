"""Every strategy against what the reference generated with the same weights.

tests/goldens/generation.json.xz was made by tools/record_generation.py.
"""

import functools
import json
import lzma
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import phyla
from phyla.testing.seeded import seeded_weight

GOLDENS = Path(__file__).with_name("goldens")
# beam_indices: the reference numbers the beams of a group within the group; scores: with constraints it adds
# the
# sums of the beams
DIGITS = {"rel": 1e-3, "abs": 1e-3}
OURS = {"group": ("beam_indices",), "forced": ("beam_indices", "scores")}


@functools.cache
def recorded() -> dict[str, dict]:
    return json.loads(lzma.decompress((GOLDENS / "generation.json.xz").read_bytes()))


@functools.cache
def model_of(key: str) -> Any:
    case = recorded()["models"][key]
    tensors = {}
    for name, shape in case["tensors"]:
        value = torch.from_numpy(seeded_weight(name, shape)).reshape(shape)
        tensors[name] = value * case["factor"] if len(shape) > 1 else value
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(case["config"]))
        return getattr(phyla, case["cls"]).from_pretrained(folder, attn_implementation="eager")


def arguments(case: dict) -> dict[str, Any]:
    given = dict(case["call"])
    for name in ("input_ids", "attention_mask", "negative_prompt_ids"):
        if name in given:
            given[name] = torch.tensor(given[name])
    mark = given.pop("watermark", None)
    if mark is not None:
        kind = phyla.SynthIDTextWatermarkingConfig if "keys" in mark else phyla.WatermarkingConfig
        given["watermarking_config"] = kind(**mark)
    drafting = given.pop("draft", {})
    if case["draft"] is not None:
        given["assistant_model"] = model_of(case["draft"])
        given |= drafting
    return given


def digest(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        finite = value.float().clamp(-1e4, 1e4)
        return [list(value.shape), float(finite.mean()), float(finite.abs().amax())]
    return [digest(v) for v in value]


def plain(out: Any) -> dict:
    if isinstance(out, torch.Tensor):
        return {"sequences": out.tolist()}
    kept = {"sequences": out.sequences.tolist()}
    for name, value in out.items():
        if value is None or name in ("sequences", "past_key_values"):
            continue
        kept[name] = value.tolist() if name in ("sequences_scores", "beam_indices") else digest(value)
    return kept


def assert_same(found: Any, wanted: Any, where: str = "") -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_same(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
            assert_same(mine, theirs, f"{where}.{i}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, **DIGITS), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("name", recorded()["cases"])
def test_recorded(name: str) -> None:
    case = recorded()["cases"][name]
    torch.manual_seed(7)
    found, wanted = plain(model_of(case["model"]).generate(**arguments(case))), dict(case["out"])
    for kind, fields in OURS.items():
        if f"-{kind}-" in name:
            found = {k: v for k, v in found.items() if k not in fields}
            wanted = {k: v for k, v in wanted.items() if k not in fields}
    assert_same(found, wanted)
