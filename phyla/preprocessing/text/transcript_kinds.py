"""Speech recognition's byte-level tokenizers, in Python and on Rust."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from . import backends
from .byte_level import PythonByteLevel
from .fast_kinds import TableFast
from .more_pieces import split_at_added
from .transcripts import Transcripts


def forget_task(settings: dict) -> None:
    """Language and task belong to a session, so they are not saved."""
    for name in ("language", "task", "predict_timestamps"):
        settings.pop(name, None)


class PythonTranscripts(Transcripts, PythonByteLevel):
    """Byte-level BPE of transcripts in Python."""

    def _load(self, settings: dict, given: dict) -> None:
        super()._load(settings, given)
        self._take_spellings()
        forget_task(settings)

    def _convert_id_to_token(self, index: int) -> str:
        return self.ids_to_tokens.get(index, "")

    def _decode(  # type: ignore[override]
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        normalize=False,
        basic_normalize=False,
        remove_diacritics=False,
        use_source_tokenizer=False,
        spaces_between_special_tokens=True,
    ) -> str:
        text = "".join(split_at_added(self, token_ids, skip_special_tokens))
        return self._normal(text, normalize, basic_normalize, remove_diacritics)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocabulary, merges and spellings; returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        paths = super().save_vocabulary(save_directory, filename_prefix)
        return (*paths, self._save_spellings(Path(save_directory), prefix))


class FastTranscripts(Transcripts, TableFast):
    """Byte-level BPE of transcripts on Rust."""

    words_need_prefix_space = True

    def _load(self, settings: dict, given: dict) -> None:
        self._take_spellings()
        forget_task(settings)

    def _build_backend(self, settings: dict) -> Tokenizer:
        model, _ = backends.bpe(settings, self)
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings["add_prefix_space"]))
        backend.decoder = decoders.ByteLevel()
        self._built = True
        return backend

    def _settle(self, settings: dict) -> None:
        super()._settle(settings)
        if self.__dict__.pop("_built", False):
            self._prefix_changed()

    def _prefix_changed(self) -> None:
        ids = self.prefix_tokens
        tokens = self.convert_ids_to_tokens(ids)
        end = self.eos_token
        prefix = [f"{token}:0" for token in tokens]
        self._tokenizer.post_processor = TemplateProcessing(
            single=[*prefix, "$A:0", f"{end}:0"],
            pair=[*prefix, "$A:0", "$B:1", f"{end}:1"],
            special_tokens=[(end, self.eos_token_id), *zip(tokens, ids)],
        )

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=True,
        use_source_tokenizer=False,
        normalize=False,
        basic_normalize=False,
        remove_diacritics=False,
    ) -> str:
        text = super()._decode(
            token_ids,
            skip_special_tokens,
            clean_up_tokenization_spaces,
            spaces_between_special_tokens,
            use_source_tokenizer,
        )
        return self._normal(text, normalize, basic_normalize, remove_diacritics)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocabulary, merges and spellings; returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        paths = super().save_vocabulary(save_directory, filename_prefix)
        return (*paths, self._save_spellings(Path(save_directory), prefix))
