"""Speech processors whose CTC output is decoded with an n-gram language model, by beam search."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phyla.checkpoints.configs import RESOLVE
from phyla.checkpoints.resolve import resolve
from phyla.errors import ArgumentError, MissingFileError, UnknownArgumentError, nearest, require

from .pairs import as_numpy
from .speech import Spoken

if TYPE_CHECKING:
    from .decoded import DecodedWithModel

_PACKAGE, _EXTRA, _WHY = "pyctcdecode", "ctc", "decoding with a language model"
_MODEL, _ALPHABET = "language_model", "alphabet.json"
_SEARCH = ("beam_width", "beam_prune_logp", "token_min_logp", "hotwords", "hotword_weight")
_WEIGHTS = ("alpha", "beta", "unk_score_offset", "score_boundary")


def _fetch_model(source: str, where: dict[str, Any]) -> None:
    """Bring the language model of a hub id into the cache; elsewhere it counts as weights."""
    hub = require("huggingface_hub", "hub", f"loading {source!r} from the hub")
    names = ("revision", "cache_dir", "token", "local_files_only")
    try:
        hub.snapshot_download(
            source,
            allow_patterns=[f"{_MODEL}/*", _ALPHABET],
            **{name: where[name] for name in names if name in where},
        )
    except (OSError, ValueError) as error:
        raise MissingFileError(f"{source!r} has no {_MODEL}/ that can be had: {error}") from error


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a search that are not None; pyctcdecode has defaults for the others."""
    unknown = sorted(set(options) - set(_SEARCH))
    if unknown:
        hint = nearest(unknown[0], _SEARCH)
        raise UnknownArgumentError(f"decoding takes no option {unknown[0]!r}.{hint}")
    return {name: value for name, value in options.items() if value is not None}


def greedy(logits: Any, tokenizer: Any, **options: Any) -> list[str]:
    """The texts of CTC logits (batch, frames, vocabulary) by the likeliest token of each frame."""
    return tokenizer.batch_decode(as_numpy(logits).argmax(-1), **options)


class SpokenWithModel(Spoken):
    """Sound and text, with a decoder that weighs the model's letters by a language model.

    The decoder comes from the package pyctcdecode; without it only `greedy` decoding is there.
    """

    @classmethod
    def _load_part(cls, name: str, folder: Path, options: dict[str, Any]) -> Any:
        options = dict(options)
        encoding = options.pop("unigram_encoding", "utf-8")
        if name != "decoder":
            return super()._load_part(name, folder, options)
        decoder = require(_PACKAGE, _EXTRA, _WHY).BeamSearchDecoderCTC
        if not (folder / _ALPHABET).is_file():
            raise MissingFileError(
                f"{folder} must have {_ALPHABET} (and {_MODEL}/) for a decoder, but has not"
            )
        return decoder.load_from_dir(str(folder), encoding)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **options: Any):
        """The processor of a folder or hub id that has `language_model/` and `alphabet.json`.

        alpha, beta, unk_score_offset and score_boundary go before what the files say of the language model;
        `unigram_encoding` is that of its word list.
        """
        require(_PACKAGE, _EXTRA, _WHY)
        weights = {name: options.pop(name, None) for name in _WEIGHTS}
        where = {name: value for name, value in options.items() if name in RESOLVE}
        folder = resolve(pretrained_model_name_or_path, **where, weights=False)
        if not os.path.lexists(os.path.expanduser(pretrained_model_name_or_path)):
            _fetch_model(os.fspath(pretrained_model_name_or_path), where)
        made = super().from_pretrained(pretrained_model_name_or_path, **options)
        missing = cls.get_missing_alphabet_tokens(made.decoder, made.tokenizer)
        if missing:
            raise ArgumentError(f"the alphabet in {folder} lacks tokens of the tokenizer: {sorted(missing)}")
        made._weigh(**weights)
        return made

    def _check_parts(self, given: dict[str, Any]) -> None:
        if given.get("decoder") is None:
            raise ArgumentError(f"{type(self).__name__} needs a decoder of {_PACKAGE}")
        if not hasattr(given["decoder"], "decode_beams"):
            raise ArgumentError(
                f"decoder must be a BeamSearchDecoderCTC of {_PACKAGE}, but is {given['decoder']!r}"
            )
        for name in ("feature_extractor", "tokenizer"):
            if given.get(name) is None:
                raise ArgumentError(f"{type(self).__name__} needs a part `{name}`, but there is none")

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> list[str]:  # type: ignore[override]
        """Write the files of the extractor, the tokenizer and the decoder."""
        for part in (self.feature_extractor, self.tokenizer):
            if hasattr(part, "_set_processor_class"):
                part._set_processor_class(type(self).__name__)
            part.save_pretrained(str(save_directory))
        self._save_decoder(Path(save_directory))
        return []

    def _save_decoder(self, folder: Path) -> None:
        """Write the decoder's files beside the others; pyctcdecode itself cannot write over older ones."""
        with tempfile.TemporaryDirectory(dir=folder, prefix=".decoder") as part:
            self.decoder.save_to_dir(part)
            written = [path.relative_to(part) for path in Path(part).rglob("*") if path.is_file()]
            (folder / _MODEL).mkdir(exist_ok=True)
            for name in written:
                os.replace(Path(part) / name, folder / name)
        for old in (folder / _MODEL).iterdir():
            if old.relative_to(folder) not in written:
                old.unlink()

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
        beams = self.decoder.decode_beams(as_numpy(logits), **_given(options))[:n_best]
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
        """The texts of CTC logits (batch, frames, vocabulary); frames of -100 are padding.

        `pool` (or `num_processes`, where processes can be forked) decodes on several processes.
        """
        self._weigh(alpha, beta, unk_score_offset, lm_score_boundary)
        arrays = [row[(row != -100.0).all(axis=-1)] for row in map(as_numpy, logits)]
        forks = pool is None and num_processes is not None and "fork" in get_all_start_methods()
        with get_context("fork").Pool(num_processes) if forks else nullcontext(pool) as workers:
            found = self.decoder.decode_beams_batch(workers, arrays, **_given(options))
        rows = [[(b[0], b[-2], b[-1], self._words(b[1])) for b in beams[:n_best]] for beams in found]
        return self._output(rows, output_word_offsets, n_best, single=False)

    def _weigh(self, alpha=None, beta=None, unk_score_offset=None, score_boundary=None) -> None:
        self.decoder.reset_params(
            alpha=alpha, beta=beta, unk_score_offset=unk_score_offset, lm_score_boundary=score_boundary
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
