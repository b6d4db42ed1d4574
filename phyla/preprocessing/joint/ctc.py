"""Speech processors whose CTC output is decoded with an n-gram language model, by beam search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phyla.checkpoints.configs import RESOLVE
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, require

from .pairs import as_numpy
from .speech import Spoken

if TYPE_CHECKING:
    from .decoded import DecodedWithModel

_PACKAGE, _EXTRA = "pyctcdecode", "ctc"


def greedy(logits: Any, tokenizer: Any, **options: Any) -> list[str]:
    """The texts of CTC logits (batch, frames, vocabulary) by the likeliest token of each frame."""
    return tokenizer.batch_decode(as_numpy(logits).argmax(-1), **options)


class SpokenWithModel(Spoken):
    """Sound and text, with a decoder that weighs the model's letters by a language model.

    The decoder comes from the package pyctcdecode; without it only `greedy` decoding is there.
    """

    @classmethod
    def _load_part(cls, name: str, folder: Path, options: dict[str, Any]) -> Any:
        if name != "decoder":
            return super()._load_part(name, folder, options)
        decoder = require(_PACKAGE, _EXTRA, "decoding with a language model").BeamSearchDecoderCTC
        return decoder.load_from_dir(str(folder))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **options: Any):
        """The processor of a folder or hub id that has `language_model/` and `alphabet.json`."""
        require(_PACKAGE, _EXTRA, "decoding with a language model")
        made = super().from_pretrained(pretrained_model_name_or_path, **options)
        missing = cls.get_missing_alphabet_tokens(made.decoder, made.tokenizer)
        if missing:
            where = resolve(
                pretrained_model_name_or_path,
                **{k: v for k, v in options.items() if k in RESOLVE},
                weights=False,
            )
            raise ArgumentError(f"the alphabet in {where} lacks tokens of the tokenizer: {sorted(missing)}")
        return made

    def _check_parts(self, given: dict[str, Any]) -> None:
        if given.get("decoder") is None:
            raise ArgumentError(f"{type(self).__name__} needs a decoder of {_PACKAGE}")
        for name in ("feature_extractor", "tokenizer"):
            if given.get(name) is None:
                raise ArgumentError(f"{type(self).__name__} needs a part `{name}`, but there is none")

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> list[str]:  # type: ignore[override]
        """Write the files of the extractor, the tokenizer and the decoder."""
        for part in (self.feature_extractor, self.tokenizer):
            if hasattr(part, "_set_processor_class"):
                part._set_processor_class(type(self).__name__)
            part.save_pretrained(str(save_directory))
        self.decoder.save_to_dir(str(save_directory))
        return []

    @property
    def language_model(self) -> Any:
        """The n-gram model of the decoder."""
        return self.decoder.model_container[self.decoder._model_key]

    @staticmethod
    def get_missing_alphabet_tokens(decoder: Any, tokenizer: Any) -> set[str]:
        """Tokens of the vocabulary that the decoder's alphabet does not have."""
        names = [name.replace(" ", "") if name.strip() else name for name in tokenizer.get_vocab()]
        alphabet = set(decoder._alphabet.labels)
        blank, space = tokenizer.pad_token, tokenizer.word_delimiter_token
        renamed = {blank: "", space: " ", tokenizer.unk_token: "⁇"}
        return (
            {
                renamed.get(name, name.lower() if getattr(tokenizer, "do_lower_case", False) else name)
                for name in names
            }
            - alphabet
            - {"<s>", "</s>"}
        )

    def _words(self, offsets: Sequence) -> list[dict[str, Any]]:
        return [{"word": word, "start_offset": start, "end_offset": end} for word, (start, end) in offsets]

    def decode(
        self,
        logits: Any,
        output_word_offsets: bool = False,
        n_best: int = 1,
        alpha: float | None = None,
        beta: float | None = None,
        unk_score_offset: float | None = None,
        lm_score_boundary: bool | None = None,
        **options: Any,
    ) -> DecodedWithModel:
        """The text of CTC logits (frames, vocabulary); lists of `n_best` texts where that is above 1.

        alpha and beta weigh the language model and the number of words; beam_width, beam_prune_logp,
        token_min_logp, hotwords, hotword_weight bound and steer the search.
        """
        self._weigh(alpha, beta, unk_score_offset, lm_score_boundary)
        beams = self.decoder.decode_beams(as_numpy(logits), **options)[:n_best]
        rows = [(beam[0], beam[-2], beam[-1], self._words(beam[2])) for beam in beams]
        return self._output([rows], output_word_offsets, n_best, single=True)

    def batch_decode(
        self,
        logits: Any,
        pool: Any = None,
        num_processes: int | None = None,
        output_word_offsets: bool = False,
        n_best: int = 1,
        alpha: float | None = None,
        beta: float | None = None,
        unk_score_offset: float | None = None,
        lm_score_boundary: bool | None = None,
        **options: Any,
    ) -> DecodedWithModel:
        """The texts of CTC logits (batch, frames, vocabulary); rows may end in -100, which is cut off."""
        self._weigh(alpha, beta, unk_score_offset, lm_score_boundary)
        arrays = [row[row[:, 0] != -100.0, :] for row in as_numpy(logits)]
        found = self.decoder.decode_beams_batch(pool, arrays, **options)
        rows = [[(b[0], b[-2], b[-1], self._words(b[1])) for b in beams[:n_best]] for beams in found]
        return self._output(rows, output_word_offsets, n_best, single=False)

    def _weigh(self, alpha, beta, unk_score_offset, lm_score_boundary) -> None:
        if any(one is not None for one in (alpha, beta, unk_score_offset, lm_score_boundary)):
            self.decoder.reset_params(
                alpha=alpha,
                beta=beta,
                unk_score_offset=unk_score_offset,
                lm_score_boundary=lm_score_boundary,
            )

    @staticmethod
    def _output(rows: list, offsets: bool, n_best: int, single: bool) -> DecodedWithModel:
        fields = []
        for place in range(4):
            column = [[beam[place] for beam in beams] for beams in rows]
            picked: Any = [beams[0] for beams in column] if n_best == 1 else column
            fields.append(picked[0] if single else picked)
        from .decoded import DecodedWithModel

        return DecodedWithModel(
            text=fields[0],
            logit_score=fields[1],
            lm_score=fields[2],
            word_offsets=fields[3] if offsets else None,
        )
