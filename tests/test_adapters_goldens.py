"""Files of public adapter libraries load, compute what they computed there, and are saved as they were."""

from pathlib import Path

import pytest

import phyla
from phyla.testing.adapters import check, read_case, read_names, unpacked

PACKS = sorted((Path(__file__).parent / "goldens" / "adapters").glob("*.tar.xz"))
CASES = [(pack, name) for pack in PACKS for name in read_names(pack)]
# What phyla does otherwise on purpose, and why.
DEPARTURES = dict.fromkeys(
    ("deberta/prompt_tuning", "deberta-v2/prompt_tuning"),
    "the recorded prompts see a row's padding, so that its result changes with the rows beside it",
)


@pytest.mark.filterwarnings("ignore:the adapter file has no tensor")
@pytest.mark.parametrize(
    ("pack", "name"), CASES, ids=[f"{p.name.removesuffix('.tar.xz')}/{n}" for p, n in CASES]
)
def test_case_holds(pack: Path, name: str) -> None:
    faults = check(read_case(unpacked(pack) / name), phyla)
    if f"{pack.name.removesuffix('.tar.xz')}/{name}" in DEPARTURES:
        assert faults, "it holds: take it off DEPARTURES"
    else:
        assert faults == []


def test_the_packs_stay_small() -> None:
    assert sum(pack.stat().st_size for pack in PACKS) < 8_000_000
