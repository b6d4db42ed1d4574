"""Task heads and their losses, independent of any family: what stands on a backbone under which names."""

from phyla.heads.base import Backbone, Call, Head, HeadModule
from phyla.heads.choice import MultipleChoice
from phyla.heads.classify import Classify, TokenClassify
from phyla.heads.contrast import Contrast, ImageProjection, TextProjection
from phyla.heads.double import DoubleHeads
from phyla.heads.image import ImageClassify, MaskedImage
from phyla.heads.lm import CausalLM, MaskedLM, NextSentence, Pretraining, Seq2SeqLM, Transform
from phyla.heads.span import Span

__all__ = [
    "Backbone", "Call", "CausalLM", "Classify", "Contrast", "DoubleHeads", "Head", "HeadModule",
    "ImageClassify", "ImageProjection", "MaskedImage", "MaskedLM", "MultipleChoice", "NextSentence",
    "Pretraining", "Seq2SeqLM", "Span", "TextProjection", "TokenClassify", "Transform",
]  # fmt: skip
