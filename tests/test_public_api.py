"""The public names stand in a file: a change of them is a change that a reviewer sees."""

import runpy
from pathlib import Path

import phyla

TOOL = Path(__file__).resolve().parent.parent / "tools" / "public_api.py"


def test_public_names_are_those_of_the_snapshot() -> None:
    tool = runpy.run_path(str(TOOL))
    found, wanted = list(tool["lines"]()), tool["SNAPSHOT"].read_text().splitlines()
    gone = sorted(set(wanted) - set(found))
    new = sorted(set(found) - set(wanted))
    assert found == wanted, f"gone: {gone[:20]}\nnew: {new[:20]}\n`make api` accepts them"


def test_every_public_name_can_be_had() -> None:
    for name in runpy.run_path(str(TOOL))["NAMES"]:
        assert getattr(phyla, name) is not None
        assert name in dir(phyla)


def test_star_import_gives_every_public_name():
    """Old notebooks say `from transformers import *`; `__all__` is the whole lazy table."""
    names: dict[str, object] = {}
    exec("from phyla import *", names)  # noqa: S102 (a star import stands at the top of a module only)
    assert set(phyla.__all__) <= set(names)
    assert names["BertModel"] is phyla.BertModel and names["GenerationConfig"] is phyla.GenerationConfig
