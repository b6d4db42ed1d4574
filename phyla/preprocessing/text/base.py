"""The public face that every tokenizer has: call, encode, decode, and the settings they share."""

import copy
from dataclasses import dataclass, fields
from typing import Any

from phyla.errors import ArgumentError, TokenizerInputError, UnknownArgumentError, nearest

from .assemble import Assembly
from .batch import BatchEncoding, to_python
from .chatting import ChatTemplates
from .files import TokenizerFiles
from .strategy import UNBOUNDED, Plan
from .tokens import TokenIdError


@dataclass(frozen=True)
class CallOptions:
    """Everything a call may say besides its texts, with the public names and defaults."""

    add_special_tokens: bool = True
    padding: object = False
    truncation: object = None
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    return_tensors: object = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    verbose: bool = True
    prepend_batch_axis: bool = False
    split_special_tokens: bool | None = None
    extra: tuple = ()


_OPTION_NAMES = frozenset(f.name for f in fields(CallOptions)) - {"extra"}
_CLEANUPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class PreTrainedTokenizerBase(Assembly, ChatTemplates, TokenizerFiles):
    """What Python ("slow") and Rust ("fast") tokenizers share; all keyword settings survive a save.

    Settings: `model_max_length`, `padding_side`, `truncation_side`, `model_input_names`,
    `clean_up_tokenization_spaces`, `split_special_tokens`, `chat_template`, the special tokens and
    `extra_special_tokens`.
    """

    is_fast = False
    padding_side = "right"
    truncation_side = "right"
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    call_options: tuple[str, ...] = ()
    decode_options: tuple[str, ...] = ("spaces_between_special_tokens", "use_source_tokenizer")

    def __init__(self, **settings):
        self.init_inputs = ()
        self.init_kwargs = copy.deepcopy(settings)
        self.name_or_path = settings.get("name_or_path", "")
        self._processor_class = settings.get("processor_class")
        limit = settings.get("model_max_length", settings.get("max_len"))
        self.model_max_length = UNBOUNDED if limit is None else limit
        for side in ("padding_side", "truncation_side"):
            value = settings.get(side, getattr(type(self), side))
            if value not in ("right", "left"):
                raise ArgumentError(f"{side} must be 'right' or 'left', but is {value!r}")
            setattr(self, side, value)
        self.model_input_names = list(settings.get("model_input_names", self.model_input_names))
        self.clean_up_tokenization_spaces = settings.get("clean_up_tokenization_spaces", False)
        self.split_special_tokens = settings.get("split_special_tokens", False)
        self.chat_template = self.named_templates(settings.get("chat_template"))
        self._in_target_context = False
        self.extra_special_tokens = settings.get("extra_special_tokens") or {}
        self._init_special_tokens(settings)

    # ------------------------------------------------------------------ calls

    def __call__(
        self,
        text=None,
        text_pair=None,
        text_target=None,
        text_pair_target=None,
        add_special_tokens: bool = True,
        padding=False,
        truncation=None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors=None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **more,
    ) -> BatchEncoding:
        """Model inputs of a text, a pair, a batch, or words already split; targets become `labels`."""
        options = self._options(
            dict(
                add_special_tokens=add_special_tokens,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                stride=stride,
                is_split_into_words=is_split_into_words,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
                return_token_type_ids=return_token_type_ids,
                return_attention_mask=return_attention_mask,
                return_overflowing_tokens=return_overflowing_tokens,
                return_special_tokens_mask=return_special_tokens_mask,
                return_offsets_mapping=return_offsets_mapping,
                return_length=return_length,
                verbose=verbose,
                **more,
            )
        )
        if text is None and text_target is None:
            raise TokenizerInputError(
                "text must be a string or a list of strings, but is None; text_target is None too"
            )
        encodings: Any = None
        target: Any = None
        if text is not None:
            self._switch_to_input_mode()
            encodings = self._call_one(text, text_pair, options)
        if text_target is not None:
            self._switch_to_target_mode()
            try:
                target = self._call_one(text_target, text_pair_target, options)
            finally:
                self._switch_to_input_mode()
        if encodings is None or target is None:
            return target if encodings is None else encodings
        encodings["labels"] = target["input_ids"]
        return encodings

    def _options(self, given: dict) -> CallOptions:
        extra = {name: given.pop(name) for name in self.call_options if name in given}
        for name in given:
            if name not in _OPTION_NAMES:
                known = [
                    *_OPTION_NAMES,
                    *self.call_options,
                    "text",
                    "text_pair",
                    "text_target",
                    "text_pair_target",
                ]
                raise UnknownArgumentError(
                    f"{type(self).__name__} takes no argument {name!r}.{nearest(name, known)}"
                )
        return CallOptions(**given, extra=tuple(extra.items()))

    def _call_one(self, text, text_pair, options: CallOptions) -> BatchEncoding:
        check_texts(text, "text")
        if text_pair is not None:
            check_texts(text_pair, "text_pair")
        if options.is_split_into_words:
            batched = isinstance(text, (list, tuple)) and bool(text) and isinstance(text[0], (list, tuple))
        else:
            batched = isinstance(text, (list, tuple))
        if not batched:
            return self._encode_plus(text, text_pair, options)
        if isinstance(text_pair, str):
            raise TokenizerInputError("for a batch of texts text_pair must be a list too, but is one string")
        if text_pair is not None and len(text) != len(text_pair):
            raise TokenizerInputError(f"text has {len(text)} entries, but text_pair has {len(text_pair)}")
        return self._batch_encode_plus(
            list(zip(text, text_pair)) if text_pair is not None else list(text), options
        )

    def encode_plus(self, text, text_pair=None, **options) -> BatchEncoding:
        """Model inputs of one text or pair; takes the options of a call, and tokens or ids as text where
        slow.
        """
        return self._encode_plus(text, text_pair, self._options(options))

    def batch_encode_plus(self, batch_text_or_text_pairs, **options) -> BatchEncoding:
        """Model inputs of a list of texts, of pairs, or of split texts; takes the options of a call."""
        return self._batch_encode_plus(list(batch_text_or_text_pairs), self._options(options))

    def encode(
        self,
        text,
        text_pair=None,
        add_special_tokens: bool = True,
        padding=False,
        truncation=None,
        max_length: int | None = None,
        stride: int = 0,
        padding_side: str | None = None,
        return_tensors=None,
        **more,
    ) -> list[int]:
        """The input ids of one text or pair; takes the options of a call."""
        if text is None:
            raise TokenizerInputError("text must be a string or a list of tokens, but is None")
        return self.encode_plus(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            padding_side=padding_side,
            return_tensors=return_tensors,
            **more,
        )["input_ids"]

    def _plan_of(self, options: CallOptions) -> Plan:
        return self._plan(
            options.padding,
            options.truncation,
            options.max_length,
            options.pad_to_multiple_of,
            options.verbose,
        )

    def prepare_seq2seq_batch(
        self,
        src_texts,
        tgt_texts=None,
        max_length=None,
        max_target_length=None,
        padding="longest",
        return_tensors=None,
        truncation=True,
        **more,
    ) -> BatchEncoding:
        """Inputs and labels of a batch of source and target texts (an older name for `text` and
        `text_target`).
        """
        for name in ("src_lang", "tgt_lang"):
            if name in more:
                setattr(self, name, more.pop(name))
        limit = self.model_max_length if max_length is None else max_length
        shared = dict(padding=padding, return_tensors=return_tensors, truncation=truncation, **more)
        inputs = self(src_texts, add_special_tokens=True, max_length=limit, **shared)
        if tgt_texts is not None:
            target_limit = limit if max_target_length is None else max_target_length
            targets = self(text_target=tgt_texts, add_special_tokens=True, max_length=target_limit, **shared)
            inputs["labels"] = targets["input_ids"]
        return inputs

    def _switch_to_input_mode(self) -> None:
        """Hook: source texts follow."""

    def _switch_to_target_mode(self) -> None:
        """Hook: target texts follow."""

    def as_target_tokenizer(self):
        """A context in which calls encode target texts (an older form of `text_target`)."""
        return _TargetMode(self)

    # ------------------------------------------------------------------ decoding

    def decode(
        self,
        token_ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        skip_invalid: bool = False,
        **more,
    ) -> str:
        """The text of token ids (a number, list or array).

        An id outside the vocabulary is a TokenIdError (an IndexError), unless `skip_invalid` passes over it.
        """
        for name in more:
            if name not in self.decode_options:
                known = [
                    "skip_special_tokens",
                    "clean_up_tokenization_spaces",
                    "skip_invalid",
                    *self.decode_options,
                ]
                raise UnknownArgumentError(f"decode takes no argument {name!r}.{nearest(name, known)}")
        ids = to_python(token_ids)
        ids = self._checked_ids([ids] if isinstance(ids, int) else ids, skip_invalid)
        return self._decode(
            token_ids=ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **more,
        )

    def batch_decode(
        self,
        sequences,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        skip_invalid: bool = False,
        **more,
    ) -> list[str]:
        """The texts of a list (or two-dimensional array) of token ids."""
        return [
            self.decode(
                row,
                skip_special_tokens=skip_special_tokens,
                skip_invalid=skip_invalid,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                **more,
            )
            for row in sequences
        ]

    def _checked_ids(self, ids, skip_invalid: bool) -> list[int]:
        limit = self._id_limit()
        try:
            bad = next((i for i in ids if not (0 <= i < limit and isinstance(i, int))), None)
        except TypeError as error:
            raise TokenizerInputError(f"decode wants integers, but got {_short(ids)}") from error
        if bad is not None and not isinstance(bad, int):
            raise TokenizerInputError(f"decode wants integers, but got {_short(bad)} ({type(bad).__name__})")
        if bad is None:
            return list(ids)
        if skip_invalid:
            return [i for i in ids if 0 <= i < limit]
        raise TokenIdError(
            f"token id {bad} is outside the vocabulary of {limit} ids; skip_invalid=True passes over such ids"
        )

    def _id_limit(self) -> int:
        """One more than the highest id; kept until the vocabulary grows."""
        size = len(self)
        kept = self.__dict__.get("_id_limit_kept")
        if kept is None or kept[0] != size:
            kept = (size, max(max(self.get_vocab().values(), default=-1) + 1, size))
            object.__setattr__(self, "_id_limit_kept", kept)
        return kept[1]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Take out the spaces before punctuation and English contractions."""
        for old, new in _CLEANUPS:
            out_string = out_string.replace(old, new)
        return out_string

    def _cleaned(self, text: str, asked: bool | None) -> str:
        clean = self.clean_up_tokenization_spaces if asked is None else asked
        return self.clean_up_tokenization(text) if clean else text

    # ------------------------------------------------------------------ vocabulary

    def convert_tokens_to_ids(self, tokens):
        """The id of a token, or the ids of a list of tokens; unknown tokens get the id of `unk_token` (or
        None).
        """
        if tokens is None:
            return None
        if isinstance(tokens, str):
            return self._convert_token_to_id_with_added_voc(tokens)
        return [self._convert_token_to_id_with_added_voc(token) for token in tokens]

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Text to id of every added token, by id."""
        return {str(token): index for index, token in sorted(self.added_tokens_decoder.items())}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size},"
            f" model_max_length={self.model_max_length}, is_fast={self.is_fast},"
            f" padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r},"
            f" special_tokens={self.special_tokens_map})"
        )


class _TargetMode:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __enter__(self):
        self.tokenizer._switch_to_target_mode()
        self.tokenizer._in_target_context = True

    def __exit__(self, *_):
        self.tokenizer._in_target_context = False
        self.tokenizer._switch_to_input_mode()


def _short(value) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def check_texts(value, name: str) -> None:
    """Raise TokenizerInputError unless `value` is a string, a list of strings, or a list of lists of
    strings.
    """
    if isinstance(value, str):
        return
    if not isinstance(value, (list, tuple)):
        found = type(value).__name__
        raise TokenizerInputError(
            f"{name} must be a string or a list of strings, but is {_short(value)} ({found})"
        )
    for i, item in enumerate(value):
        if isinstance(item, str):
            continue
        if not isinstance(item, (list, tuple)):
            found = type(item).__name__
            raise TokenizerInputError(f"{name}[{i}] must be a string, but is {_short(item)} ({found})")
        for j, word in enumerate(item):
            if isinstance(word, (list, tuple)) and all(isinstance(w, str) for w in word):
                continue
            if not isinstance(word, str):
                found = type(word).__name__
                raise TokenizerInputError(
                    f"{name}[{i}][{j}] must be a string, but is {_short(word)} ({found})"
                )


def check_unicode(text: str, name: str = "text") -> None:
    """Raise TokenizerInputError with the place of the first lone surrogate, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise TokenizerInputError(
            f"{name} has a lone surrogate (U+{code:04X}) at index {error.start};"
            " mend it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from None
