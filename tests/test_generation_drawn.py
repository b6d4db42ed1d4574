"""Calls of settings drawn by chance against what the reference gave with the same weights.

tests/goldens/generation_drawn.json.xz was made by `tools/record_generation.py --drawn`.
"""

import functools
import json
import lzma
from typing import Any

import pytest
import torch
from test_generation_strategies import GOLDENS, arguments, assert_same, model_of, plain

import phyla


@functools.cache
def recorded() -> dict[str, dict]:
    return json.loads(lzma.decompress((GOLDENS / "generation_drawn.json.xz").read_bytes()))["cases"]


def called(case: dict) -> dict[str, Any]:
    given = arguments(case)
    criterion = given.pop("criteria", None)
    if criterion is not None:
        given["stopping_criteria"] = [getattr(phyla, criterion[0])(criterion[1])]
    return given


@pytest.mark.parametrize("name", recorded())
def test_recorded(name: str) -> None:
    case = recorded()[name]
    torch.manual_seed(7)
    found, wanted = plain(model_of(case["model"]).generate(**called(case))), dict(case["out"])
    if name.endswith("-group"):  # beams are counted within a group there, one that is over is fed otherwise
        for field in ("beam_indices", "scores", "logits"):
            del found[field], wanted[field]
    assert_same(found, wanted)
