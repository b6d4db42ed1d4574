"""How far to pad and where to cut: the public arguments resolved to one plan."""

import logging
from enum import Enum
from typing import NamedTuple

from phyla.errors import ArgumentError, nearest

log = logging.getLogger(__name__)

UNBOUNDED = int(1e30)
_LARGE = int(1e20)


class _Choice(str, Enum):
    @classmethod
    def _missing_(cls, value):
        names = [member.value for member in cls]
        raise ArgumentError(f"{cls.__doc__} must be one of {names}, but is {value!r}.{nearest(value, names)}")


class PaddingStrategy(_Choice):
    """padding"""

    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    DO_NOT_PAD = "do_not_pad"


class TruncationStrategy(_Choice):
    """truncation"""

    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    LONGEST_FIRST = "longest_first"
    DO_NOT_TRUNCATE = "do_not_truncate"


class TensorType(_Choice):
    """return_tensors"""

    PYTORCH = "pt"
    TENSORFLOW = "tf"
    NUMPY = "np"
    JAX = "jax"
    MLX = "mlx"


class Plan(NamedTuple):
    """What to do with the lengths of a batch."""

    padding: PaddingStrategy
    truncation: TruncationStrategy
    max_length: int | None


def resolve(
    padding,
    truncation,
    max_length,
    pad_to_multiple_of,
    model_max_length: int,
    has_pad: bool,
    verbose: bool = True,
) -> Plan:
    """The plan that `padding`, `truncation` and `max_length` stand for; ArgumentError where they cannot be
    met.
    """
    if max_length is not None and (isinstance(max_length, bool) or not hasattr(max_length, "__index__")):
        raise ArgumentError(f"max_length must be a whole number, but is {max_length!r}")
    if max_length is not None and max_length < 0:
        raise ArgumentError(f"max_length must not be negative, but is {max_length}")
    if max_length is not None and padding is False and truncation is None:
        if verbose:
            log.warning("max_length without truncation cuts longest_first; pass truncation=True to say so")
        truncation = TruncationStrategy.LONGEST_FIRST
    if padding is True:
        pads = PaddingStrategy.LONGEST
    elif padding is False or padding is None:
        pads = PaddingStrategy.DO_NOT_PAD
    else:
        pads = PaddingStrategy(padding)
    if truncation is True:
        cuts = TruncationStrategy.LONGEST_FIRST
    elif truncation is False or truncation is None:
        cuts = TruncationStrategy.DO_NOT_TRUNCATE
    else:
        cuts = TruncationStrategy(truncation)
    if max_length is None:
        bounded = model_max_length <= _LARGE
        if pads is PaddingStrategy.MAX_LENGTH:
            pads = pads if bounded else PaddingStrategy.DO_NOT_PAD
            max_length = model_max_length if bounded else None
        if cuts is not TruncationStrategy.DO_NOT_TRUNCATE:
            cuts = cuts if bounded else TruncationStrategy.DO_NOT_TRUNCATE
            max_length = model_max_length if bounded else max_length
    if pads is not PaddingStrategy.DO_NOT_PAD:
        if not has_pad:
            raise ArgumentError(
                "padding needs a pad_token; set one: tokenizer.pad_token = tokenizer.eos_token"
            )
        if cuts is not TruncationStrategy.DO_NOT_TRUNCATE and pad_to_multiple_of and max_length is not None:
            if max_length % pad_to_multiple_of:
                raise ArgumentError(
                    f"max_length ({max_length}) must be a multiple of pad_to_multiple_of"
                    f" ({pad_to_multiple_of}) when both padding and truncation are on"
                )
    return Plan(pads, cuts, max_length)
