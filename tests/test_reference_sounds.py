"""Log mels of recordings equal to the bit to what the reference computes on the same machine.

Run it with PHYLA_REFERENCE=/path/to/python and `-m reference`, as test_reference.py. The recorded values
came from another processor, whose float32 FFT rounds otherwise (`ROUNDED` in test_audio_features.py).
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from processor_goldens import goldens, perform, write_files

NAME = "WhisperFeatureExtractor"
SCRIPT = """
import json, sys, numpy, torch, transformers
from processor_inputs import resolve
facts = json.load(open(sys.argv[1] + "/facts.json"))
torch.set_num_threads(1)
made = transformers.WhisperFeatureExtractor.from_pretrained(sys.argv[1])
out = made(*resolve(facts["args"]), **resolve(facts.get("kwargs", {})), **resolve(facts.get("call", {})))
numpy.save(sys.argv[1] + "/out.npy", numpy.asarray(out["input_features"]))
"""
CASES = {g.name: g for g in goldens("audio")[NAME] if not g.facts.get("raises") and g.kept}


@pytest.mark.reference
@pytest.mark.parametrize("name", sorted(CASES))
def test_log_mels_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    golden = CASES[name]
    write_files(golden, tmp_path)
    (tmp_path / "facts.json").write_text(json.dumps(golden.facts))
    done = subprocess.run(
        [os.environ["PHYLA_REFERENCE"], "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    _, ours = perform(golden, tmp_path)
    np.testing.assert_array_equal(np.asarray(ours["input_features"]), np.load(tmp_path / "out.npy"))
