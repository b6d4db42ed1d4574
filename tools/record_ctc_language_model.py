"""Record what the reference decodes with a language model, for tests/test_ctc_language_model.py.

    PYTHONPATH=tests REFERENCE_PYTHON tools/record_ctc_language_model.py

The interpreter has Transformers 4.50, pyctcdecode and kenlm, and this package for the test's inputs.
"""

import json
import tempfile
from pathlib import Path

from test_ctc_language_model import batch, logits, write
from transformers import Wav2Vec2ProcessorWithLM

TARGET = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "ctc_language_model.json"
CALLS = [
    {}, {"n_best": 3}, {"output_word_offsets": True}, {"output_word_offsets": True, "n_best": 2},
    {"beam_width": 4}, {"alpha": 2.0, "beta": 0.1}, {"hotwords": ["RAT"], "hotword_weight": 20.0},
    {"unk_score_offset": -2.0, "lm_score_boundary": False}, {"beam_prune_logp": -3.0, "token_min_logp": -2.0},
]  # fmt: skip
LOADS = [{"alpha": 1.5, "beta": 0.2, "unk_score_offset": -5.0, "score_boundary": False}]


def plain(output) -> dict:
    return json.loads(json.dumps(dict(output), default=float))


if __name__ == "__main__":
    cases = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "made"
        write(folder)
        for load, call in [*(({}, call) for call in CALLS), *((load, {}) for load in LOADS)]:
            processor = Wav2Vec2ProcessorWithLM.from_pretrained(str(folder), **load)
            one, many = processor.decode(logits(), **call), processor.batch_decode(batch(), None, 1, **call)
            cases.append({"load": load, "call": call, "one": plain(one), "batch": plain(many)})
    TARGET.write_text(json.dumps(cases, indent=1) + "\n")
