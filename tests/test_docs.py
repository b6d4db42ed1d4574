"""Pages that come from the code are as the code says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("tables", ROOT / "tools" / "tables.py")
assert SPEC is not None
assert SPEC.loader is not None
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)


@pytest.mark.parametrize("name", tables.PAGES)
def test_pages_are_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == tables.PAGES[name](), "run `make docs`"
