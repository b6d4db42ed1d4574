"""The table of tokenizer classes: every public name is one row here (see `table.Row`)."""

from .completions import decode_until, first_parts
from .language_codes import MBART, MBART_50, NLLB
from .layout import Layout
from .named_templates import grounded, with_tools
from .table import Row

_VOCAB = {"vocab_file": "vocab.txt"}
_BPE = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
_TYPED = ("input_ids", "token_type_ids", "attention_mask")

_BERT_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_BERT_SETTINGS = {
    "do_lower_case": True,
    "do_basic_tokenize": True,
    "never_split": None,
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "clean_up_tokenization_spaces": True,
}
_BERT_LAYOUT = Layout("cls A sep", "cls A sep B:1 sep:1", "layout")
_ROBERTA_SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_ROBERTA_LAYOUT = Layout("cls A sep", "cls A sep sep B sep", "zeros")
_END = "<|endoftext|>"
_LLAMA_LAYOUT = Layout("bos? A eos?", "bos? A eos? bos?:1 B:1 eos?:1", "layout")
_EXACT = {"normalized": False, "special": True}
_SPM = {"sp_model_kwargs": None, "clean_up_tokenization_spaces": False}
_SWALLOWS_LEFT = {"lstrip": True, "normalized": False, "special": True}
_CAMEMBERT_FRONT = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
_CODE_ENDS = {"decode": decode_until, "truncate": first_parts}
_COMMAND_TEMPLATES = {"apply_tool_use_template": with_tools, "apply_grounded_generation_template": grounded}


def _bert(
    inputs: tuple[str, ...] = _TYPED, special: dict | None = None, layout=_BERT_LAYOUT, clean=True, **more
) -> Row:
    settings = {**_BERT_SETTINGS, "clean_up_tokenization_spaces": clean}
    return Row(
        "word_piece", _VOCAB, {**_BERT_SPECIAL, **(special or {})}, layout, settings, inputs=inputs, **more
    )


def _roberta(flags=None, prefix=False, kind="framed_byte_level", **more) -> Row:
    settings = {"errors": "replace", "add_prefix_space": prefix}
    more = {"layout": _ROBERTA_LAYOUT, "slow_class": {"prefix_always": False}, **more}
    return Row(
        kind,
        _BPE,
        _ROBERTA_SPECIAL,
        settings=settings,
        fast={"trim_offsets": True},
        flags={"*": {}, "mask_token": {"lstrip": True, "normalized": True}, **(flags or {})},
        **more,
    )


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
    "RetriBert": _bert(("input_ids", "attention_mask"), clean=False),
    "SqueezeBert": _bert(),
    "Funnel": _bert(
        special={
            "unk_token": "<unk>",
            "sep_token": "<sep>",
            "pad_token": "<pad>",
            "cls_token": "<cls>",
            "mask_token": "<mask>",
            "bos_token": "<s>",
            "eos_token": "</s>",
        },
        layout=Layout("cls:2 A sep", "cls:2 A sep B:1 sep:1", "layout"),
    ),
    "MPNet": _bert(
        ("input_ids", "attention_mask"),
        {**_ROBERTA_SPECIAL, "unk_token": "[UNK]"},
        Layout("cls A sep", "cls A sep sep B sep", "zeros"),
        flags={"*": _EXACT, "mask_token": {"lstrip": True, "normalized": False, "special": True}},
        fast_class={"layout": Layout("cls A sep", "cls A sep sep B:1 sep:1", "zeros")},
    ),
    # byte-level BPE
    "GPT2": Row(
        "byte_level",
        _BPE,
        {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None},
        Layout("bos? A", "bos? A bos? B"),
        {"errors": "replace", "add_prefix_space": False, "add_bos_token": False},
        flags={"*": {}},
        fast_class={"layout": Layout("bos? A", "bos? A B")},
    ),
    "Qwen2": Row(
        "composed_byte_level",
        _BPE,
        {"unk_token": _END, "bos_token": None, "eos_token": _END, "pad_token": _END},
        settings={"errors": "replace", "clean_up_tokenization_spaces": False, "split_special_tokens": False},
        flags={"*": {"normalized": False, "special": True}},
    ),
    "Roberta": _roberta({"mask_token": {"lstrip": True, "normalized": False}}),
    "Bart": _roberta(),
    "LED": _roberta(),
    "Mvp": _roberta({"*": _EXACT, "mask_token": {"lstrip": True, "normalized": False, "special": True}}),
    "Longformer": _roberta({"mask_token": {"lstrip": True, "normalized": False}}),
    "Blenderbot": _roberta(
        {"mask_token": {"lstrip": True, "normalized": False}},
        kind="typed_byte_level",
        layout=Layout("A eos", "A eos", "framed"),
        slow_class={
            "prefix_always": False,
            "special_mask_frame": True,
            "layout": Layout("A eos", "A eos", "framed"),
        },
        fast_class={"template": Layout("A eos", "A B:1")},
    ),
    "Deberta": Row(
        "typed_byte_level",
        _BPE,
        {
            "bos_token": "[CLS]",
            "eos_token": "[SEP]",
            "sep_token": "[SEP]",
            "cls_token": "[CLS]",
            "unk_token": "[UNK]",
            "pad_token": "[PAD]",
            "mask_token": "[MASK]",
        },
        _BERT_LAYOUT,
        {"errors": "replace", "add_prefix_space": False, "add_bos_token": False},
        flags={"*": _EXACT, "mask_token": {"lstrip": True, "normalized": True}},
        inputs=("input_ids", "attention_mask", "token_type_ids"),
        slow_class={"prefix_always": False},
    ),
    "CodeGen": Row(
        "byte_level",
        _BPE,
        {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None},
        Layout("bos? A", "bos? A bos? B"),
        {
            "errors": "replace",
            "add_prefix_space": False,
            "add_bos_token": False,
            "return_token_type_ids": False,
        },
        flags={"*": _EXACT},
        slow_class=_CODE_ENDS,
        fast_class={"layout": Layout("bos? A", "bos? A B"), **_CODE_ENDS},
    ),
    "Cohere": Row(
        "switched_byte_level",
        _BPE,
        {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "pad_token": None,
        },
        Layout("bos? A eos?", "bos? A eos? bos?:1 B:1 eos?:1", "plain"),
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "use_default_system_prompt": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        },
        slow=False,
        fast_class={"padding_side": "left", "words_need_prefix_space": True, **_COMMAND_TEMPLATES},
    ),
    "GPTNeoX": Row(
        "switched_byte_level",
        _BPE,
        {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None},
        Layout("bos? A eos?", "bos? A eos? bos?:1 B:1 eos?:1", "plain"),
        {"add_bos_token": False, "add_eos_token": False, "add_prefix_space": False},
        slow=False,
    ),
    "Bloom": Row(
        "from_file",
        {},
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        settings={"add_prefix_space": False, "clean_up_tokenization_spaces": False},
        slow=False,
        fast_class={"padding_side": "left"},
    ),
    "Nougat": Row(
        "pages",
        {},
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        settings={"clean_up_tokenization_spaces": False},
        slow=False,
    ),
    "CLIP": Row(
        "word_end",
        _BPE,
        {"unk_token": _END, "bos_token": "<|startoftext|>", "eos_token": _END, "pad_token": _END},
        Layout("bos A eos", "bos A eos eos B eos", "zeros"),
        {"errors": "replace"},
        flags={"bos_token": {}, "eos_token": {}, "unk_token": {}},
    ),
    # SentencePiece
    "Llama": Row(
        "prefixed_pieces",
        {"vocab_file": "tokenizer.model"},
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": None},
        _LLAMA_LAYOUT,
        {
            **_SPM,
            "add_bos_token": True,
            "add_eos_token": False,
            "use_default_system_prompt": False,
            "spaces_between_special_tokens": False,
            "legacy": None,
            "add_prefix_space": True,
        },
        flags={"*": _EXACT},
        fast={"add_prefix_space": None},
        fast_class={"padding_side": "left", "layout": _LLAMA_LAYOUT._replace(types="plain")},
    ),
    "Gemma": Row(
        "plain_pieces",
        {"vocab_file": "tokenizer.model"},
        {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        _LLAMA_LAYOUT,
        {
            **_SPM,
            "add_bos_token": True,
            "add_eos_token": False,
            "use_default_system_prompt": False,
            "spaces_between_special_tokens": False,
        },
        flags={"*": _EXACT},
        fast_class={"padding_side": "left", "layout": _LLAMA_LAYOUT._replace(types="plain")},
    ),
    "MT5": Row(
        "sentinel_pieces",
        {"vocab_file": "spiece.model"},
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        Layout("A eos", "A eos B eos", "zeros"),
        {**_SPM, "extra_ids": 0, "additional_special_tokens": None, "legacy": None, "add_prefix_space": True},
        flags={"*": _EXACT},
        fast={"add_prefix_space": None},
    ),
    "T5": Row(
        "sentinel_pieces",
        {"vocab_file": "spiece.model"},
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        Layout("A eos", "A eos B eos", "zeros"),
        {
            **_SPM,
            "extra_ids": 100,
            "additional_special_tokens": None,
            "legacy": None,
            "add_prefix_space": True,
        },
        flags={"*": _EXACT},
        fast={"add_prefix_space": None},
    ),
    "XLMRoberta": Row(
        "shifted_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        _ROBERTA_SPECIAL,
        _ROBERTA_LAYOUT,
        _SPM,
        flags={"mask_token": _SWALLOWS_LEFT},
        fast_class={"front": ("<s>", "<pad>", "</s>", "<unk>"), "skip": 3, "tail": ("<mask>",), "unk_id": 3},
    ),
    "Camembert": Row(
        "fronted_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        _ROBERTA_SPECIAL,
        _ROBERTA_LAYOUT,
        {**_SPM, "additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]},
        flags={"mask_token": _SWALLOWS_LEFT},
        slow_class={"front": _CAMEMBERT_FRONT, "offset": 4},
        fast_class={
            "front": _CAMEMBERT_FRONT,
            "skip": 1,
            "tail": ("<mask>",),
            "unk_id": 3,
            "worst": ("<unk>NOTUSED",),
        },
    ),
    "Barthez": Row(
        "spaced_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        _ROBERTA_SPECIAL,
        _ROBERTA_LAYOUT,
        _SPM,
        flags={"mask_token": _SWALLOWS_LEFT},
        fast_class={"unk_id": 3},
    ),
    "Albert": Row(
        "cleaned_pieces",
        {"vocab_file": "spiece.model"},
        {
            "bos_token": "[CLS]",
            "eos_token": "[SEP]",
            "unk_token": "<unk>",
            "sep_token": "[SEP]",
            "pad_token": "<pad>",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        _BERT_LAYOUT,
        {**_SPM, "do_lower_case": True, "remove_space": True, "keep_accents": False},
        flags={"mask_token": _SWALLOWS_LEFT},
        inputs=_TYPED,
        fast_class={"quotes_cleaned": True, "commas_apart": True},
    ),
    "XLNet": Row(
        "joined_pieces",
        {"vocab_file": "spiece.model"},
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "sep_token": "<sep>",
            "pad_token": "<pad>",
            "cls_token": "<cls>",
            "mask_token": "<mask>",
        },
        Layout("A sep cls:2", "A sep B:1 sep:1 cls:2", "layout"),
        {
            **_SPM,
            "do_lower_case": False,
            "remove_space": True,
            "keep_accents": False,
            "additional_special_tokens": ["<eop>", "<eod>"],
        },
        flags={"mask_token": _SWALLOWS_LEFT},
        inputs=_TYPED,
        slow_class={"padding_side": "left", "pad_token_type_id": 3},
        fast_class={
            "padding_side": "left",
            "pad_token_type_id": 3,
            "quotes_cleaned": True,
            "commas_apart": True,
        },
    ),
    "FNet": Row(
        "tight_pieces",
        {"vocab_file": "spiece.model"},
        {
            "unk_token": "<unk>",
            "sep_token": "[SEP]",
            "pad_token": "<pad>",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        _BERT_LAYOUT,
        {**_SPM, "do_lower_case": False, "remove_space": True, "keep_accents": True},
        flags={"mask_token": _SWALLOWS_LEFT, "cls_token": _EXACT, "sep_token": _EXACT},
        inputs=("input_ids", "token_type_ids"),
        fast_class={"quotes_cleaned": True, "commas_apart": True},
    ),
    "BigBird": Row(
        "bracket_pieces",
        {"vocab_file": "spiece.model"},
        {
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
            "cls_token": "[CLS]",
        },
        _BERT_LAYOUT,
        _SPM,
        flags={"*": {"special": True}, "mask_token": {"lstrip": True, "normalized": True, "special": True}},
    ),
    "Reformer": Row(
        "plain_joined_pieces",
        {"vocab_file": "spiece.model"},
        {"eos_token": "</s>", "unk_token": "<unk>"},
        settings={**_SPM, "additional_special_tokens": []},
    ),
    "RemBert": Row(
        "whole_pieces",
        {"vocab_file": "sentencepiece.model"},
        {
            "bos_token": "[CLS]",
            "eos_token": "[SEP]",
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        _BERT_LAYOUT,
        {
            "do_lower_case": False,
            "remove_space": True,
            "keep_accents": True,
            "clean_up_tokenization_spaces": False,
        },
        flags={"mask_token": {"lstrip": True, "normalized": True, "special": True}},
        inputs=_TYPED,
        fast_class={"quotes_cleaned": True, "cleaned_after": True},
    ),
    "DebertaV2": Row(
        "punctuated_pieces",
        {"vocab_file": "spm.model"},
        {
            "bos_token": "[CLS]",
            "eos_token": "[SEP]",
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        _BERT_LAYOUT,
        {**_SPM, "do_lower_case": False, "split_by_punct": False},
        flags={"unk_token": {"normalized": True, "special": True}},
        inputs=_TYPED,
    ),
    "XGLM": Row(
        "padded_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
        Layout("sep A", "sep A sep sep B", "zeros"),
        {**_SPM, "additional_special_tokens": [f"<madeupword{i}>" for i in range(7)]},
        fast_class={
            "front": ("<s>", "<pad>", "</s>", "<unk>"),
            "skip": 3,
            "unk_id": 3,
            "tail": tuple(f"<madeupword{i}>" for i in range(7)),
        },
    ),
    "MBart": Row(
        "language_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        _ROBERTA_SPECIAL,
        settings={**_SPM, "src_lang": None, "tgt_lang": None, "additional_special_tokens": None},
        flags={"mask_token": _SWALLOWS_LEFT},
        slow_class={"codes": MBART},
        fast_class={"codes": MBART, "tail": (*MBART, "<mask>")},
    ),
    "MBart50": Row(
        "spaced_language_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        {
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        settings={**_SPM, "src_lang": None, "tgt_lang": None, "additional_special_tokens": None},
        flags={"mask_token": {"lstrip": True, "normalized": True, "special": True}},
        slow_class={"codes": MBART_50, "code_first": True, "framed_types": False},
        fast_class={
            "codes": MBART_50,
            "code_first": True,
            "framed_types": False,
            "tail": (*MBART_50, "<mask>"),
        },
    ),
    "Nllb": Row(
        "added_language_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        _ROBERTA_SPECIAL,
        settings={
            **_SPM,
            "src_lang": None,
            "tgt_lang": None,
            "additional_special_tokens": None,
            "legacy_behaviour": False,
        },
        flags={
            **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _EXACT),
            "mask_token": {"lstrip": True, "normalized": True, "special": True},
        },
        slow_class={"codes": NLLB, "code_first": True, "default_code": "eng_Latn"},
        fast_class={"codes": NLLB, "code_first": True, "default_code": "eng_Latn"},
    ),
}
