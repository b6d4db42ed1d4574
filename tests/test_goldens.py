"""Every public class against what the reference computed: outputs, loss, greedy tokens, saved files."""

import functools
from pathlib import Path

import pytest

import phyla
from phyla.testing import parity
from phyla.testing.goldens import Golden, read_names, read_pack

PACKS = sorted(Path(__file__).with_name("goldens").glob("*.tar.xz"))
CASES = [(pack, name) for pack in PACKS for name in read_names(pack)]


@functools.cache
def family(pack: Path) -> dict[str, Golden]:
    return {golden.name: golden for golden in read_pack(pack)}


@pytest.mark.parametrize(
    ("pack", "name"), CASES, ids=[f"{p.name.removesuffix('.tar.xz')}/{name}" for p, name in CASES]
)
def test_golden(pack: Path, name: str) -> None:
    faults = parity.check(family(pack)[name], phyla)
    assert not faults, "\n" + "\n".join(faults)


FOUNDATION = """
llama mistral mixtral qwen2 gemma2 phi3 gpt2 gpt_neox falcon bloom opt mamba bert roberta distilbert t5 bart
vit clip clip_text_model clip_vision_model
"""


def test_packs_hold_the_families_of_the_foundation() -> None:
    assert {pack.name.removesuffix(".tar.xz") for pack in PACKS} >= set(FOUNDATION.split())
