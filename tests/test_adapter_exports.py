"""What phyla saves of adapters is what public libraries have loaded, and gives what they computed."""

import functools
import json
import lzma
import tempfile
from pathlib import Path
from typing import Any

import adapter_exports
import pytest
import torch
from adapter_exports import Export

from phyla.testing.adapters import ABSOLUTE, RELATIVE


@functools.cache
def record() -> dict[str, Any]:
    """What tools/record_adapter_exports.py has written."""
    return json.loads(lzma.decompress(adapter_exports.RECORD.read_bytes()))


CASES = {case.id: case for case in adapter_exports.exports()}
GROUPS = sorted({tuple(name.split(".")[0].split("/")) for name in record()["cases"]})


@functools.cache
def bases() -> tempfile.TemporaryDirectory:
    """Where the checkpoints lie that the cases start from."""
    return tempfile.TemporaryDirectory()


def fault(case: Export, known: dict[str, Any], folder: Path) -> str:
    """What of a case departs from the record."""
    model = adapter_exports.build(case, Path(bases().name))
    adapter_exports.save(case, model, folder)
    found = adapter_exports.digests(folder)
    wrong = [name for name in found if found[name] != known[name]]
    if wrong:
        return f"{case.id} is saved with other {' and '.join(wrong)}"
    out = adapter_exports.few(adapter_exports.output(model, adapter_exports.inputs_of(case)))
    wanted = torch.tensor(known["out"])
    off = (out - wanted).abs()
    if bool((off <= RELATIVE * wanted.abs() + ABSOLUTE * known["largest"]).all()):
        return ""
    return f"{case.id} departs by {float(off.max()):.3g}"


@pytest.mark.parametrize("group", GROUPS, ids="/".join)
def test_saved_as_the_public_library_has_loaded_it(group: tuple[str, ...], tmp_path: Path) -> None:
    names = [n for n in record()["cases"] if tuple(n.split(".")[0].split("/")) == group]
    found = (
        fault(CASES[name], record()["cases"][name], tmp_path / str(i)) for i, name in enumerate(sorted(names))
    )
    assert [text for text in found if text] == []


def test_the_record_has_every_case() -> None:
    known = [*record()["cases"], *record()["refused"], *record()["without_place"]]
    assert sorted(known) == sorted(CASES)
    assert adapter_exports.RECORD.stat().st_size < 1_500_000
