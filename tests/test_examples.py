"""The examples do on real weights what they say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_adapters_come_near_full_training() -> None:
    classify = example("classify")
    full = classify.measure("full")
    assert full.accuracy > 0.75 and full.share == 1
    for way in ("seq_bn", "lora", "prefix", "reft"):
        found = classify.measure(way)
        assert found.accuracy >= full.accuracy - 0.07, (way, found)
        assert 0 < found.share < 0.03, (way, found)


@pytest.mark.slow
def test_lora_teaches_a_format() -> None:
    cards = example("format")
    before, after, share = cards.learn()
    assert cards.right(before) == 0
    assert all(cards.CARD.fullmatch(text) for _, text in after), after
    assert cards.right(after) >= 3, after
    assert share < 0.01
