"""Unigram tokenizers on Rust with a numbering or a call of their own."""

from tokenizers import Tokenizer, pre_tokenizers

from phyla.errors import TokenizerInputError

from . import backends
from .fast_kinds import CopiesModel, FastPieces
from .sentencepiece_model import read_sentencepiece
from .translated_pieces import MaskedEnds, with_placeholders


class FastOffsetPieces(MaskedEnds, FastPieces):
    """Ids of the model file moved up behind masks and unused tokens."""

    def _load(self, settings: dict, given: dict) -> None:
        with_placeholders(settings, type(self).__name__)
        usual = self.row.special
        changed = any(str(settings[role]) != usual[role] for role in ("pad_token", "eos_token", "unk_token"))
        settings["from_slow"] = settings.get("from_slow") or (changed and settings.get("vocab_file") is not None)
        settings.pop("added_tokens_decoder", None)

    def _build_backend(self, settings: dict) -> Tokenizer:
        front = [str(settings["pad_token"]), str(settings["eos_token"])]
        masks = [settings["mask_token_sent"], settings["mask_token"]]
        front += [str(mask) for mask in masks if mask is not None]
        unused = [f"<unk_{i}>" for i in range(2, settings["offset"])]
        data = read_sentencepiece(settings["vocab_file"])
        scored = [*((t, 0.0) for t in front), *((t, -100.0) for t in unused), *data.scored[2:]]
        backend = backends.unigram_pieces(self, settings, scored, data.unk_id + settings["offset"])
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), backends.metaspace()])
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
