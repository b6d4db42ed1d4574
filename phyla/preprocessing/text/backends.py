"""Rust pipelines built from vocabulary files: one function for each kind of tokenizer."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.processors import RobertaProcessing as Framing  # cls A sep sep B sep, with offsets trimmed

from phyla.errors import ArgumentError, TokenizerFileError

from . import byte_level
from .charsmap import charsmap_normalizer
from .layout import Layout, template
from .sentencepiece_model import ModelType, PieceType, bpe_merges, read_sentencepiece
from .word_end import END_OF_WORD, WORD_END_PATTERN
from .wordpiece import read_vocabulary

SPACE = "▁"


def _need(settings: dict, owner, *names: str) -> None:
    missing = [name for name in names if settings.get(name) is None]
    if missing:
        raise TokenizerFileError(
            f"{type(owner).__name__} needs tokenizer_file or {', '.join(names)}; missing: {missing}"
        )


def _id(vocab: dict, settings: dict, role: str) -> tuple[str, int]:
    text = str(settings[role])
    return text, vocab.get(text, vocab.get(str(settings.get("unk_token")), 0))


def word_piece(owner, settings: dict) -> Tokenizer:
    """BERT: cleaned words, greedy pieces, `[CLS] A [SEP] B [SEP]`."""
    _need(settings, owner, "vocab_file")
    vocab = read_vocabulary(settings["vocab_file"])
    backend = Tokenizer(models.WordPiece(vocab, unk_token=str(settings["unk_token"])))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings["tokenize_chinese_chars"],
        strip_accents=settings.get("strip_accents"),
        lowercase=settings["do_lower_case"],
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = templated(owner, settings, vocab)
    return backend


class Roles:
    """The special tokens of settings, as a layout asks for them."""

    def __init__(self, settings: dict):
        self._settings = settings

    def __getattr__(self, name):
        value = self._settings.get(name)
        return str(value) if isinstance(value, AddedToken) else value


def templated(owner, settings: dict, vocab: dict):
    layout = getattr(type(owner), "template", type(owner).layout)
    return template(
        Roles(settings), layout, lambda token: vocab.get(token, vocab.get(str(settings.get("unk_token"))))
    )


def bpe(settings: dict, owner, unk=None, suffix="", **more) -> tuple[models.BPE, dict]:
    _need(settings, owner, "vocab_file", "merges_file")
    vocab = byte_level.read_vocabulary(settings["vocab_file"])
    merges = byte_level.read_merges(settings["merges_file"])
    try:
        model = models.BPE(
            vocab,
            merges,
            unk_token=unk,
            continuing_subword_prefix="",
            end_of_word_suffix=suffix,
            fuse_unk=False,
            **more,
        )
    except Exception as error:
        raise TokenizerFileError(
            f"{settings['merges_file']} does not fit {settings['vocab_file']}: {error}"
        ) from error
    return model, vocab


def byte_level_pipeline(owner, settings: dict) -> Tokenizer:
    """GPT-2: byte-level BPE, no special tokens unless `add_bos_token`."""
    model, vocab = bpe(settings, owner)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()
    if settings.get("add_bos_token"):
        backend.post_processor = templated(owner, settings, vocab)
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def framed_byte_level(owner, settings: dict) -> Tokenizer:
    """RoBERTa, BART: byte-level BPE, `<s> A </s></s> B </s>`."""
    model, vocab = bpe(settings, owner)
    backend = Tokenizer(model)
    prefix = bool(settings.get("add_prefix_space"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = Framing(
        _id(vocab, settings, "sep_token"),
        _id(vocab, settings, "cls_token"),
        trim_offsets=True,
        add_prefix_space=prefix,
    )
    return backend


def typed_byte_level(owner, settings: dict) -> Tokenizer:
    """DeBERTa: byte-level BPE, `[CLS] A [SEP] B:1 [SEP]:1`."""
    model, vocab = bpe(settings, owner)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = templated(owner, settings, vocab)
    return backend


def composed_byte_level(owner, settings: dict) -> Tokenizer:
    """Qwen2: composed Unicode, single digits, byte-level BPE."""
    model, _ = bpe(settings, owner, byte_fallback=False)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(byte_level.DIGIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(
                add_prefix_space=bool(settings.get("add_prefix_space", False)), use_regex=False
            ),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def word_end(owner, settings: dict) -> Tokenizer:
    """CLIP: lower case, byte-level BPE with `</w>`, `<|startoftext|> A <|endoftext|>`."""
    model, vocab = bpe(settings, owner, unk=str(settings["unk_token"]), suffix=END_OF_WORD)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_END_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = Framing(
        _id(vocab, settings, "eos_token"),
        _id(vocab, settings, "bos_token"),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return backend


# ---------------------------------------------------------------------- SentencePiece


def _spm_model(path, scored: list[tuple[str, float]] | None = None, unk_id: int | None = None):
    """The Rust model of a SentencePiece file: unigram with `scored` pieces, or BPE, and the file's data."""
    data = read_sentencepiece(path)
    if data.trainer.model_type == ModelType.BPE:
        vocab = {piece: index for index, (piece, _) in enumerate(scored or data.scored)}
        merges = bpe_merges(scored or data.scored)
        model = models.BPE(
            vocab,
            merges,
            unk_token=data.pieces[data.unk_id],
            fuse_unk=True,
            byte_fallback=data.trainer.byte_fallback,
        )
        return model, data
    if data.trainer.model_type != ModelType.UNIGRAM:
        raise TokenizerFileError(
            f"{path} is a {data.trainer.model_type.name} model; unigram and BPE models can be read"
        )
    pairs = scored or data.scored
    unknown = data.unk_id if unk_id is None else unk_id
    return models.Unigram(pairs, unk_id=unknown, byte_fallback=data.trainer.byte_fallback), data


def _add_marked(backend: Tokenizer, data, special=()) -> None:
    """Make the control and user-defined pieces of a model added tokens; control pieces and those of `special`
    are special.
    """
    names = {str(token) for token in special or ()}
    marked = sorted(data.of_type(PieceType.CONTROL, PieceType.USER_DEFINED))
    kinds = [data.types[index] == PieceType.CONTROL or piece in names for index, piece in marked]
    backend.add_tokens(
        [
            AddedToken(piece, normalized=False, special=kind)
            for (_, piece), kind in zip(marked, kinds, strict=True)
        ]
    )


def metaspace(prepend_scheme: str = "always", split: bool = True):
    """The pre-tokenizer that turns spaces into blocks."""
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=prepend_scheme, split=split)


def spm_normalizer(data, *before):
    """Normalisation of a unigram model as tokenizer.json files write it."""
    steps = list(before)
    if data.normalizer.precompiled_charsmap:
        steps.append(charsmap_normalizer(data.normalizer.precompiled_charsmap))
    steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), SPACE)]
    return normalizers.Sequence(steps)


def sentinel_pieces(owner, settings: dict) -> Tokenizer:
    """T5: unigram pieces, sentinels at the end, `A </s>`."""
    _need(settings, owner, "vocab_file")
    data = read_sentencepiece(settings["vocab_file"])
    count = settings.get("extra_ids", 100)
    scored = [*data.scored, *((f"<extra_id_{i}>", 0.0) for i in range(count - 1, -1, -1))]
    model, data = _spm_model(settings["vocab_file"], scored)
    backend = Tokenizer(model)
    backend.normalizer = spm_normalizer(data)
    scheme = "always" if settings.get("add_prefix_space") in (None, True) else "never"
    backend.pre_tokenizer = metaspace(scheme)
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    vocab = {piece: index for index, (piece, _) in enumerate(scored)}
    _add_marked(backend, data)
    backend.post_processor = templated(owner, settings, vocab)
    return backend


def unigram_pieces(
    owner, settings: dict, scored: list[tuple[str, float]] | None = None, unk_id: int | None = None
) -> Tokenizer:
    """Pieces of a SentencePiece file, numbered and cleaned as the class says (`front`, `skip`, `tail`,
    `quotes_cleaned`), or `scored` as they are.
    """
    cls = type(owner)
    _need(settings, owner, "vocab_file")
    data = read_sentencepiece(settings["vocab_file"])
    if scored is None:
        front, tail = (((token, 0.0) for token in tokens) for tokens in (cls.front, cls.tail))
        scored = [*front, *data.scored[cls.skip :], *tail]
    if cls.commas_apart:
        scored = [(piece, score - 100 if _is_number_comma(piece) else score) for piece, score in scored]
    if cls.worst:
        scored = [(piece, -100.0 if piece in cls.worst else score) for piece, score in scored]
    if unk_id is None:
        unk_id = data.unk_id if cls.unk_id is None else cls.unk_id
    model, data = _spm_model(settings["vocab_file"], scored, unk_id)
    backend = Tokenizer(model)
    backend.normalizer = (
        quotes_normalizer(data, settings, cls.cleaned_after) if cls.quotes_cleaned else spm_normalizer(data)
    )
    backend.pre_tokenizer = metaspace()
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    _add_marked(backend, data, settings.get("additional_special_tokens"))
    vocab = {piece: index for index, (piece, _) in enumerate(scored)}
    if isinstance(cls.layout, Layout) and cls.layout.single != "A":
        backend.post_processor = templated(owner, settings, vocab)
    return backend


def punctuated_pieces(owner, settings: dict) -> Tokenizer:
    """Stripped, perhaps lower-cased text in unigram pieces, perhaps cut at punctuation first; `[CLS] A
    [SEP] B [SEP]`.
    """
    backend = unigram_pieces(owner, settings)
    charsmap = read_sentencepiece(settings["vocab_file"]).normalizer.precompiled_charsmap
    steps: list = [normalizers.Lowercase()] if settings.get("do_lower_case") else []
    steps.append(normalizers.Strip())
    steps += [charsmap_normalizer(charsmap)] if charsmap else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    cuts: list = [pre_tokenizers.Punctuation(behavior="isolated")] if settings.get("split_by_punct") else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, metaspace()])
    return backend


def _is_number_comma(piece: str) -> bool:
    """Whether a piece ends in a digit and a comma, which Python classes cut apart."""
    return len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()


def quotes_normalizer(data, settings: dict, map_last: bool):
    """Plain quotes, accents and capitals as the settings say, then the file's character map and single
    spaces.
    """
    steps: list = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents"):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case"):
        steps.append(normalizers.Lowercase())
    charsmap = data.normalizer.precompiled_charsmap
    mapped = [charsmap_normalizer(charsmap)] if charsmap else []
    single = [normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps + (single + mapped if map_last else mapped + single))


def _byte_fallback_bpe(settings: dict, owner, first: tuple[str, ...] = (), renamed: dict | None = None):
    """The model of a SentencePiece file with byte fallback; `first` and `renamed` give pieces other names."""
    _need(settings, owner, "vocab_file")
    data = read_sentencepiece(settings["vocab_file"])
    renamed = renamed or {}
    scored = [(renamed.get(piece, piece), score) for piece, score in data.scored]
    scored[: len(first)] = [(piece, 0.0) for piece in first]
    if data.trainer.model_type != ModelType.BPE:
        return Tokenizer(models.Unigram(scored, unk_id=data.unk_id, byte_fallback=True)), data
    vocab = {piece: index for index, (piece, _) in enumerate(scored)}
    unknown = data.pieces[data.unk_id]
    return Tokenizer(
        models.BPE(vocab, bpe_merges(scored), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    ), data


def prefixed_pieces(owner, settings: dict) -> Tokenizer:
    """Llama: BPE with byte fallback; the space before the text by normaliser (legacy) or pre-tokenizer."""
    backend, _ = _byte_fallback_bpe(settings, owner)
    vocab = backend.get_vocab()
    texts = [str(settings["unk_token"]), str(settings["bos_token"]), str(settings["eos_token"])]
    prefix = settings.get("add_prefix_space") is not False
    legacy = settings.get("legacy") is not False
    if legacy:
        before = [normalizers.Prepend(SPACE)] if prefix else []
        backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    else:
        backend.pre_tokenizer = metaspace("first" if prefix else "never", split=False)
    steps: list = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    backend.add_tokens([AddedToken(text, normalized=False, special=True) for text in texts if text in vocab])
    return backend


def plain_pieces(owner, settings: dict) -> Tokenizer:
    """Gemma: BPE with byte fallback and nothing put before the text; the tab is a piece of its own."""
    first = tuple(str(settings[role]) for role in ("pad_token", "eos_token", "bos_token"))
    backend, data = _byte_fallback_bpe(settings, owner, first, {"<0x09>": "\t"})
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _add_marked(backend, data, settings.get("additional_special_tokens"))
    return backend


# ---------------------------------------------------------------------- bringing a loaded pipeline into line


def settle_cleaning(owner, settings: dict, given: dict) -> None:
    """The normaliser of a file follows `do_lower_case`, `strip_accents` and `tokenize_chinese_chars`."""
    backend = owner.backend_tokenizer
    if type(backend.normalizer) is not normalizers.BertNormalizer:
        return
    state = json.loads(backend.normalizer.__getstate__())
    wanted = {
        **state, "lowercase": settings["do_lower_case"], "strip_accents": settings.get("strip_accents"),
        "handle_chinese_chars": settings["tokenize_chinese_chars"],
    }  # fmt: skip
    if wanted != state:
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=wanted.get("clean_text", True),
            handle_chinese_chars=wanted["handle_chinese_chars"],
            strip_accents=wanted["strip_accents"],
            lowercase=wanted["lowercase"],
        )


def settle_frame(owner, settings: dict, given: dict) -> None:
    """The post-processor of a file follows `add_prefix_space` and `trim_offsets`."""
    from .fast import rebuilt

    backend = owner.backend_tokenizer
    if backend.post_processor is None:
        return
    state = json.loads(backend.post_processor.__getstate__())
    wanted = dict(state)
    for name in ("add_prefix_space", "trim_offsets"):
        if name in settings and state.get(name, settings[name]) != settings[name]:
            wanted[name] = settings[name]
    if wanted != state:
        backend.post_processor = rebuilt(backend.post_processor, wanted)


def settle_template(owner, settings: dict, given: dict) -> None:
    """The post-processor follows `add_bos_token` and `add_eos_token`."""
    for name in ("bos", "eos"):
        if getattr(owner, f"add_{name}_token", False) and getattr(owner, f"{name}_token") is None:
            raise ArgumentError(f"add_{name}_token=True needs a {name}_token, but there is none")
    owner.backend_tokenizer.post_processor = template(owner, type(owner).layout)


def settle_inner_prefix(owner, settings: dict, given: dict) -> None:
    """The byte-level step inside a sequence follows `add_prefix_space=True`."""
    backend = owner.backend_tokenizer
    if settings.get("add_prefix_space") and backend.pre_tokenizer is not None:
        data = json.loads(backend.to_str())

        def change(node):
            if isinstance(node, list):
                return [change(item) for item in node]
            if isinstance(node, dict):
                return {
                    key: True if key == "add_prefix_space" else change(value) for key, value in node.items()
                }
            return node

        data["pre_tokenizer"] = change(data["pre_tokenizer"])
        backend.pre_tokenizer = Tokenizer.from_str(json.dumps(data)).pre_tokenizer


def file_exists(owner) -> bool:
    """Whether the vocabulary file that a class copies on save is still there."""
    path = getattr(owner, "vocab_file", None)
    return path is not None and Path(path).is_file()
