"""The table of tokenizer classes: every public name is one row here (see `table.Row`)."""

from .layout import Layout
from .table import Row

_VOCAB = {"vocab_file": "vocab.txt"}
_BPE = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
_TYPED = ("input_ids", "token_type_ids", "attention_mask")

_BERT_SPECIAL = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
_BERT_SETTINGS = {
    "do_lower_case": True, "do_basic_tokenize": True, "never_split": None, "tokenize_chinese_chars": True,
    "strip_accents": None, "clean_up_tokenization_spaces": True,
}  # fmt: skip
_BERT_LAYOUT = Layout("cls A sep", "cls A sep B:1 sep:1", "layout")
_ROBERTA_SPECIAL = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
_ROBERTA_LAYOUT = Layout("cls A sep", "cls A sep sep B sep", "zeros")
_END = "<|endoftext|>"
_LLAMA_LAYOUT = Layout("bos? A eos?", "bos? A eos? bos?:1 B:1 eos?:1", "layout")
_EXACT = {"normalized": False, "special": True}
_SPM = {"sp_model_kwargs": None, "clean_up_tokenization_spaces": False}


def _bert(inputs=_TYPED, special=None, layout=_BERT_LAYOUT, **more) -> Row:
    return Row("word_piece", _VOCAB, {**_BERT_SPECIAL, **(special or {})}, layout, _BERT_SETTINGS, inputs=inputs, **more)


def _roberta(flags=None, **more) -> Row:
    settings = {"errors": "replace", "add_prefix_space": False}
    more = {"layout": _ROBERTA_LAYOUT, "slow_class": {"prefix_always": False}, **more}
    return Row(
        "roberta", _BPE, _ROBERTA_SPECIAL, settings=settings, fast={"trim_offsets": True},
        flags={"*": {}, "mask_token": {"lstrip": True, "normalized": True}, **(flags or {})}, **more,
    )  # fmt: skip


ROWS: dict[str, Row] = {
    # WordPiece
    "Bert": _bert(),
    "ConvBert": _bert(),
    "DPRContextEncoder": _bert(),
    "DPRQuestionEncoder": _bert(),
    "DistilBert": _bert(("input_ids", "attention_mask"), layout=_BERT_LAYOUT),
    "Electra": _bert(),
    "LayoutLM": _bert(),
    "Lxmert": _bert(),
    "MobileBert": _bert(),
    "RetriBert": _bert(("input_ids", "attention_mask")),
    "SqueezeBert": _bert(),
    # byte-level BPE
    "GPT2": Row(
        "gpt2", _BPE, {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None},
        Layout("bos? A", "bos? A bos? B"),
        {"errors": "replace", "add_prefix_space": False, "add_bos_token": False}, flags={"*": {}},
        fast_class={"layout": Layout("bos? A", "bos? A B")},
    ),
    "Qwen2": Row(
        "qwen2", _BPE, {"unk_token": _END, "bos_token": None, "eos_token": _END, "pad_token": _END},
        settings={"errors": "replace", "clean_up_tokenization_spaces": False, "split_special_tokens": False},
        flags={"*": {"normalized": False, "special": True}},
    ),
    "Roberta": _roberta({"mask_token": {"lstrip": True, "normalized": False}}),
    "Bart": _roberta(),
    "GPTNeoX": Row(
        "gpt_neox", _BPE, {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None},
        Layout("bos? A eos?", "bos? A eos? bos?:1 B:1 eos?:1", "plain"),
        {"add_bos_token": False, "add_eos_token": False, "add_prefix_space": False}, slow=False,
    ),
    "Bloom": Row(
        "bloom", {}, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        settings={"add_prefix_space": False, "clean_up_tokenization_spaces": False}, slow=False,
        fast_class={"padding_side": "left"},
    ),
    "CLIP": Row(
        "clip", _BPE, {"unk_token": _END, "bos_token": "<|startoftext|>", "eos_token": _END, "pad_token": _END},
        Layout("bos A eos", "bos A eos eos B eos", "zeros"), {"errors": "replace"},
        flags={"bos_token": {}, "eos_token": {}, "unk_token": {}},
    ),
    # SentencePiece
    "Llama": Row(
        "llama", {"vocab_file": "tokenizer.model"},
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": None}, _LLAMA_LAYOUT,
        {**_SPM, "add_bos_token": True, "add_eos_token": False, "use_default_system_prompt": False,
         "spaces_between_special_tokens": False, "legacy": None, "add_prefix_space": True},
        flags={"*": _EXACT}, fast={"add_prefix_space": None},
        fast_class={"padding_side": "left", "layout": _LLAMA_LAYOUT._replace(types="plain")},
    ),
    "Gemma": Row(
        "gemma", {"vocab_file": "tokenizer.model"},
        {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}, _LLAMA_LAYOUT,
        {**_SPM, "add_bos_token": True, "add_eos_token": False, "use_default_system_prompt": False,
         "spaces_between_special_tokens": False},
        flags={"*": _EXACT}, fast_class={"padding_side": "left", "layout": _LLAMA_LAYOUT._replace(types="plain")},
    ),
    "T5": Row(
        "t5", {"vocab_file": "spiece.model"}, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        Layout("A eos", "A eos B eos", "zeros"),
        {**_SPM, "extra_ids": 100, "additional_special_tokens": None, "legacy": None, "add_prefix_space": True},
        flags={"*": _EXACT}, fast={"add_prefix_space": None},
    ),
}  # fmt: skip
