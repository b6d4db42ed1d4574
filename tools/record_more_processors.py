"""Record processors that the shared goldens lack, for tools/pack_processor_goldens.py.

usage: PYTHONPATH=tests:. REFERENCE_PYTHON tools/record_more_processors.py FOLDER
It needs an interpreter with Transformers 4.50 and scipy, and writes FOLDER/KIND/CLASS/CASE.json. The beats
are given: the reference gets them in place of those that essentia finds, phyla as `beat_times`. To pack, put
the folders beside those of the shared goldens.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import scipy.interpolate
from processor_inputs import resolve
from record_fast_processors import facts_of, write_golden
from transformers import Wav2Vec2FeatureExtractor, processing_utils
from transformers.models.deprecated.speech_to_text_2 import (
    Speech2Text2Processor,
    Speech2Text2Tokenizer,
)
from transformers.models.pop2piano import (
    feature_extraction_pop2piano,
    processing_pop2piano,
    tokenization_pop2piano,
)

PACKED = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "tokenizers"
Extractor = feature_extraction_pop2piano.Pop2PianoFeatureExtractor
BEATS = [0.31, 0.82, 1.31, 1.83, 2.3, 2.84, 3.3, 3.79, 4.32, 4.8]
OTHER = [0.2, 0.61, 1.0, 1.43, 1.8]
SMALL = {"feature_size": 24, "window_size": 1024, "hop_length": 512, "num_bars": 1}
NOTES = {"rule": "numpy", "args": [[[0, 4, 60, 77], [4, 8, 64, 77], [8, 9, 67, 77]], "float32"]}


def sound(seconds: float, kind: str = "chord", seed: int = 0) -> dict:
    return {"rule": "audio", "args": [kind, int(seconds * 22050), 22050, seed]}


CALLS = {
    "one": (SMALL, [sound(6)], {"sampling_rate": 22050, "beat_times": BEATS}),
    "masked": (
        SMALL,
        [sound(6)],
        {"sampling_rate": 22050, "beat_times": BEATS, "return_attention_mask": True},
    ),
    "batch": (
        {**SMALL, "num_bars": 2},
        [[sound(6), sound(3, "speech", 1)]],
        {"sampling_rate": [22050, 22050], "beat_times": [BEATS, OTHER], "return_attention_mask": True},
    ),
    "steps": (SMALL, [sound(6, "noise")], {"sampling_rate": 22050, "beat_times": BEATS, "steps_per_beat": 4}),
    "public": ({}, [sound(4)], {"sampling_rate": 22050, "beat_times": OTHER, "return_tensors": "pt"}),
}


def with_beats(call: dict) -> dict:
    """The call without its beats, which the extractor is made to find."""
    import numpy

    rest = dict(call)
    given = rest.pop("beat_times")
    rows = iter(given if isinstance(given[0], list) else [given])
    Extractor.extract_rhythm = lambda self, audio: (120.0, numpy.array(next(rows)), 1.0, [], [])
    return rest


def files_of(part) -> dict:
    """The text files that saving writes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        return {p.name: p.read_text(encoding="utf-8") for p in sorted(Path(folder).iterdir())}


def vocabulary(name: str, folder: Path) -> Path:
    """The files of a packed tokenizer."""
    with tarfile.open(PACKED / f"{name}.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder / name / "saved"


def main(folder: Path) -> None:
    feature_extraction_pop2piano.requires_backends = lambda *_: None
    feature_extraction_pop2piano.scipy = scipy
    # The reference hides both behind packages that are not used here.
    processing_utils.transformers_module.Pop2PianoFeatureExtractor = Extractor
    processing_utils.transformers_module.Pop2PianoTokenizer = tokenization_pop2piano.Pop2PianoTokenizer
    for case, (init, args, call) in CALLS.items():
        made = Extractor(**init)
        result = made(*resolve(args), **with_beats(call))
        golden = {
            "kind": "audio", "class": "Pop2PianoFeatureExtractor",
            "config": json.loads(made.to_json_string()), "init": init, "method": "__call__", "args": args,
            "call": call,
        }  # fmt: skip
        write_golden(folder, golden, case, *facts_of(result))
    with tempfile.TemporaryDirectory() as place:
        tokenizer = tokenization_pop2piano.Pop2PianoTokenizer.from_pretrained(
            vocabulary("Pop2PianoTokenizer", Path(place))
        )
        piano = processing_pop2piano.Pop2PianoProcessor(Extractor(**SMALL), tokenizer)
        args, call = [sound(6), 22050], {"beat_times": BEATS}
        for case, more, given in (
            ("sound", {}, args),
            ("notes", {"notes": NOTES, "padding": "max_length", "max_length": 24}, []),
            ("both", {"notes": NOTES}, args),
        ):
            result = piano(*resolve(given), **resolve(more), **(with_beats(call) if given else {}))
            golden = {
                "kind": "processor", "class": "Pop2PianoProcessor", "files": files_of(piano),
                "method": "__call__", "args": given, "kwargs": more, "call": call if given else {},
            }  # fmt: skip
            write_golden(folder, golden, case, *facts_of(result))
        speech = Speech2Text2Processor(
            Wav2Vec2FeatureExtractor(return_attention_mask=True),
            Speech2Text2Tokenizer.from_pretrained(vocabulary("Speech2Text2Tokenizer", Path(place))),
        )
        heard = {"rule": "audio", "args": ["speech", 4000, 16000, 0]}
        for case, given, more in (
            ("sound", [heard], {"sampling_rate": 16000}),
            ("text", [], {"text": ["hello world", "a"], "padding": True}),
            ("both", [heard], {"sampling_rate": 16000, "text": "hello world"}),
        ):
            golden = {
                "kind": "processor", "class": "Speech2Text2Processor", "files": files_of(speech),
                "method": "__call__", "args": given, "kwargs": {}, "call": more,
            }  # fmt: skip
            if case == "both":
                more = {"text": more["text"], "sampling_rate": 16000}
            write_golden(folder, golden, case, *facts_of(speech(*resolve(given), **more)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
