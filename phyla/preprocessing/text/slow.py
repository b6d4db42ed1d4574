"""PreTrainedTokenizer: tokenizers whose text handling is Python, split at added tokens by longest match."""

import re
from pathlib import Path

from phyla.errors import TokenizerInputError

from .base import CallOptions, PreTrainedTokenizerBase, check_unicode
from .batch import BatchEncoding
from .strategy import Plan
from .tokens import LIST_ROLE, AddedToken


class OffsetsError(TokenizerInputError, NotImplementedError):
    """Offsets asked of a tokenizer that does not keep them."""


class PreTrainedTokenizer(PreTrainedTokenizerBase):
    """A tokenizer in Python. A class of its own gives `_tokenize(text)`, `_convert_token_to_id(token)`,
    `_convert_id_to_token(index)`, `vocab_size`, `get_vocab()` and `save_vocabulary(folder)`.
    """

    def __init__(self, **settings):
        self._added_tokens_decoder: dict[int, AddedToken] = {}
        self._added_tokens_decoder.update(settings.pop("added_tokens_decoder", None) or {})
        self._index_added_tokens()
        super().__init__(**settings)
        known = self._added_tokens_encoder
        self._add_tokens(
            [t for t in self.all_special_tokens_extended if str(t) not in known], special_tokens=True
        )
        for token in self.all_special_tokens_extended:
            if isinstance(token, AddedToken) and not token.special:  # it was an added token before
                token.__setstate__({"special": True, "normalized": token.normalized})

    # ------------------------------------------------------------------ vocabulary

    def _index_added_tokens(self) -> None:
        self._added_tokens_encoder = {
            str(token): index for index, token in self._added_tokens_decoder.items()
        }
        self._index_splits()

    def _index_splits(self) -> None:
        by_length = sorted(self._added_tokens_encoder, key=len, reverse=True)
        self._splitter = re.compile("|".join(map(re.escape, by_length))) if by_length else None

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to added token, by id."""
        return dict(sorted(self._added_tokens_decoder.items()))

    @added_tokens_decoder.setter
    def added_tokens_decoder(self, value: dict[int, AddedToken | str]) -> None:
        self._added_tokens_decoder = {
            index: AddedToken(token) if isinstance(token, str) else token for index, token in value.items()
        }
        self._index_added_tokens()

    def get_added_vocab(self) -> dict[str, int]:
        """Text to id of the added tokens."""
        return dict(self._added_tokens_encoder)

    def __len__(self) -> int:
        """The size of the vocabulary with added tokens."""
        kept = self.__dict__.get("_length")
        if kept is None or kept[0] is not self._added_tokens_encoder:
            kept = self._length = (self._added_tokens_encoder, len(self.get_vocab()))
        return kept[1]

    def _add_tokens(self, new_tokens, special_tokens: bool = False) -> int:
        vocabulary = dict(self.get_vocab())
        self._added_tokens_encoder = dict(self._added_tokens_encoder)
        added, next_id = 0, len(vocabulary)
        for token in new_tokens:
            if str(token) == "":
                continue
            if isinstance(token, str):
                if token in self._added_tokens_encoder:
                    continue
                special = special_tokens or token in self.all_special_tokens
                token = AddedToken(token, normalized=not special, special=special)
            elif special_tokens:
                token.__setstate__({"special": True, "normalized": token.normalized})
            if token in self._added_tokens_decoder.values():
                continue
            if not token.special and token.normalized and getattr(self, "do_lower_case", False):
                token.content = token.content.lower()
            if token.content in vocabulary:
                index = vocabulary[token.content]
            else:
                index = vocabulary[token.content] = next_id + added
                added += 1
            if token.special and token.content not in self.all_special_tokens:
                self._special_tokens_map[LIST_ROLE].append(token)
            self._added_tokens_decoder[index] = token
            self._added_tokens_encoder[token.content] = index
        self._index_splits()
        return added

    def _convert_token_to_id_with_added_voc(self, token):
        if token is None:
            return None
        if token in self._added_tokens_encoder:
            return self._added_tokens_encoder[token]
        return self._convert_token_to_id(token)

    def _convert_token_to_id(self, token: str) -> int | None:
        vocabulary = self.get_vocab()
        return vocabulary.get(token, vocabulary.get(self.unk_token))

    def _convert_id_to_token(self, index: int) -> str | None:
        return next((token for token, i in self.get_vocab().items() if i == index), None)

    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False):
        """The token of an id, or the tokens of a list of ids."""
        if isinstance(ids, int):
            added = self._added_tokens_decoder.get(ids)
            return self._convert_id_to_token(ids) if added is None else added.content
        special = set(self.all_special_ids) if skip_special_tokens else ()
        tokens = []
        for index in map(int, ids):
            if index not in special:
                added = self._added_tokens_decoder.get(index)
                tokens.append(self._convert_id_to_token(index) if added is None else added.content)
        return tokens

    # ------------------------------------------------------------------ text to tokens

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **options
    ) -> tuple[str, dict]:
        """Hook: change a text before it is split; returns it and the options that are left."""
        return text, options

    def _tokenize(self, text: str) -> list[str]:
        raise NotImplementedError(f"{type(self).__name__} must define _tokenize(text)")

    def tokenize(self, text: str, pair=None, add_special_tokens: bool = False, **options) -> list[str]:
        """The tokens of a text; added tokens stay whole."""
        if not isinstance(text, str):
            raise TokenizerInputError(f"text must be a string, but is {text!r} ({type(text).__name__})")
        check_unicode(text)
        split_special = options.pop("split_special_tokens", None)
        split_special = self.split_special_tokens if split_special is None else split_special
        text, _ = self.prepare_for_tokenization(text, **options)
        if getattr(self, "do_lower_case", False):
            text = self._lowered(text)
        added = {} if split_special else self._added_tokens_encoder
        tokens = []
        for piece in self._pieces(text) if added else [text]:
            if not piece:
                continue
            if piece in added:
                tokens.append(piece)
            else:
                tokens.extend(self._tokenize(piece))
        return tokens

    def _lowered(self, text: str) -> str:
        """Lower case all but special tokens and added tokens that are matched before normalisation."""
        kept = list(self.all_special_tokens)
        kept += [t.content for t in self._added_tokens_decoder.values() if not t.special and t.normalized]
        pattern = "|".join(map(re.escape, kept))
        if not pattern:
            return text.lower()
        return re.sub(f"({pattern})|(.+?)", lambda m: m.group(1) or m.group(2).lower(), text)

    def _pieces(self, text: str) -> list[str]:
        """The text cut at added tokens, with the spaces that these swallow taken off their neighbours."""
        pieces, end = [], 0
        for match in self._splitter.finditer(text) if self._splitter is not None else ():
            if match.start() > end:
                pieces.append(text[end : match.start()])
            pieces.append(match.group())
            end = match.end()
        if end < len(text):
            pieces.append(text[end:])
        for i, piece in enumerate(pieces):
            index = self._added_tokens_encoder.get(piece)
            if index is None:
                continue
            token = self._added_tokens_decoder[index]
            left = pieces[i - 1] if i > 0 else None
            right = pieces[i + 1] if i < len(pieces) - 1 else None
            if token.rstrip and right:
                pieces[i + 1] = right.lstrip()
            if token.lstrip and left:
                pieces[i - 1] = left.rstrip()
            if token.single_word and left and left[-1] != " ":
                pieces[i - 1] += piece
                pieces[i] = ""
            elif token.single_word and right and right[0] != " ":
                pieces[i + 1] = piece + pieces[i + 1]
                pieces[i] = ""
        return pieces

    # ------------------------------------------------------------------ encoding

    def _ids_of(self, text, options: CallOptions) -> list[int]:
        """Ids of a text, of split words, or of a list of tokens or ids."""
        extra = dict(options.extra)
        if options.split_special_tokens is not None:
            extra["split_special_tokens"] = options.split_special_tokens
        if isinstance(text, str):
            return self.convert_tokens_to_ids(self.tokenize(text, **extra))
        if isinstance(text, (list, tuple)) and (not text or isinstance(text[0], str)):
            if options.is_split_into_words:
                extra["is_split_into_words"] = True
                return self.convert_tokens_to_ids(
                    [token for word in text for token in self.tokenize(word, **extra)]
                )
            return self.convert_tokens_to_ids(list(text))
        if isinstance(text, (list, tuple)) and isinstance(text[0], int):
            return list(text)
        raise TokenizerInputError(
            f"text must be a string, a list of strings or a list of ids, but is {text!r}"
        )

    @staticmethod
    def _refuse_offsets(options: CallOptions) -> None:
        if options.return_offsets_mapping:
            raise OffsetsError(
                "return_offsets_mapping needs a fast tokenizer: load it with AutoTokenizer or a ...Fast class"
            )

    def _encode_plus(self, text, text_pair, options: CallOptions) -> BatchEncoding:
        self._refuse_offsets(options)
        first = self._ids_of(text, options)
        second = self._ids_of(text_pair, options) if text_pair is not None else None
        return self.prepare_for_model(
            first,
            second,
            add_special_tokens=options.add_special_tokens,
            padding=options.padding,
            truncation=options.truncation,
            max_length=options.max_length,
            stride=options.stride,
            pad_to_multiple_of=options.pad_to_multiple_of,
            padding_side=options.padding_side,
            return_tensors=options.return_tensors,
            return_token_type_ids=options.return_token_type_ids,
            return_attention_mask=options.return_attention_mask,
            return_overflowing_tokens=options.return_overflowing_tokens,
            return_special_tokens_mask=options.return_special_tokens_mask,
            return_length=options.return_length,
            verbose=options.verbose,
            prepend_batch_axis=options.return_tensors is not None,
        )

    def _batch_encode_plus(self, batch, options: CallOptions) -> BatchEncoding:
        self._refuse_offsets(options)
        plan = self._plan_of(options)
        rows: dict[str, list] = {}
        for item in batch:
            if options.is_split_into_words:
                pair = isinstance(item, (list, tuple)) and bool(item) and isinstance(item[0], (list, tuple))
            else:
                pair = isinstance(item, (list, tuple)) and not (item and isinstance(item[0], int))
            first, second = item if pair else (item, None)
            row = self._row_of(first, second, plan, options)
            if options.return_length:
                row["length"] = len(row["input_ids"])
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
        if not rows:
            rows = {self.model_input_names[0]: []}
        mask = self._wants("attention_mask", options.return_attention_mask)
        return BatchEncoding(
            dict(self._padded(rows, plan, options, mask)), tensor_type=options.return_tensors
        )

    def _row_of(self, first, second, plan: Plan, options: CallOptions) -> dict:
        """The unpadded example of a text, or of two."""
        ids = None if second is None else self._ids_of(second, options)
        return self._joined(self._ids_of(first, options), ids, plan, options)

    def _joined(self, ids: list[int], pair_ids: list[int] | None, plan: Plan, options: CallOptions) -> dict:
        """The unpadded example of token ids, with what a call asks for beside them."""
        return self._assembled(
            ids,
            pair_ids,
            options.add_special_tokens,
            plan,
            options.stride,
            options.return_token_type_ids,
            options.return_overflowing_tokens,
            options.return_special_tokens_mask,
        )

    def _padded(self, rows: dict, plan: Plan, options: CallOptions, mask: bool) -> BatchEncoding:
        """One unpadded example, or the columns of several, padded as a call asks."""
        return self.pad(
            rows,
            padding=plan.padding.value,
            max_length=plan.max_length,
            pad_to_multiple_of=options.pad_to_multiple_of,
            padding_side=options.padding_side,
            return_attention_mask=mask,
        )

    # ------------------------------------------------------------------ decoding

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return " ".join(tokens)

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=True,
        use_source_tokenizer=False,
    ) -> str:
        self._decode_use_source_tokenizer = use_source_tokenizer
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens)
        special = set(self.all_special_tokens)
        alone = set(self._added_tokens_encoder) - special
        alone |= {
            t
            for t in self.additional_special_tokens
            if (self.convert_tokens_to_ids(t) or 0) >= self.vocab_size
        }
        parts: list[str] = []
        current: list[str] = []
        for token in tokens:
            if skip_special_tokens and token in special:
                continue
            if token in alone:
                if current:
                    text = self.convert_tokens_to_string(current)
                    if text:
                        parts.append(text)
                    current = []
                parts.append(token)
            elif token is not None:
                current.append(token)
        if current:
            parts.append(self.convert_tokens_to_string(current))
        joined = (" " if spaces_between_special_tokens else "").join(parts)
        return self._cleaned(joined, clean_up_tokenization_spaces)

    # ------------------------------------------------------------------ files

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary files to a folder; returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        keys = [key for key in self.vocab_files_names if getattr(self, key, None) is not None]
        return self._copy_vocabulary(Path(save_directory), prefix, keys)
