"""CTC decoding with an n-gram language model: as the reference where the extra `ctc` is there, else refused.

The scores and texts were computed by the reference (Transformers 4.50.3, pyctcdecode 0.5.0, kenlm 0.3.0) from
the same letters, word pairs and logits: tools/record_ctc_language_model.py.
"""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

import phyla
from phyla.errors import ArgumentError, MissingExtraError, MissingFileError, UnknownArgumentError

HERE = all(importlib.util.find_spec(name) for name in ("pyctcdecode", "kenlm"))
WORDS = ["THE", "CAT", "SAT", "ON", "A", "MAT", "HAT", "RAT", "IT'S", "AT"]
PAIRS = [
    "<s> THE",
    "THE CAT",
    "CAT SAT",
    "SAT ON",
    "ON THE",
    "THE MAT",
    "MAT </s>",
    "ON A",
    "A HAT",
    "HAT </s>",
]
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRCMPX'"]
SAID = "THE CXT SAT ON A HXT"


def arpa() -> str:
    """A model of word pairs, each pair ten times as likely as its words alone."""
    names = ["<unk>", "<s>", "</s>", *WORDS]
    ones = [f"{-1.2 - 0.1 * (i % 4):.2f}\t{name}\t-0.30" for i, name in enumerate(names)]
    twos = [f"-0.20\t{pair}" for pair in sorted(PAIRS)]
    counts = [f"ngram 1={len(ones)}", f"ngram 2={len(twos)}"]
    return "\n".join(
        ["\\data\\", *counts, "", "\\1-grams:", *ones, "", "\\2-grams:", *twos, "", "\\end\\", ""]
    )


def write(folder: Path) -> None:
    """The files of a processor with a decoder, as the reference writes them."""
    (folder / "language_model").mkdir(parents=True)
    (folder / "language_model" / "lm.arpa").write_text(arpa())
    (folder / "language_model" / "unigrams.txt").write_text("\n".join(WORDS))
    weights = {"alpha": 0.6, "beta": 1.2, "unk_score_offset": -10.0, "score_boundary": True}
    (folder / "language_model" / "attrs.json").write_text(json.dumps(weights))
    labels = ["", "<s>", "</s>", "⁇", " ", *LETTERS[5:]]
    (folder / "alphabet.json").write_text(json.dumps({"labels": labels, "is_bpe": False}))
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Wav2Vec2CTCTokenizer"}')
    config = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "processor_class": "Wav2Vec2ProcessorWithLM",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def logits(text: str = SAID) -> np.ndarray:
    """Two frames and a blank for each letter, with other letters nearly as likely."""
    frames = [i for c in text for i in (LETTERS.index("|" if c == " " else c),) * 2 + (0,)]
    noise = np.sin(np.arange(len(frames) * len(LETTERS)) * 1.7).reshape(len(frames), -1)
    noise[np.arange(len(frames)), frames] += 3.0
    return noise.astype(np.float32)


def cases() -> list[dict]:
    return json.loads((Path(__file__).parent / "goldens" / "ctc_language_model.json").read_text())


def near(found, wanted) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(near(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(near, found, wanted))
    if isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=1e-4, abs_tol=1e-4)
    return found == wanted


def batch() -> np.ndarray:
    rows = [logits(), logits("A RXT")]
    filled = np.full((2, len(rows[0]), len(LETTERS)), -100.0, np.float32)
    for i, row in enumerate(rows):
        filled[i, : len(row)] = row
    return filled


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", cases(), ids=lambda case: json.dumps({**case["load"], **case["call"]}))
def test_decodes_as_the_reference(case: dict, tmp_path: Path) -> None:
    write(tmp_path)
    if not HERE:
        with pytest.raises(MissingExtraError, match=r"pyctcdecode: pip install \"phyla\[ctc\]\""):
            phyla.Wav2Vec2ProcessorWithLM.from_pretrained(tmp_path, **case["load"])
        return
    processor = phyla.Wav2Vec2ProcessorWithLM.from_pretrained(tmp_path, **case["load"])
    assert near(dict(processor.decode(logits(), **case["call"])), case["one"])
    assert near(dict(processor.batch_decode(batch(), **case["call"])), case["batch"])


@pytest.mark.filterwarnings("ignore")
def test_files_go_round_and_faults_are_told(tmp_path: Path) -> None:
    write(tmp_path / "read")
    if not HERE:
        with pytest.raises(MissingExtraError, match=r"decoding with a language model needs .*phyla\[ctc\]"):
            phyla.AutoProcessor.from_pretrained(tmp_path / "read")
        return
    processor = phyla.AutoProcessor.from_pretrained(tmp_path / "read")
    assert type(processor) is phyla.Wav2Vec2ProcessorWithLM
    for _ in range(2):  # the second save finds the files of the first
        processor.save_pretrained(tmp_path / "saved")
    again = phyla.AutoProcessor.from_pretrained(tmp_path / "saved")
    assert again.decode(logits()).text == processor.decode(logits(), beam_width=None).text
    forked = processor.batch_decode(batch(), num_processes=1)
    assert forked.text == processor.batch_decode(batch()).text
    assert set(processor(np.zeros(400, np.float32), sampling_rate=16000, text="A CAT")) >= {"labels"}
    with pytest.raises(UnknownArgumentError, match="beam_width"):
        processor.decode(logits(), beam_with=3)
    with pytest.raises(ArgumentError, match="must be a BeamSearchDecoderCTC"):
        phyla.Wav2Vec2ProcessorWithLM(processor.feature_extractor, processor.tokenizer, "decoder")
    alphabet = tmp_path / "saved" / "alphabet.json"
    alphabet.write_text(alphabet.read_text().replace('"X", ', ""))
    with pytest.raises(ArgumentError, match=r"lacks tokens of the tokenizer: \['X'\]"):
        phyla.AutoProcessor.from_pretrained(tmp_path / "saved")
    alphabet.unlink()
    with pytest.raises(MissingFileError, match=r"must have alphabet\.json"):
        phyla.AutoProcessor.from_pretrained(tmp_path / "saved")
