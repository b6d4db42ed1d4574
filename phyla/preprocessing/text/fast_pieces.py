"""Unigram tokenizers on Rust with a numbering or a call of their own."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from phyla.errors import TokenizerInputError

from . import backends
from .base import CallOptions
from .batch import BatchEncoding
from .fast_kinds import FastPieces, FastPrefixedPieces
from .rust import read_tokenizer
from .sentencepiece_model import read_sentencepiece
from .shifted_pieces import InfillTokens, SpokenLanguages
from .translated_pieces import MaskedEnds, with_placeholders


class FastOffsetPieces(MaskedEnds, FastPieces):
    """Ids of the model file moved up behind masks and unused tokens."""

    def _load(self, settings: dict, given: dict) -> None:
        with_placeholders(settings, type(self).__name__)
        usual = self.row.special
        changed = any(str(settings[role]) != usual[role] for role in ("pad_token", "eos_token", "unk_token"))
        settings["from_slow"] = settings.get("from_slow") or (
            changed and settings.get("vocab_file") is not None
        )
        settings.pop("added_tokens_decoder", None)

    def _build_backend(self, settings: dict) -> Tokenizer:
        front = [str(settings["pad_token"]), str(settings["eos_token"])]
        masks = [settings["mask_token_sent"], settings["mask_token"]]
        front += [str(mask) for mask in masks if mask is not None]
        unused = [f"<unk_{i}>" for i in range(2, settings["offset"])]
        data = read_sentencepiece(settings["vocab_file"])
        scored = [*((t, 0.0) for t in front), *((t, -100.0) for t in unused), *data.scored[2:]]
        backend = backends.unigram_pieces(self, settings, scored, data.unk_id + settings["offset"])
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), backends.metaspace()]
        )
        return backend

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens one sequence or a pair gets."""
        return self._tokenizer.num_special_tokens_to_add(pair)

    def _special_token_mask(self, ids: list[int]) -> list[int]:
        special = set(self.all_special_ids) - {self.unk_token_id}
        if special != set(range(len(self.additional_special_tokens) + 3)):
            raise TokenizerInputError(
                "special tokens must be mask, padding, end and the additional ones, with the first ids,"
                f" but have the ids {sorted(special)}"
            )
        return [int(index in special) for index in ids]


class FastSpokenLanguagePieces(SpokenLanguages, FastPieces):
    """Pieces one id up behind a padding token, with codes of spoken languages."""

    front = ("<pad>", "<unk>", "<s>", "</s>")
    skip = 3
    unk_id = 1

    @staticmethod
    def _read(tokenizer_file, settings: dict) -> Tokenizer:
        # the vocabulary holds a piece twice, so that the first language has the id of the last piece
        return read_tokenizer(Path(tokenizer_file), shared_ids=True)[0]

    def _load(self, settings: dict, given: dict) -> None:
        self.src_lang, self.tgt_lang = settings["src_lang"], settings["tgt_lang"]

    def _build_backend(self, settings: dict) -> Tokenizer:
        backend = backends.unigram_pieces(self, settings)
        backend.pre_tokenizer = backends.metaspace("first")
        backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
        return backend

    def _settle(self, settings: dict) -> None:
        super()._settle(settings)
        self.__dict__.pop("_code", None)
        self._use(self.src_lang)
        self._use(self.tgt_lang, target=True)


class FastInfillPieces(InfillTokens, FastPrefixedPieces):
    """Byte-fallback BPE of a text, or of what stands before and after a gap."""

    call_options: tuple[str, ...] = ("suffix", "suffix_first")

    def _load(self, settings: dict, given: dict) -> None:
        self._take_infill(settings)

    def set_infilling_processor(
        self, reset: bool, suffix_first: bool = False, add_special_tokens: bool = True
    ) -> None:
        """Make the pipeline one for texts with a gap, or (`reset`) the usual one."""
        space = normalizers.Replace(" ", "▁")
        if reset:
            self._tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
            self.update_post_processor()
            return
        self._tokenizer.normalizer = space
        prefix, middle, suffix = self.prefix_token, self.middle_token, self.suffix_token
        parts = [prefix, suffix, "$B", middle, "$A"] if suffix_first else [prefix, "$A", suffix, "$B", middle]
        start = [self.bos_token] if self.add_bos_token and add_special_tokens else []
        end = [self.eos_token] if self.add_eos_token and add_special_tokens else []
        used = [*start, prefix, middle, suffix, *end]
        self._tokenizer.post_processor = TemplateProcessing(
            single="$A",
            pair=[*start, *parts, *end],
            special_tokens=[(token, self.convert_tokens_to_ids(token)) for token in used],
        )

    def _encode_plus(self, text, text_pair, options: CallOptions) -> BatchEncoding:
        extra = dict(options.extra)
        text_pair = extra.get("suffix", text_pair)
        if self.fill_token is not None and self.fill_token in text and text_pair is None:
            text, text_pair = text.split(self.fill_token)
        if not text_pair:
            return super()._encode_plus(text, text_pair, options)
        self._infill_needs()
        self.set_infilling_processor(False, extra.get("suffix_first", False), options.add_special_tokens)
        text = " " + text
        try:
            return super()._encode_plus(text, text_pair, replace(options, add_special_tokens=True))
        finally:
            self.set_infilling_processor(True)
