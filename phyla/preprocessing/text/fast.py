"""PreTrainedTokenizerFast: tokenizers that run on the Rust library, with alignments."""

import copy
import json
import threading
from pathlib import Path

from tokenizers import Tokenizer, processors
from tokenizers.decoders import Decoder

from phyla.errors import TokenizerFileError, TokenizerInputError

from .base import CallOptions, PreTrainedTokenizerBase
from .batch import BatchEncoding
from .files import TOKENIZER_FILE
from .rust import encode_batch, panics_as, read_tokenizer
from .strategy import PaddingStrategy, TruncationStrategy
from .tokens import AddedToken


class PreTrainedTokenizerFast(PreTrainedTokenizerBase):
    """A tokenizer on a Rust `tokenizers.Tokenizer`: from `tokenizer_object`, `tokenizer_file` or vocabulary
    files.
    """

    is_fast = True
    vocab_files_names = {"tokenizer_file": TOKENIZER_FILE, "vocab_file": "tokenizer.model"}
    words_need_prefix_space = False

    def __init__(self, *files, **settings):
        backend = settings.pop("tokenizer_object", None)
        tokenizer_file = settings.pop("tokenizer_file", None)
        from_slow = settings.pop("from_slow", False)
        added = settings.pop("added_tokens_decoder", None) or {}
        self.add_prefix_space = settings.get("add_prefix_space", False)
        if backend is not None:
            backend = copy.deepcopy(backend)
        elif tokenizer_file is not None and not from_slow:
            backend = self._read(tokenizer_file, settings)
        else:
            backend = self._build_backend(settings)
        self._tokenizer: Tokenizer = backend
        self._lock = threading.Lock()
        self._take_stored_settings(settings)
        super().__init__(**settings)
        self._tokenizer.encode_special_tokens = self.split_special_tokens
        self._add_missing(added)
        self._settle(settings)

    @staticmethod
    def _read(tokenizer_file, settings: dict) -> Tokenizer:
        return read_tokenizer(Path(tokenizer_file))[0]

    def _build_backend(self, settings: dict) -> Tokenizer:
        """A Rust tokenizer from the vocabulary files named in the settings."""
        if settings.get("vocab_file"):
            from .convert import from_tiktoken

            return from_tiktoken(settings["vocab_file"])
        raise TokenizerFileError(
            f"{type(self).__name__} needs tokenizer_file or tokenizer_object, but got neither"
        )

    def _take_stored_settings(self, settings: dict) -> None:
        """Limits that a tokenizer.json brings become settings of the calls that ask for truncation or
        padding.
        """
        truncation, padding = self._tokenizer.truncation, self._tokenizer.padding
        if truncation is not None:
            settings.setdefault("max_length", truncation["max_length"])
            settings.setdefault("truncation_side", truncation["direction"])
            settings.setdefault("stride", truncation["stride"])
            settings.setdefault("truncation_strategy", truncation["strategy"])
        if padding is not None:
            settings.setdefault("pad_token", padding["pad_token"])
            settings.setdefault("pad_token_type_id", padding["pad_type_id"])
            settings.setdefault("padding_side", padding["direction"])
            settings.setdefault("max_length", padding["length"])
            settings.setdefault("pad_to_multiple_of", padding["pad_to_multiple_of"])

    def _add_missing(self, added: dict[int, AddedToken]) -> None:
        """Give the Rust tokenizer the added tokens of the settings and all special tokens."""
        tokens: list = [token for _, token in sorted(added.items())]
        names = {*self.added_tokens_encoder, *map(str, tokens)}
        known = {token.content: token for token in self.added_tokens_decoder.values()}
        for token in self.all_special_tokens_extended:
            if str(token) not in names:
                tokens.append(token)
            elif (
                isinstance(token, AddedToken)
                and token not in tokens
                and _spaces(token) != _spaces(known.get(token.content))
            ):
                tokens.append(
                    token
                )  # it says which spaces it takes, and replaces the plain entry of the pipeline
        special = set(self.all_special_tokens)
        ready: list[AddedToken] = []
        for token in tokens:
            is_special = str(token) in special or getattr(token, "special", False)
            if isinstance(token, str):
                token = AddedToken(token, special=is_special)
            else:
                token.special = is_special
            ready.append(token)
        if ready:
            self.add_tokens(ready)

    def _settle(self, settings: dict) -> None:
        """Bring the pipeline of a file into line with settings that differ from it."""
        pre = self._tokenizer.pre_tokenizer
        if pre is None:
            return
        try:
            state = json.loads(pre.__getstate__())
        except Exception:
            return  # a pre-tokenizer written in Python keeps its own settings
        if state.get("add_prefix_space", self.add_prefix_space) != self.add_prefix_space:
            state["add_prefix_space"] = self.add_prefix_space
            self._tokenizer.pre_tokenizer = rebuilt(pre, state)

    # ------------------------------------------------------------------ vocabulary

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The Rust tokenizer."""
        return self._tokenizer

    @property
    def decoder(self) -> Decoder:
        """The Rust decoder."""
        return self._tokenizer.decoder

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        """The size of the vocabulary with added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _renamed(self) -> dict[int, str]:
        """Added tokens whose text the Rust library gives back normalised, by id."""
        if "_renamed_kept" not in self.__dict__:
            added = self._tokenizer.get_added_tokens_decoder().items()
            named = {i: t.content for i, t in added if self._tokenizer.id_to_token(i) != t.content}
            object.__setattr__(self, "_renamed_kept", named)
        return self._renamed_kept

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        for index, text in self._renamed().items():
            vocab.pop(str(self._tokenizer.id_to_token(index)), None)
            vocab[text] = index
        return vocab

    @property
    def vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to added token, by id."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    def get_added_vocab(self) -> dict[str, int]:
        """Text to id of the added tokens."""
        return self.added_tokens_encoder

    def _add_tokens(self, new_tokens, special_tokens: bool = False) -> int:
        self.__dict__.pop("_renamed_kept", None)
        return (
            self._tokenizer.add_special_tokens(new_tokens)
            if special_tokens
            else self._tokenizer.add_tokens(new_tokens)
        )

    def _convert_token_to_id_with_added_voc(self, token: str) -> int | None:
        index = self._tokenizer.token_to_id(token)
        if index is None and self.unk_token is not None:
            return self._tokenizer.token_to_id(self.unk_token)
        return index

    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False):
        """The token of an id, or the tokens of a list of ids."""
        if isinstance(ids, int):
            return self._token_of(ids)
        special = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._token_of(index) for index in map(int, ids) if index not in special]

    def _token_of(self, index: int) -> str | None:
        renamed = self._renamed().get(index)
        if renamed is not None:
            return renamed
        return self._tokenizer.id_to_token(index) if 0 <= index < 2**32 else None

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens one sequence or a pair gets."""
        return self._tokenizer.num_special_tokens_to_add(pair)

    # ------------------------------------------------------------------ encoding

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options
    ) -> list[str]:
        """The tokens of a text (and of a second one)."""
        return self.encode_plus(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def _set_lengths(self, options: CallOptions) -> None:
        plan = self._plan_of(options)
        if plan.truncation is TruncationStrategy.DO_NOT_TRUNCATE:
            if self._tokenizer.truncation is not None:
                self._tokenizer.no_truncation()
        else:
            target = {
                "max_length": plan.max_length, "stride": options.stride, "strategy": plan.truncation.value,
                "direction": self.truncation_side,
            }  # fmt: skip
            current = self._tokenizer.truncation
            if current is None or {key: current.get(key) for key in target} != target:
                self._enable_truncation(target)
        if plan.padding is PaddingStrategy.DO_NOT_PAD:
            if self._tokenizer.padding is not None:
                self._tokenizer.no_padding()
            return
        target = {
            "length": plan.max_length if plan.padding is PaddingStrategy.MAX_LENGTH else None,
            "direction": self.padding_side if options.padding_side is None else options.padding_side,
            "pad_id": self.pad_token_id, "pad_token": self.pad_token, "pad_type_id": self.pad_token_type_id,
            "pad_to_multiple_of": options.pad_to_multiple_of,
        }  # fmt: skip
        if target["direction"] not in ("right", "left"):
            raise TokenizerInputError(
                f"padding_side must be 'right' or 'left', but is {target['direction']!r}"
            )
        if self._tokenizer.padding != target:
            self._tokenizer.enable_padding(**target)

    def _enable_truncation(self, target: dict) -> None:
        try:
            with panics_as(TokenizerInputError):
                self._tokenizer.enable_truncation(**target)
        except (ValueError, OverflowError) as error:
            raise TokenizerInputError(
                f"max_length ({target['max_length']}) with stride ({target['stride']}): {error}"
            ) from error

    def _batch_encode_plus(self, batch, options: CallOptions) -> BatchEncoding:
        if options.is_split_into_words and self.words_need_prefix_space and not self.add_prefix_space:
            raise TokenizerInputError(
                f"is_split_into_words needs add_prefix_space=True with {type(self).__name__}:"
                " set it when you load"
            )
        with self._lock:  # lengths are state of the Rust tokenizer, which threads may share
            self._set_lengths(options)
            split = (
                self.split_special_tokens
                if options.split_special_tokens is None
                else options.split_special_tokens
            )
            if self._tokenizer.encode_special_tokens != split:
                self._tokenizer.encode_special_tokens = split
            encodings = encode_batch(
                self._tokenizer,
                batch,
                options.add_special_tokens,
                options.is_split_into_words,
                type(self).__name__,
            )
        rows: dict[str, list] = {}
        flat, source = [], []
        for i, encoding in enumerate(encodings):
            parts = [encoding, *encoding.overflowing] if options.return_overflowing_tokens else [encoding]
            for part in parts:
                flat.append(part)
                source.append(i)
                self._add_row(rows, part, options)
        if not flat:
            rows = {self.model_input_names[0]: []}
        if options.return_overflowing_tokens:
            rows["overflow_to_sample_mapping"] = source
        for row in rows.get(self.model_input_names[0], ()):
            self._warn_if_long(row, options.max_length)
        return BatchEncoding(rows, flat, tensor_type=options.return_tensors)

    def _add_row(self, rows: dict, part, options: CallOptions) -> None:
        row = {"input_ids": part.ids}
        if self._wants("token_type_ids", options.return_token_type_ids):
            row["token_type_ids"] = part.type_ids
        if self._wants("attention_mask", options.return_attention_mask):
            row["attention_mask"] = part.attention_mask
        if options.return_special_tokens_mask:
            row["special_tokens_mask"] = part.special_tokens_mask
        if options.return_offsets_mapping:
            row["offset_mapping"] = part.offsets
        if options.return_length:
            row["length"] = len(row["input_ids"])
        for key, value in row.items():
            rows.setdefault(key, []).append(value)

    def _encode_plus(self, text, text_pair, options: CallOptions) -> BatchEncoding:
        batch = self._batch_encode_plus([(text, text_pair) if text_pair is not None else text], options)
        if options.return_tensors is not None or options.return_overflowing_tokens:
            return batch
        single = {k: v[0] if len(v) and isinstance(v[0], list) else v for k, v in batch.items()}
        return BatchEncoding(single, batch.encodings)

    # ------------------------------------------------------------------ decoding

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        decoder = self._tokenizer.decoder
        return decoder.decode(tokens) if decoder is not None else " ".join(tokens)

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=True,
        use_source_tokenizer=False,
    ) -> str:
        self._decode_use_source_tokenizer = use_source_tokenizer
        with panics_as(TokenizerInputError):
            if self._renamed().keys() & set(token_ids):
                text = self._decode_by_token(token_ids, skip_special_tokens)
            else:
                text = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return self._cleaned(text, clean_up_tokenization_spaces)

    def _decode_by_token(self, token_ids, skip_special_tokens: bool) -> str:
        """What the Rust library does, with the added tokens' own texts."""
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        kept = [i for i in token_ids if not (skip_special_tokens and i in special)]
        tokens = [token for token in map(self._token_of, kept) if token is not None]
        return self.convert_tokens_to_string(tokens)

    # ------------------------------------------------------------------ files and training

    def _save_files(self, folder: Path, prefix: str, legacy_format: bool | None) -> list[str]:
        paths = []
        has_slow = self.slow_tokenizer_class is not None and self.can_save_slow_tokenizer
        if legacy_format and not has_slow:
            raise TokenizerFileError(
                f"{type(self).__name__} has only tokenizer.json to save: leave legacy_format out"
            )
        if legacy_format is not False and has_slow:
            paths += [
                *self.save_vocabulary(str(folder), filename_prefix=prefix[:-1] or None),
                *self._save_added(folder, prefix),
            ]
        if not legacy_format:
            target = folder / (prefix + TOKENIZER_FILE)
            part = target.with_name(target.name + ".part")
            self._tokenizer.save(str(part))
            part.replace(target)
            paths.append(str(target))
        return paths

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary files of the model's own kind to a folder; returns their paths."""
        with panics_as(TokenizerFileError):
            return tuple(self._tokenizer.model.save(save_directory, filename_prefix))

    def train_new_from_iterator(
        self,
        text_iterator,
        vocab_size: int,
        length: int | None = None,
        new_special_tokens=None,
        special_tokens_map: dict | None = None,
        **trainer_settings,
    ):
        """A tokenizer of the same kind and pipeline with a vocabulary of `vocab_size` learnt from texts."""
        from .training import trained

        return trained(
            self, text_iterator, vocab_size, length, new_special_tokens, special_tokens_map, trainer_settings
        )


def _spaces(token: AddedToken | None) -> tuple | None:
    return None if token is None else (token.lstrip, token.rstrip, token.single_word)


def rebuilt(component, state: dict):
    """A component of a pipeline with another state."""
    twin = copy.deepcopy(component)
    twin.__setstate__(json.dumps(state).encode())
    return twin


def byte_level(trim_offsets: bool = False):
    """The post-processor of byte-level models."""
    return processors.ByteLevel(trim_offsets=trim_offsets)
