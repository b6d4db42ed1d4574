"""Rows of the table of tokenizer classes that cut words with marks, questions or Chinese words."""

from .layout import Layout
from .rows import _BERT_SPECIAL, ROWS, _bert
from .table import Row

_EXACT = {"normalized": False, "special": True}
_BPE = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_ROBERTA_LAYOUT = Layout("cls A sep", "cls A sep sep B sep", "zeros")
_LABELS = {"pad_token_label": -100, "only_label_first_subword": True}
_NOWHERE, _CORNER = [0, 0, 0, 0], [1000, 1000, 1000, 1000]
_BOXES = {"cls_token_box": _NOWHERE, "sep_token_box": _CORNER, "pad_token_box": _NOWHERE, **_LABELS}
_FRONT = {"front": ("<s>", "<pad>", "</s>", "<unk>"), "skip": 3, "tail": ("<mask>",), "unk_id": 3}

_ENTITIES = {
    "task": None,
    "max_entity_length": 32,
    "max_mention_length": 30,
    "entity_token_1": "<ent>",
    "entity_token_2": "<ent2>",
    "entity_unk_token": "[UNK]",
    "entity_pad_token": "[PAD]",
    "entity_mask_token": "[MASK]",
    "entity_mask2_token": "[MASK2]",
}


def _with(row: Row, kind: str, **more) -> Row:
    settings = {**row.settings, **more.pop("settings", {})}
    fields = {name: getattr(row, name) for name in Row.__dataclass_fields__}
    return Row(**{**fields, "kind": kind, "settings": settings, **more})


WORD_ROWS: dict[str, Row] = {
    "DPRReader": _with(_bert(), "passage_pieces", inputs=("input_ids", "attention_mask")),
    "Realm": _with(_bert(clean=False), "candidate_pieces"),
    "Splinter": _with(_bert(clean=False), "question_pieces", settings={"question_token": "[QUESTION]"}),
    "RoFormer": _with(_bert(clean=False), "segmented_pieces"),
    "ProphetNet": _with(
        _bert(("input_ids", "attention_mask"), layout=Layout("A sep", "A sep B:1 sep:1", "layout")),
        "cased_tokens",
        files={"vocab_file": "prophetnet.tokenizer"},
        special={role: text for role, text in _BERT_SPECIAL.items() if role != "cls_token"},
        settings={"x_sep_token": "[X_SEP]"},
        fast=None,
    ),
    "LayoutLMv2": _with(
        _bert(clean=False),
        "boxed_word_piece",
        settings={**_BOXES, "model_max_length": 512, "additional_special_tokens": None},
        flags={"*": _EXACT},
        fast={"model_max_length": None},
    ),
    "LayoutLMv3": Row(
        "boxed_byte_level",
        _BPE,
        _ROBERTA,
        _ROBERTA_LAYOUT,
        {**_BOXES, "sep_token_box": _NOWHERE, "errors": "replace", "add_prefix_space": True},
        flags={"*": {}, "mask_token": {"lstrip": True}},
        inputs=("input_ids", "attention_mask"),
        fast={"trim_offsets": True},
        slow_class={"model_input_names": ["input_ids", "attention_mask", "bbox"]},
    ),
    "LayoutXLM": Row(
        "boxed_shifted_pieces",
        {"vocab_file": "sentencepiece.bpe.model"},
        _ROBERTA,
        _ROBERTA_LAYOUT,
        {**_BOXES, "sp_model_kwargs": None},
        flags={"mask_token": {"lstrip": True, **_EXACT}},
        fast_class=_FRONT,
    ),
    "Udop": Row(
        "boxed_sentinel_pieces",
        {"vocab_file": "spiece.model"},
        {"eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>"},
        Layout("A eos", "A eos B eos", "zeros"),
        {
            "sep_token_box": _CORNER,
            "pad_token_box": _NOWHERE,
            **_LABELS,
            "additional_special_tokens": None,
            "sp_model_kwargs": None,
        },
        flags={"*": _EXACT},
        python={"legacy": True, "add_prefix_space": True},
    ),
    "MarkupLM": Row(
        "path_byte_level",
        _BPE,
        _ROBERTA,
        Layout("cls A sep", "cls A sep B sep", "zeros"),
        {
            "tags_dict": None,
            "errors": "replace",
            "add_prefix_space": False,
            "max_depth": 50,
            "max_width": 1000,
            "pad_width": 1001,
            **_LABELS,
        },
        flags={"*": {}, "mask_token": {"lstrip": True}},
        inputs=("input_ids", "token_type_ids", "attention_mask"),
        fast={"trim_offsets": False},
        slow_class={"prefix_always": False},
    ),
    "Tapas": _with(
        _bert(),
        "table_pieces",
        layout=Layout("cls A sep", "cls A sep B", "zeros"),
        settings={
            "empty_token": "[EMPTY]",
            "cell_trim_length": -1,
            "max_column_id": None,
            "max_row_id": None,
            "strip_column_names": False,
            "update_answer_coordinates": False,
            "min_question_length": None,
            "max_question_length": None,
            "model_max_length": 512,
            "additional_special_tokens": None,
        },
        fast=None,
    ),
    "Tapex": _with(
        ROWS["Bart"],
        "linear_tables",
        settings={"do_lower_case": True, "max_cell_length": 15},
        fast=None,
    ),
    "Cpm": _with(
        ROWS["XLNet"],
        "marked_words",
        flags={"mask_token": {"lstrip": True, "special": True}},
        slow_class={"pad_token_type_id": 3},
        fast_class={"pad_token_type_id": 3},
    ),
    "CpmAnt": Row(
        "chinese_words",
        {"vocab_file": "vocab.txt"},
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        Layout("bos A", "bos A bos B"),
        {
            "bod_token": "<d>",
            "eod_token": "</d>",
            "line_token": "</n>",
            "space_token": "</_>",
            "padding_side": "left",
        },
    ),
    "Luke": Row(
        "entity_byte_level",
        {**_BPE, "entity_vocab_file": "entity_vocab.json"},
        _ROBERTA,
        _ROBERTA_LAYOUT,
        {**_ENTITIES, "errors": "replace", "add_prefix_space": False},
        flags={"*": {}, "mask_token": {"lstrip": True}},
        slow_class={"prefix_always": False},
    ),
    "MLuke": Row(
        "entity_pieces",
        {"vocab_file": "sentencepiece.bpe.model", "entity_vocab_file": "entity_vocab.json"},
        _ROBERTA,
        _ROBERTA_LAYOUT,
        {**_ENTITIES, "sp_model_kwargs": None},
        flags={"mask_token": {"lstrip": True, "special": True}},
    ),
    "RoCBert": _with(
        _bert(clean=False),
        "glyph_pieces",
        files={
            "vocab_file": "vocab.txt",
            "word_shape_file": "word_shape.json",
            "word_pronunciation_file": "word_pronunciation.json",
        },
        fast=None,
    ),
    "Jukebox": Row(
        "songs",
        {"artists_file": "artists.json", "genres_file": "genres.json", "lyrics_file": "lyrics.json"},
        {"unk_token": "<|endoftext|>"},
        settings={"version": ["v3", "v2", "v2"], "max_n_lyric_tokens": 512, "n_genres": 5},
        flags={"*": {}},
    ),
    "Pop2Piano": Row(
        "notes",
        {"vocab": "vocab.json"},
        {"unk_token": "-1", "eos_token": "1", "pad_token": "0", "bos_token": "2"},
        settings={"default_velocity": 77, "num_bars": 2},
        flags={"*": {}},
        inputs=("token_ids", "attention_mask"),
    ),
    "BertJapanese": Row(
        "japanese_words",
        {"vocab_file": "vocab.txt", "spm_file": "spiece.model"},
        _BERT_SPECIAL,
        Layout("cls A sep", "cls A sep B:1 sep:1", "layout"),
        {
            "do_lower_case": False,
            "do_word_tokenize": True,
            "do_subword_tokenize": True,
            "word_tokenizer_type": "basic",
            "subword_tokenizer_type": "wordpiece",
            "never_split": None,
            "mecab_kwargs": None,
            "sudachi_kwargs": None,
            "jumanpp_kwargs": None,
        },
        inputs=("input_ids", "token_type_ids", "attention_mask"),
    ),
    "GPTNeoXJapanese": Row(
        "byte_backed_words",
        {"vocab_file": "vocab.txt", "emoji_file": "emoji.json"},
        {
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
        },
        settings={"do_clean_text": False},
    ),
    "GPTSanJapanese": Row(
        "prefixed_words",
        {"vocab_file": "vocab.txt", "emoji_file": "emoji.json"},
        {
            "unk_token": "<|nottoken|>",
            "pad_token": "<|separator|>",
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "sep_token": "<|segmenter|>",
        },
        settings={"do_clean_text": False},
        inputs=("input_ids", "attention_mask", "token_type_ids"),
    ),
    "TransfoXL": Row(
        "whole_words",
        {"vocab_file": "vocab.txt"},
        {"unk_token": "<unk>", "eos_token": "<eos>"},
        settings={
            "special": None,
            "min_freq": 0,
            "max_size": None,
            "lower_case": False,
            "delimiter": None,
            "pretrained_vocab_file": None,
            "never_split": None,
            "additional_special_tokens": ["<formula>"],
            "language": "en",
        },
        inputs=("input_ids",),
    ),
}
