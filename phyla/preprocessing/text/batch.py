"""BatchEncoding: what a tokenizer returns, with its alignments between tokens, words and characters."""

from collections import UserDict
from collections.abc import Mapping
from typing import NamedTuple

from phyla.errors import ArgumentError, TokenizerInputError, require


class CharSpan(NamedTuple):
    """Characters [start, end) of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens [start, end) of an encoding."""

    start: int
    end: int


def framework_of(value) -> str | None:
    """The short name of the library an array comes from ("pt", "np", "tf", "jax"), or None for plain
    Python.
    """
    root = type(value).__module__.split(".")[0]
    return {"torch": "pt", "numpy": "np", "tensorflow": "tf", "jax": "jax", "jaxlib": "jax"}.get(root)


def to_python(value):
    """Nested lists and numbers for arrays of any library; other values as they are."""
    if isinstance(value, (dict, UserDict)):
        return {key: to_python(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_python(item) for item in value]
    if framework_of(value) == "pt":
        return value.detach().cpu().tolist()
    if framework_of(value):
        return value.numpy().tolist() if framework_of(value) == "tf" else value.tolist()
    return value


def _numpy_array(value):
    import numpy

    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple, numpy.ndarray)):
        if len({len(item) for item in value}) > 1:
            ragged = numpy.empty(len(value), dtype=object)
            for i, item in enumerate(value):
                ragged[i] = _numpy_array(item)
            return ragged
    return numpy.asarray(value)


def _torch_tensor(value):
    torch = require("torch", "torch", 'return_tensors="pt"')
    if framework_of(value) == "pt":
        return value
    if isinstance(value, list) and value and framework_of(value[0]) == "np":
        return torch.from_numpy(_numpy_array(value))
    return torch.tensor(value)


def _jax_array(value):
    return require("jax.numpy", "jax", 'return_tensors="jax"').array(value)


def _tf_tensor(value):
    return require("tensorflow", "tensorflow", 'return_tensors="tf"').constant(value)


def _mlx_array(value):
    return require("mlx.core", "mlx", 'return_tensors="mlx"').array(value)


_CONVERTERS = {
    "pt": _torch_tensor,
    "np": _numpy_array,
    "jax": _jax_array,
    "tf": _tf_tensor,
    "mlx": _mlx_array,
}


def converter(kind):
    """The function that turns nested lists into arrays of `kind` ("pt", "np", "tf", "jax", "mlx")."""
    name = getattr(kind, "value", kind)
    if name not in _CONVERTERS:
        raise ArgumentError(
            f"return_tensors must be one of {', '.join(map(repr, _CONVERTERS))}, but is {kind!r}"
        )
    return _CONVERTERS[name]


class BatchEncoding(UserDict):
    """A dictionary of model inputs (`input_ids`, `attention_mask`, ...) and, from fast tokenizers, the
    alignments.

    A string indexes the inputs, an integer the Rust encodings, a slice cuts every input.
    """

    def __init__(
        self, data=None, encoding=None, tensor_type=None, prepend_batch_axis=False, n_sequences=None
    ):
        super().__init__(data)
        if encoding is not None and not isinstance(encoding, (list, tuple)):
            encoding = [encoding]
        self._encodings = encoding
        if n_sequences is None and encoding:
            n_sequences = encoding[0].n_sequences
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs; None where the tokenizer did not say."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether alignments are there."""
        return self._encodings is not None

    @property
    def encodings(self):
        """The Rust encodings of the batch, or None."""
        return self._encodings

    def __getitem__(self, item):
        if isinstance(item, str):
            return self.data[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.data.items()}
        if self._encodings is not None:
            return self._encodings[item]
        raise KeyError(
            "an integer index needs the alignments of a fast tokenizer; use a string such as 'input_ids'"
        )

    def __getattr__(self, name):
        if name != "data" and name in self.__dict__.get("data", {}):
            return self.data[name]
        raise AttributeError(
            f"BatchEncoding has no attribute {name!r}; its keys are {list(self.__dict__.get('data', {}))}"
        )

    def __getstate__(self):
        return {"data": self.data, "encodings": self._encodings}

    def __setstate__(self, state):
        self.data, self._encodings, self._n_sequences = state["data"], state["encodings"], None

    def keys(self):
        return self.data.keys()

    def values(self):
        return self.data.values()

    def items(self):
        return self.data.items()

    def _aligned(self, index, what: str):
        if self._encodings is None:
            raise TokenizerInputError(
                f"{what}() needs the alignments of a fast tokenizer, but this encoding has none"
            )
        if not -len(self._encodings) <= index < len(self._encodings):
            raise IndexError(
                f"{what}: the batch has {len(self._encodings)} encodings, but number {index} was asked for"
            )
        return self._encodings[index]

    def _place(self, first, second, what: str):
        """The encoding and the index in it, of `(index)` or `(batch, index)`."""
        batch, index = (0, first) if second is None else (first, second)
        encoding = self._aligned(batch, what)
        return encoding, index + len(encoding) if index < 0 and what.startswith("token_") else index

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The token texts of one encoding."""
        return self._aligned(batch_index, "tokens").tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 or 1 for the sequence a token comes from, None for special tokens."""
        return self._aligned(batch_index, "sequence_ids").sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The number of the word each token comes from, None for special tokens."""
        return self._aligned(batch_index, "word_ids").word_ids

    words = word_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The sequence that a token comes from."""
        encoding, index = self._place(batch_or_token_index, token_index, "token_to_sequence")
        return encoding.token_to_sequence(index)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The word that a token comes from."""
        encoding, index = self._place(batch_or_token_index, token_index, "token_to_word")
        return encoding.token_to_word(index)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of a token in its text."""
        encoding, index = self._place(batch_or_token_index, token_index, "token_to_chars")
        span = encoding.token_to_chars(index)
        return None if span is None else CharSpan(*span)

    def word_to_tokens(
        self, batch_or_word_index, word_index=None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word of one sequence."""
        encoding, index = self._place(batch_or_word_index, word_index, "word_to_tokens")
        span = encoding.word_to_tokens(index, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(self, batch_or_word_index, word_index=None, sequence_index: int = 0) -> CharSpan | None:
        """The characters of a word of one sequence."""
        encoding, index = self._place(batch_or_word_index, word_index, "word_to_chars")
        span = encoding.word_to_chars(index, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_token(self, batch_or_char_index, char_index=None, sequence_index: int = 0) -> int | None:
        """The token that holds a character of one sequence."""
        encoding, index = self._place(batch_or_char_index, char_index, "char_to_token")
        return encoding.char_to_token(index, sequence_index)

    def char_to_word(self, batch_or_char_index, char_index=None, sequence_index: int = 0) -> int | None:
        """The word that holds a character of one sequence."""
        encoding, index = self._place(batch_or_char_index, char_index, "char_to_word")
        return encoding.char_to_word(index, sequence_index)

    def convert_to_tensors(self, tensor_type=None, prepend_batch_axis: bool = False) -> "BatchEncoding":
        """Turn every input into an array of `tensor_type`, in place; a batch axis is put before where
        asked.
        """
        if tensor_type is None:
            return self
        make = converter(tensor_type)
        for key, value in self.data.items():
            try:
                self.data[key] = make([value] if prepend_batch_axis else value)
            except (ValueError, TypeError, RuntimeError) as error:
                if key == "overflowing_tokens":
                    hint = "overflowing tokens of different lengths cannot be one tensor"
                else:
                    hint = "its rows differ in length: pass padding=True and truncation=True"
                raise TokenizerInputError(f"{key!r} cannot be made a tensor ({error}); {hint}") from error
        return self

    def to(self, device, *, non_blocking: bool = False) -> "BatchEncoding":
        """Move every torch tensor to a device, in place."""
        for key, value in self.data.items():
            if framework_of(value) == "pt":
                self.data[key] = value.to(device, non_blocking=non_blocking)
        return self


def is_mapping(value) -> bool:
    """Whether a value is a dictionary of model inputs."""
    return isinstance(value, (Mapping, UserDict))
