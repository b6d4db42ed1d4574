"""Drawing futures of time series: at one seed the same draws as the reference, whatever the distribution."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import phyla
from phyla.errors import ArgumentError
from phyla.testing.goldens import read_pack
from phyla.testing.seeded import seeded_input, seeded_weight

GOLDENS = Path(__file__).with_name("goldens")


def model_of(family: str, golden: str, name: str, changes: dict[str, Any]) -> phyla.PreTrainedModel:
    """A class on a golden's configuration with changes, with seeded weights."""
    facts = next(g.facts for g in read_pack(GOLDENS / f"{family}.tar.xz") if g.name == golden)
    cls = getattr(phyla, name)
    with tempfile.TemporaryDirectory() as folder:
        cls(cls.config_class.from_dict({**facts["config"], **changes})).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        weights = {
            n: torch.from_numpy(seeded_weight(n, list(t.shape))).reshape(t.shape)
            if t.is_floating_point()
            else t
            for n, t in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})
        assert json.loads((Path(folder) / "config.json").read_text())["num_parallel_samples"]
        return cls.from_pretrained(folder)


def drawn(model: phyla.PreTrainedModel, **inputs: torch.Tensor) -> tuple[list[int], list[float], float]:
    torch.manual_seed(7)
    found = model.generate(**inputs).sequences
    return list(found.shape), found.flatten()[:6].tolist(), float(found.double().abs().sum())


FORECASTS = [
    ("student_t", [1.0374, 38.6199, 0.5646, -8.7152, 2.0005, 0.5464], 79.6153),
    ("normal", [-0.7936, -0.3182, -0.5363, 4.3514, 0.7606, 0.1360], 25.0489),
    ("negative_binomial", [1.0, 0.0, 0.0, 13.0, 1.0, 0.0], 37.0),
]


@pytest.mark.parametrize(("distribution", "first", "total"), FORECASTS)
def test_a_decoder_draws_value_after_value(distribution: str, first: list[float], total: float) -> None:
    golden = next(iter(read_pack(GOLDENS / "time_series_transformer.tar.xz")))
    changes = {"num_parallel_samples": 3, "distribution_output": distribution}
    name = "TimeSeriesTransformerForPrediction"
    model = model_of("time_series_transformer", golden.name, name, changes)
    inputs = {n: v for n, v in golden.inputs().items() if n != "future_values"}
    shape, values, size = drawn(model, **inputs)
    assert shape == [2, 3, 4]
    assert values == pytest.approx(first, abs=1e-3)
    assert size == pytest.approx(total, abs=1e-2)


def test_a_decoder_draws_several_channels() -> None:
    golden = next(iter(read_pack(GOLDENS / "time_series_transformer.tar.xz")))
    changes = {"num_parallel_samples": 2, "input_size": 3}
    model = model_of("time_series_transformer", golden.name, "TimeSeriesTransformerForPrediction", changes)
    inputs = {n: v for n, v in golden.inputs().items() if "time_features" in n}
    past = torch.from_numpy(seeded_input("past_values", (2, 10, 3)))
    shape, values, size = drawn(model, past_values=past, **inputs)
    assert shape == [2, 2, 4, 3]
    assert values == pytest.approx([0.1962, 0.7729, 0.7982, 0.2118, 0.0714, 0.4375], abs=1e-3)
    assert size == pytest.approx(30.3661, abs=1e-2)


PATCHED = [
    ("student_t", "std", [0.4764, 0.0075, 0.2306, 0.1642, 0.6767, 0.1943], 10.2609),
    ("normal", "std", [0.8115, 0.1365, 0.1256, 0.6448, 0.8659, -0.015], 14.0708),
    ("negative_binomial", "mean", [0.0, 0.0, 0.0, 1.0, 0.0, 1.0], 4.0),
]


@pytest.mark.parametrize(("distribution", "scaling", "first", "total"), PATCHED)
def test_patches_draw_whole_futures(
    distribution: str, scaling: str, first: list[float], total: float
) -> None:
    changes = {
        "num_parallel_samples": 3, "loss": "nll", "distribution_output": distribution, "scaling": scaling
    }  # fmt: skip
    model = model_of("patchtst", "PatchTSTForPrediction", "PatchTSTForPrediction", changes)
    past = torch.from_numpy(seeded_input("past_values", (2, 32, 1)))
    shape, values, size = drawn(model, past_values=past)
    assert shape == [2, 3, 4, 1]
    assert values == pytest.approx(first, abs=1e-3)
    assert size == pytest.approx(total, abs=1e-2)


def test_patches_draw_numbers() -> None:
    changes = {"num_parallel_samples": 3, "loss": "nll", "num_targets": 2}
    model = model_of("patchtst", "PatchTSTForRegression", "PatchTSTForRegression", changes)
    shape, values, size = drawn(model, past_values=torch.from_numpy(seeded_input("past_values", (2, 32, 1))))
    assert shape == [2, 3, 2]
    assert values == pytest.approx([-0.276, -1.844, -0.0861, -3.1598, -0.8621, -2.6615], abs=1e-3)
    assert size == pytest.approx(19.7105, abs=1e-2)


def test_what_cannot_be_drawn_says_so() -> None:
    model = model_of("patchtst", "PatchTSTForRegression", "PatchTSTForRegression", {})
    with pytest.raises(ArgumentError, match='loss="nll"'):
        model.generate(past_values=torch.zeros(2, 32, 1))
    with pytest.raises(ArgumentError, match=r"\(batch, 32, 1\)"):
        model(past_values=torch.zeros(2, 5, 1))
