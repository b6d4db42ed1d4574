"""More rows of the table of tokenizer classes (see `table.Row` and `rows.ROWS`)."""

from .language_codes import M2M_100, MUSTC, WMT_21
from .layout import Layout
from .table import Row

_SPM = {"sp_model_kwargs": None, "clean_up_tokenization_spaces": False}
_EXACT = {"normalized": False, "special": True}
_BASICS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_ENDED = Layout("A eos", "A eos B eos", "zeros")
_END_ONCE = Layout("A eos", "A B eos")
_BPE = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
_COUNTED = {"vocab_file": "vocab.txt", "merges_file": "bpe.codes"}
_TYPED = ("input_ids", "token_type_ids", "attention_mask")
_ROBERTA = {**_BASICS, "sep_token": "</s>", "cls_token": "<s>", "mask_token": "<mask>"}
_ROBERTA_LAYOUT = Layout("cls A sep", "cls A sep sep B sep", "zeros")
_FRAMED = Layout("bos A sep", "bos A sep B:1 sep:1", "layout")
_END = "<|endoftext|>"
_SPECIALS = [f"<special{i}>" for i in range(10)]
_CROSS_SPECIAL = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "</s>",
    "mask_token": "<special1>",
}
_CROSS = {"additional_special_tokens": _SPECIALS, "lang2id": None, "id2lang": None}

MORE_ROWS: dict[str, Row] = {
    "BertGeneration": Row(
        "own_pieces", {"vocab_file": "spiece.model"}, {**_BASICS, "sep_token": "<::::>"}, settings=_SPM
    ),
    "GPTSw3": Row(
        "swept_pieces",
        {"vocab_file": "spiece.model"},
        {"eos_token": "<|endoftext|>", "unk_token": "<unk>", "pad_token": None, "bos_token": None},
        settings={**_SPM, "do_lower_case": False, "remove_space": False, "keep_accents": False},
        slow_class={"bare_names": ("gpt-sw3-7b",)},
    ),
    "Pegasus": Row(
        "offset_pieces",
        {"vocab_file": "spiece.model"},
        {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask_2>"},
        _END_ONCE,
        {**_SPM, "mask_token_sent": "<mask_1>", "additional_special_tokens": None, "offset": 103},
    ),
    "Siglip": Row(
        "canonical_pieces",
        {"vocab_file": "spiece.model"},
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        _ENDED,
        {**_SPM, "additional_special_tokens": None, "model_max_length": 64, "do_lower_case": True},
        flags={"*": {"lstrip": True, "rstrip": True, **_EXACT}},
    ),
    "SpeechT5": Row(
        "spoken_pieces",
        {"vocab_file": "spm_char.model"},
        _BASICS,
        _END_ONCE,
        {**_SPM, "normalize": False},
    ),
    "M2M100": Row(
        "coded_pieces",
        {"vocab_file": "vocab.json", "spm_file": "sentencepiece.bpe.model"},
        {**_BASICS, "sep_token": "</s>"},
        settings={
            **_SPM,
            "src_lang": None,
            "tgt_lang": None,
            "language_codes": "m2m100",
            "num_madeup_words": 8,
        },
        slow_class={"code_lists": {"m2m100": M2M_100, "wmt21": WMT_21}, "default_code": "en"},
    ),
    "Speech2Text": Row(
        "upper_pieces",
        {"vocab_file": "vocab.json", "spm_file": "sentencepiece.bpe.model"},
        _BASICS,
        settings={
            **_SPM,
            "do_upper_case": False,
            "do_lower_case": False,
            "tgt_lang": None,
            "lang_codes": None,
            "additional_special_tokens": None,
        },
        slow_class={"lang_lists": {"mustc": MUSTC}},
    ),
    "Marian": Row(
        "two_sided_pieces",
        {
            "source_spm": "source.spm",
            "target_spm": "target.spm",
            "vocab": "vocab.json",
            "target_vocab_file": "target_vocab.json",
        },
        {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"},
        _END_ONCE,
        {
            **_SPM,
            "source_lang": None,
            "target_lang": None,
            "model_max_length": 512,
            "separate_vocabs": False,
        },
    ),
    "XLMProphetNet": Row(
        "unused_pieces",
        {"vocab_file": "prophetnet.tokenizer"},
        {
            "bos_token": "[SEP]",
            "eos_token": "[SEP]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        Layout("A sep", "A sep B sep", "zeros"),
        _SPM,
        slow_class={
            "front": ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"[unused{i}]" for i in range(10))),
            "offset": 12,
        },
    ),
    "Bartpho": Row(
        "monolingual_pieces",
        {"vocab_file": "sentencepiece.bpe.model", "monolingual_vocab_file": "dict.txt"},
        _ROBERTA,
        _ROBERTA_LAYOUT,
        _SPM,
        flags={"mask_token": {"lstrip": True}},
    ),
    "PLBart": Row(
        "code_language_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        _ROBERTA,
        settings={
            **_SPM,
            "language_codes": "base",
            "src_lang": None,
            "tgt_lang": None,
            "additional_special_tokens": None,
            "clean_up_tokenization_spaces": True,
        },
        flags={"mask_token": {"lstrip": True}},
        slow_class={
            "code_lists": {
                "base": ["__java__", "__python__", "__en_XX__"],
                "multi": [
                    f"__{lang}__" for lang in ("java", "python", "en_XX", "javascript", "php", "ruby", "go")
                ],
            },
            "default_codes": {"multi": "__en_XX__"},
        },
    ),
    "SeamlessM4T": Row(
        "spoken_language_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        {**_BASICS, "sep_token": "</s>", "cls_token": "<s>"},
        settings={
            **_SPM,
            "src_lang": "eng",
            "tgt_lang": "fra",
            "additional_special_tokens": None,
        },
        python={"add_prefix_space": True},
    ),
    "CodeLlama": Row(
        "infill_pieces",
        {"vocab_file": "tokenizer.model"},
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        Layout("bos? A eos?", "bos? A eos? bos?:1 B:1 eos?:1", "layout"),
        {
            **_SPM,
            "prefix_token": "▁<PRE>",
            "middle_token": "▁<MID>",
            "suffix_token": "▁<SUF>",
            "eot_token": "▁<EOT>",
            "fill_token": "<FILL_ME>",
            "suffix_first": False,
            "add_bos_token": True,
            "add_eos_token": False,
            "additional_special_tokens": None,
            "use_default_system_prompt": False,
        },
        flags={"*": _EXACT},
        fast_class={
            "padding_side": "left",
            "layout": Layout("bos? A eos?", "bos? A eos? bos?:1 B:1 eos?:1", "plain"),
        },
    ),
    "ErnieM": Row(
        "cut_pieces",
        {"sentencepiece_model_ckpt": "sentencepiece.bpe.model", "vocab_file": "vocab.txt"},
        {
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        Layout("cls A sep", "cls A sep:1 sep:1 B:1 sep:1", "layout"),
        {"sp_model_kwargs": None, "do_lower_case": False, "encoding": "utf8"},
        inputs=("input_ids",),
    ),
    # words in pieces
    "OpenAIGPT": Row("cleaned_words", _BPE, {"unk_token": "<unk>"}),
    "Herbert": Row(
        "basic_words",
        _BPE,
        {
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
            "sep_token": "</s>",
        },
        Layout("cls A sep", "cls A sep B:1 sep:1", "layout"),
        inputs=_TYPED,
        python={"bos_token": "<s>", "do_lowercase_and_remove_accent": False, **_CROSS},
    ),
    "XLM": Row(
        "bare_words",
        _BPE,
        _CROSS_SPECIAL,
        _FRAMED,
        {**_CROSS, "do_lowercase_and_remove_accent": True},
        inputs=_TYPED,
    ),
    "Flaubert": Row(
        "composed_words", _BPE, _CROSS_SPECIAL, _FRAMED, {**_CROSS, "do_lowercase": False}, inputs=_TYPED
    ),
    "BioGpt": Row(
        "escaped_words",
        _BPE,
        {**_BASICS, "sep_token": "</s>"},
        Layout("sep A", "sep A sep:1 B:1", "layout"),
    ),
    "FSMT": Row(
        "translated_words",
        {"src_vocab_file": "vocab-src.json", "tgt_vocab_file": "vocab-tgt.json", "merges_file": "merges.txt"},
        {"unk_token": "<unk>", "bos_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"},
        Layout("A sep", "A sep B:1 sep:1", "layout"),
        {"langs": None, "do_lower_case": False},
    ),
    "CTRL": Row("continued_words", _BPE, {"unk_token": "<unk>"}, inputs=_TYPED),
    "Phobert": Row("counted_words", _COUNTED, _ROBERTA, _ROBERTA_LAYOUT, inputs=_TYPED),
    "Bertweet": Row(
        "tweet_words", _COUNTED, _ROBERTA, _ROBERTA_LAYOUT, {"normalization": False}, inputs=_TYPED
    ),
    "BlenderbotSmall": Row(
        "chat_words",
        _BPE,
        {
            "bos_token": "__start__",
            "eos_token": "__end__",
            "unk_token": "__unk__",
            "pad_token": "__null__",
        },
        fast={
            "bos_token": _END,
            "eos_token": _END,
            "unk_token": _END,
            "pad_token": None,
            "add_prefix_space": False,
            "trim_offsets": True,
        },
        fast_class={
            "layout": Layout("bos A eos", "bos A eos eos B eos", "framed"),
            "model_input_names": list(_TYPED),
            "words_need_prefix_space": False,
        },
    ),
    "Speech2Text2": Row("transcribed_words", _BPE, _BASICS, settings={"do_lower_case": False}),
    "Clvp": Row(
        "spoken_bytes",
        _BPE,
        {"unk_token": "[UNK]", "bos_token": _END, "eos_token": "[STOP]", "pad_token": "[STOP]"},
        Layout("bos? A eos?", "bos? A eos? bos? B eos?"),
        {
            "errors": "replace",
            "add_prefix_space": False,
            "add_bos_token": False,
            "add_eos_token": False,
        },
        flags={"*": _EXACT},
    ),
    "Whisper": Row(
        "transcripts",
        {**_BPE, "normalizer_file": "normalizer.json"},
        {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None},
        settings={
            "errors": "replace",
            "add_prefix_space": False,
            "language": None,
            "task": None,
            "predict_timestamps": False,
        },
        flags={"*": _EXACT},
        fast={"add_bos_token": False},
    ),
}
