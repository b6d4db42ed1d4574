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


# Goldens that phyla departs from on purpose, because the reference is not consistent with itself there.
_GROUPS = (
    "the reference gives head h the group h % groups in a pass and h // (heads / groups) in a step and on "
    "CUDA; here it is always the latter, as in the paper"
)
_ROWS = "the reference mixes the rows of a batch in a decoding step; a single row gives the same tokens"
_ONE_PLACE = (
    "the last map has one place, of which a group norm of one channel a group leaves what rounding left, "
    "times 316 (it should leave the bias), and further norms amplify that: in float64 phyla departs from the "
    "reference by 2.4e-4 as well; the options of this family have larger images and hold"
)
_LAST_STEP = (
    "the reference's cache of mixed windows forgets the first token in the last step, although no window is "
    "full; without a cache, and in a longer run, it gives the token that phyla gives"
)
DEPARTURES = {
    "gemma3/Gemma3ForConditionalGeneration": (("generate",), _LAST_STEP),
    "grounding-dino/GroundingDinoModel": (("forward",), _ONE_PLACE),
    "grounding-dino/GroundingDinoForObjectDetection": (("forward",), _ONE_PLACE),
    "mamba2/Mamba2Model": (("forward",), _GROUPS),
    "mamba2/Mamba2ForCausalLM": (("forward", "loss", "generate"), _GROUPS),
    "rwkv/RwkvForCausalLM": (("generate",), _ROWS),
}


@pytest.mark.parametrize(
    ("pack", "name"), CASES, ids=[f"{p.name.removesuffix('.tar.xz')}/{name}" for p, name in CASES]
)
def test_golden(pack: Path, name: str) -> None:
    golden = family(pack)[name]
    faults = parity.check(golden, phyla)
    if golden.label in DEPARTURES:
        aspects, reason = DEPARTURES[golden.label]
        assert faults, f"holds by now, although {reason}"
        faults = [fault for fault in faults if not fault.startswith(aspects)]
    assert not faults, "\n" + "\n".join(faults)


FOUNDATION = """
llama mistral mixtral qwen2 gemma2 phi3 gpt2 gpt_neox falcon bloom opt mamba bert roberta distilbert t5 bart
vit clip clip_text_model clip_vision_model
"""


def test_packs_hold_the_families_of_the_foundation() -> None:
    assert {pack.name.removesuffix(".tar.xz") for pack in PACKS} >= set(FOUNDATION.split())
