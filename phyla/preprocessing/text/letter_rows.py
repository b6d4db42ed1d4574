"""Rows of the table of tokenizer classes whose tokens are bytes, characters or phonemes."""

from .layout import Layout
from .table import Row

_VOCAB = {"vocab_file": "vocab.json"}
_BASICS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_ENDED = Layout("A eos", "A eos B eos", "zeros")
_TYPED = ("input_ids", "token_type_ids", "attention_mask")
_SENTINELS = {"extra_ids": 125, "additional_special_tokens": None}
_AROUND = {"lstrip": True, "rstrip": True}
_PRIVATE = {
    0xE000: "[CLS]",
    0xE001: "[SEP]",
    0xE002: "[BOS]",
    0xE003: "[MASK]",
    0: "[PAD]",
    0xE004: "[RESERVED]",
}

LETTER_ROWS: dict[str, Row] = {
    "ByT5": Row(
        "sentinel_bytes",
        {},
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        _ENDED,
        _SENTINELS,
        flags={"*": {"normalized": True, "special": True, **_AROUND}},
        slow_class={"front": ("pad_token", "eos_token", "unk_token")},
    ),
    "MyT5": Row(
        "rewritten_bytes",
        {"vocab_file": "byte_maps.json"},
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        _ENDED,
        _SENTINELS,
        flags={"*": {"normalized": True, "special": True, **_AROUND}},
        slow_class={"front": ("pad_token", "eos_token", "unk_token")},
    ),
    "Perceiver": Row(
        "bytes",
        {},
        {
            "pad_token": "[PAD]",
            "bos_token": "[BOS]",
            "eos_token": "[EOS]",
            "mask_token": "[MASK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
        },
        Layout("cls A sep", "cls A sep B sep"),
        {"model_max_length": 2048},
        flags={"*": {"special": True}},
        slow_class={"front": ("pad_token", "bos_token", "eos_token", "mask_token", "cls_token", "sep_token")},
    ),
    "Canine": Row(
        "code_points",
        {},
        {
            "bos_token": chr(0xE000),
            "eos_token": chr(0xE001),
            "sep_token": chr(0xE001),
            "cls_token": chr(0xE000),
            "pad_token": chr(0),
            "mask_token": chr(0xE003),
        },
        Layout("cls A sep", "cls A sep B:1 sep:1", "layout"),
        {"add_prefix_space": False, "model_max_length": 2048},
        flags={"*": {}, "mask_token": {"lstrip": True}},
        inputs=_TYPED,
        slow_class={"names": _PRIVATE},
    ),
    "Mgpstr": Row(
        "letters",
        _VOCAB,
        {"unk_token": "[GO]", "bos_token": "[GO]", "eos_token": "[s]", "pad_token": "[GO]"},
        inputs=_TYPED,
    ),
    "Vits": Row(
        "speech_letters",
        _VOCAB,
        {"pad_token": "<pad>", "unk_token": "<unk>"},
        settings={
            "language": None,
            "add_blank": True,
            "normalize": True,
            "phonemize": True,
            "is_uroman": False,
        },
    ),
    "Esm": Row(
        "residues",
        {"vocab_file": "vocab.txt"},
        {
            "unk_token": "<unk>",
            "cls_token": "<cls>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
            "eos_token": "<eos>",
        },
        Layout("cls A eos", "cls A eos B eos"),
    ),
    "Wav2Vec2CTC": Row(
        "ctc_letters",
        _VOCAB,
        _BASICS,
        settings={
            "word_delimiter_token": "|",
            "replace_word_delimiter_char": " ",
            "do_lower_case": False,
            "target_lang": None,
        },
    ),
    "Wav2Vec2PhonemeCTC": Row(
        "ctc_phonemes",
        _VOCAB,
        _BASICS,
        settings={
            "word_delimiter_token": None,
            "phone_delimiter_token": " ",
            "do_phonemize": True,
            "phonemizer_lang": "en-us",
            "phonemizer_backend": "espeak",
        },
    ),
    "Wav2Vec2": Row(
        "waves",
        _VOCAB,
        _BASICS,
        settings={
            "word_delimiter_token": "|",
            "do_lower_case": False,
            "do_normalize": False,
            "return_attention_mask": False,
        },
        inputs=("input_values", "attention_mask"),
    ),
}
