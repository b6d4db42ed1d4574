"""The benchmarks of generation: their goals from made-up results, and a dry run of the one for GPUs."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def generate(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import generate

    return generate


def rates(**peers):
    return {name: {"runs": [], "medians": {"decode.1": rate}} for name, rate in peers.items()}


def test_goals_of_generation(generate):
    made = {
        "speed": {"small": {
            "float32": rates(phyla=50.0, **{"transformers-default": 20.0, "transformers-static": 26.0}),
            "int4": rates(phyla=90.0, **{"llama.cpp": 100.0}),
        }},
        "constrained": {"smollm2-135m": {"float32": {"phyla": {"medians": {"ratio": 1.04}}}}},
        "copy": {"smollm2-135m": {"float32": {"phyla": {"medians": {"ratio": 1.4}}}}},
        "throughput": {"medians": {"phyla": {"new_per_second": 90.0},
                                   "transformers-default": {"new_per_second": 30.0, "ratio": 3.0}}},
    }  # fmt: skip
    found = {what: (round(ratio, 3), holds) for what, ratio, _, holds in generate.goals(made)}
    assert found == {
        "small float32, one text: times Transformers' best mode": (1.923, False),
        "small int4, one text: times llama.cpp": (0.9, False),
        "mixed requests, times transformers-default": (3.0, True),
        "by grammar, times free, float32": (1.04, True),
        "n-gram speculation, times plain, float32": (1.4, False),
    }
    text = generate.shown(made)
    assert "transformers-static" in text
    assert text.count("NOT reached") == 3


def test_ratios_of_throughput_are_of_the_same_piece(generate):
    pieces = {
        "phyla": [{"new_per_second": 10.0}, {"new_per_second": 40.0}, {"new_per_second": 30.0}],
        "transformers-default": [{"new_per_second": 5.0}, {}, {"new_per_second": 10.0}],
    }
    found = generate.generate_throughput.summed(pieces)
    assert found["phyla"] == {"new_per_second": 30.0}
    assert found["transformers-default"] == {"new_per_second": 5.0, "ratio": 2.5}


def test_the_benchmark_for_gpus_runs_on_a_cpu():
    asked = ["--device", "cpu", "--sizes", "tiny", "--batches", "1", "2", "--new", "12", "--prompt", "8",
             "--repeats", "1", "--no-save", "--peers", "phyla", "phyla-eager"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(FOLDER / "gpu_generate.py"), *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if " batch " in line]
    assert [(words[0], words[2], words[-1]) for words in lines[:2]] == [
        ("phyla", "1:", "recorded"), ("phyla", "2:", "recorded"),
    ]  # fmt: skip
    assert [words[0] for words in lines[2:]] == ["phyla-eager"] * 2
    assert "share of what memory allows" in done.stdout
