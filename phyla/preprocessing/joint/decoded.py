"""What decoding with a language model gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...outputs import ModelOutput
from .rows import DECODED


@dataclass
class DecodedWithModel(ModelOutput):
    """Texts, their scores, and where their words are in time."""

    text: Any = None
    logit_score: Any = None
    lm_score: Any = None
    word_offsets: Any = None


DecodedWithModel.__name__ = DecodedWithModel.__qualname__ = DECODED
globals()[DECODED] = DecodedWithModel
