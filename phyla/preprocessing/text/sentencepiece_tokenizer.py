"""Tokenizers built from SentencePiece models, with the ids that SentencePiece itself gives."""

import os
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from phyla.errors import TokenizerFileError
from phyla.preprocessing.text.charsmap import charsmap_normalizer
from phyla.preprocessing.text.sentencepiece_model import (
    ModelType,
    PieceType,
    SentencePieceModel,
    bpe_merges,
    read_sentencepiece,
)

SPACE = "\u2581"  # SentencePiece writes spaces as this block
_WORDS = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)
_NAMES = (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.BYTE)  # no text becomes these pieces


def from_sentencepiece(
    source: str | os.PathLike | SentencePieceModel,
    match_control: bool = True,
    add_dummy_prefix: bool | None = None,
    byte_fallback: bool | None = None,
) -> Tokenizer:
    """A tokenizer with the ids that SentencePiece itself gives, for a .model file or what was read from one.

    With `match_control` the names of control pieces ("</s>") in a text become their ids; SentencePiece itself
    takes them for plain text. `add_dummy_prefix` and `byte_fallback` stand in for the file's own settings. No
    post-processor is set. Raises MissingFileError or TokenizerFileError naming the path.
    """
    if isinstance(source, SentencePieceModel):
        model, where = source, "the SentencePiece model"
    else:
        model, where = read_sentencepiece(source), str(Path(source))
    prefix = model.normalizer.add_dummy_prefix if add_dummy_prefix is None else add_dummy_prefix
    tokenizer = Tokenizer(sentencepiece_core(model, where, byte_fallback))
    user_defined = (
        model.of_type(PieceType.USER_DEFINED) if model.trainer.model_type != ModelType.UNIGRAM else []
    )
    tokenizer.normalizer = _normalizer(model, where, prefix, [piece for _, piece in user_defined])
    cuts = []
    # Cutting before each space changes nothing when no piece has one inside, and lets the word cache work.
    if not model.trainer.treat_whitespace_as_suffix and not any(SPACE in piece[1:] for piece in model.pieces):
        cuts.append(pre_tokenizers.Split(SPACE, "merged_with_next"))
    names = [piece for _, piece in model.of_type(*_NAMES) if len(piece) > 1]
    if names and model.trainer.model_type == ModelType.UNIGRAM:
        # The unigram model would find them whole in a text.
        cuts.append(
            pre_tokenizers.Split(
                Regex("|".join(f"{_escaped(n[0])}(?={_escaped(n[1:])})" for n in names)), "isolated"
            )
        )
    if cuts:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = _decoder(prefix, model.trainer.treat_whitespace_as_suffix)
    # Runs of spaces cannot be met in a text whose spaces were collapsed.
    met = [
        piece
        for _, piece in user_defined
        if not model.normalizer.remove_extra_whitespaces or piece.strip(f" {SPACE}")
    ]
    tokenizer.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in met])
    if match_control:
        control = model.of_type(PieceType.CONTROL)
        tokenizer.add_special_tokens(
            [AddedToken(piece, normalized=False, special=True) for _, piece in control]
        )
    return tokenizer


def sentencepiece_core(
    model: SentencePieceModel, where: str = "the SentencePiece model", byte_fallback: bool | None = None
) -> models.Model:
    """The unigram, BPE or character model of the pieces, without normaliser or added tokens.

    Pieces that text never becomes (control, unknown, byte) get no merges.
    """
    fallback = model.trainer.byte_fallback if byte_fallback is None else byte_fallback
    kind = model.trainer.model_type
    if kind == ModelType.UNIGRAM:
        return _unigram(model, fallback)
    if kind == ModelType.WORD:
        raise TokenizerFileError(f"{where} is a word model; unigram, BPE and character models can be read")
    merges = []
    if kind == ModelType.BPE:
        rows = zip(model.pieces, model.scores, model.types, strict=True)
        merges = bpe_merges((piece, score) for piece, score, type_ in rows if type_ in _WORDS)
    unknown = model.pieces[model.unk_id]
    return models.BPE(model.vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback)


def _unigram(model: SentencePieceModel, fallback: bool) -> models.Unigram:
    normal = [
        score for score, kind in zip(model.scores, model.types, strict=True) if kind == PieceType.NORMAL
    ]
    best, worst = (max(normal), min(normal)) if normal else (0.0, 0.0)
    scored = []
    for piece, score, kind in zip(model.pieces, model.scores, model.types, strict=True):
        if kind == PieceType.USER_DEFINED:
            # SentencePiece's own score for them: better than any way to spell the same bytes.
            score = len(piece.encode()) * best - 0.1
        elif kind != PieceType.NORMAL:
            # An unknown character scores 10 less than the lowest of all, so no other piece may be lower.
            score = worst
        scored.append((piece, score))
    return models.Unigram(scored, unk_id=model.unk_id, byte_fallback=fallback)


def _normalizer(
    model: SentencePieceModel, where: str, prefix: bool, added: list[str]
) -> normalizers.Normalizer:
    spec = model.normalizer
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(charsmap_normalizer(spec.precompiled_charsmap, where))
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    if prefix:
        space = SPACE if spec.escape_whitespaces else " "
        # The names of added tokens pass through here too and must come out as they are, or they never match.
        but = f"(?!(?:{'|'.join(map(_escaped, added))})\\z)" if added else ""
        if model.trainer.treat_whitespace_as_suffix:
            steps.append(normalizers.Replace(Regex(r"(?<=[\s\S])\z"), space))
        elif but:
            steps.append(normalizers.Replace(Regex(r"\A(?=[\s\S])" + but), space))
        else:
            steps.append(normalizers.Prepend(space))
    return normalizers.Sequence(steps)


def _escaped(text: str) -> str:
    """A regular expression (of Oniguruma) for exactly this text."""
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def _decoder(prefix: bool, suffix: bool) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 0 if suffix else 1, 1 if suffix else 0))
    return decoders.Sequence(steps)
