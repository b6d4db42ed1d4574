"""The tokenizer that a GGUF file carries in its metadata (`tokenizer.ggml.*`)."""

import os
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from phyla.checkpoints.gguf_header import GGUFHeader, read_header
from phyla.errors import TokenizerFileError, nearest
from phyla.preprocessing.text.pretokenizer_names import ADD_BOS, ADD_SEP, IGNORE_MERGES, PATTERNS
from phyla.preprocessing.text.sentencepiece_model import (
    ModelType,
    NormalizerSpec,
    PieceType,
    SentencePieceModel,
    TrainerSpec,
)
from phyla.preprocessing.text.sentencepiece_tokenizer import SPACE, from_sentencepiece

# Key in the file -> name in tokenizer_config.json.
_SPECIAL_IDS = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
    "seperator_token_id": "sep_token",
    "padding_token_id": "pad_token",
    "cls_token_id": "cls_token",
    "mask_token_id": "mask_token",
}
# Ids that llama.cpp takes where the file names none.
_DEFAULT_IDS = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
    "bert": {
        "cls_token_id": 101,
        "unknown_token_id": 100,
        "seperator_token_id": 102,
        "padding_token_id": 0,
        "mask_token_id": 103,
    },
    "t5": {"eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 0},
    "gpt2": {},
}
# Architecture and tokenizer model -> public tokenizer class; all others are PreTrainedTokenizerFast.
_CLASSES = {
    ("llama", "llama"): "LlamaTokenizerFast",
    ("mistral", "llama"): "LlamaTokenizerFast",
    ("phi3", "llama"): "LlamaTokenizerFast",
    ("gemma", "llama"): "GemmaTokenizerFast",
    ("gemma2", "llama"): "GemmaTokenizerFast",
    ("gemma3", "llama"): "GemmaTokenizerFast",
    ("gpt2", "gpt2"): "GPT2TokenizerFast",
    ("qwen2", "gpt2"): "Qwen2TokenizerFast",
    ("qwen2moe", "gpt2"): "Qwen2TokenizerFast",
    ("qwen3", "gpt2"): "Qwen2TokenizerFast",
    ("bloom", "gpt2"): "BloomTokenizerFast",
    ("bert", "bert"): "BertTokenizerFast",
    ("t5", "t5"): "T5TokenizerFast",
    ("t5encoder", "t5"): "T5TokenizerFast",
}


def from_gguf(
    source: str | os.PathLike | GGUFHeader, pre_tokenizer: str | None = None
) -> tuple[Tokenizer, dict[str, object]]:
    """The tokenizer of a GGUF file (by path or header) and what tokenizer_config.json would say about it.

    `pre_tokenizer` stands in for the name that a byte-level file gives ("gpt-2" does what Transformers 4.50
    does with llama files, which cuts numbers otherwise than the model was trained with).

    The second value has the special tokens by public name, `add_bos_token`, `add_eos_token`, `chat_template`
    (a string, or a list of named ones), `model_max_length`, `additional_special_tokens` and
    `tokenizer_class`. Tensor data is not touched. Raises MissingFileError, CorruptFileError, or
    TokenizerFileError naming the file and the key.
    """
    header = source if isinstance(source, GGUFHeader) else read_header(Path(source))
    fields = _Fields(header)
    fields.pre = pre_tokenizer or fields.pre
    kind = fields.get("model", str)
    builders = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _sentencepiece, "bert": _wordpiece}
    if kind is None or kind not in builders:
        raise TokenizerFileError(
            f"{fields.where}: tokenizer.ggml.model must be one of {sorted(builders)}, but is {kind!r}"
        )
    fields.check_vocab()
    try:
        tokenizer = builders[kind](fields)
    except TokenizerFileError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for what it cannot build
        raise TokenizerFileError(f"{fields.where}: its {kind} tokenizer cannot be built: {error}") from error
    _add_named_tokens(tokenizer, fields)
    config = _config(fields)
    tokenizer.post_processor = _post_processor(tokenizer, fields, config)
    return tokenizer, config


class _Fields:
    """Typed access to the tokenizer keys of a header."""

    def __init__(self, header: GGUFHeader):
        self.metadata, self.where = header.metadata, str(header.path)
        self.kind = self.get("model", str)
        self.pre = self.get("pre", str) or "default"
        self.architecture = str(header.metadata.get("general.architecture", ""))
        self.tokens: list[str] = self.array("tokens", str) or []
        self.types: list[int] = self.array("token_type", int) or []
        self.scores: list[float] = self.array("scores", (int, float)) or []

    def get(self, key: str, wanted: type, default=None):
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if value is not None and not isinstance(value, wanted):
            raise TokenizerFileError(
                f"{self.where}: tokenizer.ggml.{key} must be {wanted.__name__}, but is {value!r:.80}"
            )
        return value

    def array(self, key: str, wanted: type | tuple[type, ...]) -> list | None:
        value = self.get(key, list)
        if value and not isinstance(value[0], wanted):
            raise TokenizerFileError(f"{self.where}: tokenizer.ggml.{key} holds {type(value[0]).__name__}")
        return value

    def check_vocab(self) -> None:
        if not self.tokens:
            raise TokenizerFileError(f"{self.where}: tokenizer.ggml.tokens is missing or empty")
        if len(set(self.tokens)) != len(self.tokens):
            raise TokenizerFileError(f"{self.where}: tokenizer.ggml.tokens holds a token twice")
        for key, values in (("token_type", self.types), ("scores", self.scores)):
            if values and len(values) < len(self.tokens):
                raise TokenizerFileError(
                    f"{self.where}: tokenizer.ggml.{key} has {len(values)} entries for {len(self.tokens)} "
                    "tokens"
                )

    def special_id(self, key: str) -> int | None:
        """The id under `key` or llama.cpp's default; None where it is no token (files write -1 for none)."""
        value = self.get(key, int, _DEFAULT_IDS.get(self.kind, {}).get(key))
        return value if value is not None and 0 <= value < len(self.tokens) else None

    def token(self, key: str) -> str | None:
        number = self.special_id(key)
        return None if number is None else self.word(self.tokens[number])

    def word(self, token: str) -> str:
        """A token as texts spell it: BERT files mark the start of words, also of names without brackets."""
        return token[1:] if self.kind == "bert" and token.startswith(SPACE) else token

    def kinds(self) -> list[PieceType]:
        """The kind of each token; guessed from names and ids in files without token types."""
        known = set(PieceType)
        if self.types:
            return [
                PieceType(kind) if kind in known else PieceType.NORMAL
                for kind in self.types[: len(self.tokens)]
            ]
        special = {self.special_id(key) for key in _SPECIAL_IDS} - {self.special_id("unknown_token_id")}
        guessed = [PieceType.CONTROL if i in special else PieceType.NORMAL for i in range(len(self.tokens))]
        if self.kind == "llama":
            for i, token in enumerate(self.tokens):
                if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                    guessed[i] = PieceType.BYTE
        return guessed


def _byte_level(fields: _Fields) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(fields.tokens)}
    merges = [_merge(fields, line) for line in fields.array("merges", str) or []]
    if fields.pre not in PATTERNS:
        hint = nearest(fields.pre, PATTERNS)
        raise TokenizerFileError(
            f"{fields.where}: tokenizer.ggml.pre names no known pre-tokeniser: {fields.pre!r}.{hint}"
        )
    # Byte-level vocabularies that lack some bytes lose them without an unknown token.
    unknown = fields.token("unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, ignore_merges=fields.pre in IGNORE_MERGES)
    )
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[fields.pre]]
    prefix = bool(fields.get("add_space_prefix", bool, False))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    if prefix:
        tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge(fields: _Fields, line: str) -> tuple[str, str]:
    # The first character may itself be a space in vocabularies that are not byte-level.
    cut = line.find(" ", 1)
    if cut < 0:
        raise TokenizerFileError(
            f"{fields.where}: tokenizer.ggml.merges must hold pairs, but has {line!r:.80}"
        )
    return line[:cut], line[cut + 1 :]


def _sentencepiece(fields: _Fields) -> Tokenizer:
    kinds = fields.kinds()
    unknown = fields.special_id("unknown_token_id")
    marked = [i for i, kind in enumerate(kinds) if kind == PieceType.UNKNOWN]
    if unknown is None:
        unknown = marked[0] if marked else 0
    for i in marked:
        kinds[i] = PieceType.CONTROL
    kinds[unknown] = PieceType.UNKNOWN
    unigram = fields.kind == "t5"
    charsmap = bytes(value & 0xFF for value in fields.array("precompiled_charsmap", int) or [])
    return from_sentencepiece(
        SentencePieceModel(
            tuple(fields.tokens),
            tuple(_scores(fields)),
            tuple(kinds),
            TrainerSpec(
                model_type=ModelType.UNIGRAM if unigram else ModelType.BPE,
                vocab_size=len(fields.tokens),
                byte_fallback=PieceType.BYTE in kinds,
                unk_id=unknown,
            ),
            NormalizerSpec(
                precompiled_charsmap=charsmap,
                add_dummy_prefix=bool(fields.get("add_space_prefix", bool, True)),
                remove_extra_whitespaces=bool(fields.get("remove_extra_whitespaces", bool, False)),
            ),
        ),
        match_control=False,
    )


def _scores(fields: _Fields) -> list[float]:
    """The file's scores, or scores that rank tokens as the file's merges do."""
    if fields.scores:
        return [float(score) for score in fields.scores[: len(fields.tokens)]]
    ranks: dict[str, int] = {}
    for rank, line in enumerate(fields.array("merges", str) or []):
        left, right = _merge(fields, line)
        ranks.setdefault(left + right, rank)
    if not ranks:
        raise TokenizerFileError(
            f"{fields.where}: a {fields.kind} tokenizer needs tokenizer.ggml.scores or .merges"
        )
    return [-float(ranks.get(token, len(ranks))) for token in fields.tokens]


def _wordpiece(fields: _Fields) -> Tokenizer:
    # GGUF marks the start of words (with the block for a space), WordPiece marks what continues them.
    kinds = fields.kinds()
    named = {fields.special_id(key) for key in _SPECIAL_IDS}
    vocab: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(fields.tokens, kinds, strict=True)):
        if token.startswith(SPACE):
            word = token[1:]
        elif i in named or kind != PieceType.NORMAL or (token.startswith("[") and token.endswith("]")):
            word = token
        else:
            word = "##" + token
        vocab[word] = i
    unknown = fields.token("unknown_token_id") or "[UNK]"
    if unknown not in vocab:
        raise TokenizerFileError(f"{fields.where}: the vocabulary lacks the unknown token {unknown!r}")
    cased = any(word != word.lower() for word, i in vocab.items() if not (word.startswith("[") or i in named))
    lowercase = bool(fields.get("normalizer.lowercase", bool, not cased))
    strip = fields.get("normalizer.strip_accents", bool)
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _add_named_tokens(tokenizer: Tokenizer, fields: _Fields) -> None:
    """Make control and user-defined tokens match in texts, with stripping that some files leave unsaid."""
    kinds = fields.kinds()
    mask = fields.token("mask_token_id")
    named = {fields.token(key) for key in _SPECIAL_IDS} - {None}
    # Phi-3's markers swallow the space after them; its file has no field for that.
    strips = fields.architecture == "phi3" and fields.kind == "llama"
    tokens = []
    for token, kind in zip(fields.tokens, kinds, strict=True):
        word = fields.word(token)
        special = kind in (PieceType.CONTROL, PieceType.UNKNOWN) or word in named
        if not special and (kind != PieceType.USER_DEFINED or fields.kind in ("llama", "t5")):
            continue
        rstrip = strips and special and token not in ("<unk>", "<s>", "<|endoftext|>")
        lstrip = word == mask and (fields.pre in ADD_SEP or fields.pre.startswith("jina-v2"))
        tokens.append(AddedToken(word, normalized=False, special=special, rstrip=rstrip, lstrip=lstrip))
    tokenizer.add_special_tokens([token for token in tokens if token.special])
    tokenizer.add_tokens([token for token in tokens if not token.special])


def _config(fields: _Fields) -> dict[str, object]:
    config: dict[str, object] = {
        name: fields.token(key) for key, name in _SPECIAL_IDS.items() if fields.token(key) is not None
    }
    if fields.kind == "bert":
        config.setdefault("cls_token", config.pop("bos_token", None) or "[CLS]")
    defaults = {
        "gpt2": (fields.pre in ADD_BOS, False),
        "llama": (True, False),
        "t5": (False, True),
        "bert": (True, False),
    }
    add_bos, add_eos = defaults[fields.kind]
    config["add_bos_token"] = bool(fields.get("add_bos_token", bool, add_bos))
    config["add_eos_token"] = bool(fields.get("add_eos_token", bool, add_eos))
    if fields.kind in ("llama", "gpt2"):
        config["add_prefix_space"] = bool(fields.get("add_space_prefix", bool, fields.kind == "llama"))
    named = {value for value in config.values() if isinstance(value, str)}
    control = (
        fields.word(t)
        for t, kind in zip(fields.tokens, fields.kinds(), strict=True)
        if kind == PieceType.CONTROL
    )
    special = [word for word in control if word not in named]
    if special:
        config["additional_special_tokens"] = special
    length = fields.metadata.get(f"{fields.architecture}.context_length")
    if type(length) is int and length > 0:
        config["model_max_length"] = length
    template = _chat_template(fields)
    if template is not None:
        config["chat_template"] = template
    config["clean_up_tokenization_spaces"] = fields.kind == "bert"
    config["tokenizer_class"] = _CLASSES.get((fields.architecture, fields.kind), "PreTrainedTokenizerFast")
    return config


def _chat_template(fields: _Fields) -> str | list[dict[str, str]] | None:
    prefix = "tokenizer.chat_template"
    default = fields.metadata.get(prefix)
    named = {
        key[len(prefix) + 1 :]: value
        for key, value in fields.metadata.items()
        if key.startswith(prefix + ".") and isinstance(value, str)
    }
    if default is not None and not isinstance(default, str):
        raise TokenizerFileError(
            f"{fields.where}: {prefix} must be a string, but is {type(default).__name__}"
        )
    if not named:
        return default
    found = {**({"default": default} if default is not None else {}), **named}
    return [{"name": name, "template": template} for name, template in found.items()]


def _post_processor(
    tokenizer: Tokenizer, fields: _Fields, config: dict[str, object]
) -> processors.PostProcessor | None:
    def known(name: str) -> list[tuple[str, int]]:
        """The special token of that public name with its id, if there is one."""
        token = config.get(name)
        if not isinstance(token, str):
            return []
        number = tokenizer.token_to_id(token)
        return [] if number is None else [(token, number)]

    if fields.kind == "bert":
        marks = known("sep_token") + known("cls_token")
        return processors.BertProcessing(*marks) if len(marks) == 2 else None
    first = known("bos_token") if config["add_bos_token"] else []
    last = known("eos_token") if config["add_eos_token"] else []
    if not first and not last:
        return processors.ByteLevel(trim_offsets=False) if fields.kind == "gpt2" else None
    separator = bool(fields.get("add_sep_token", bool, fields.pre in ADD_SEP and fields.kind == "gpt2"))
    between = (known("sep_token") or last) if separator else first
    start, end, middle = ([token for token, _ in marks] for marks in (first, last, between))
    second = 0 if fields.kind == "t5" or separator else 1
    return processors.TemplateProcessing(
        single=[*start, "$A:0", *end],
        pair=[
            *start,
            "$A:0",
            *end,
            *(f"{token}:{second}" for token in middle),
            f"$B:{second}",
            *(f"{token}:{second}" for token in end),
        ],
        special_tokens=list(dict([*first, *last, *between]).items()),
    )
