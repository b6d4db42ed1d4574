"""Task heads and their losses, independent of any family: what stands on a backbone under which names."""

from phyla.heads.base import Backbone, Call, Head, HeadModule
from phyla.heads.beam_span import BeamSpan
from phyla.heads.choice import MultipleChoice
from phyla.heads.classify import Classify, TokenClassify
from phyla.heads.contrast import Contrast, ImageProjection, TextProjection
from phyla.heads.double import DoubleHeads
from phyla.heads.feature_maps import FeatureMaps
from phyla.heads.image import ImageClassify, MaskedImage
from phyla.heads.lm import CausalLM, MaskedLM, NextSentence, Pretraining, Seq2SeqLM, Transform
from phyla.heads.span import Span
from phyla.heads.summary import SummaryChoice, SummaryClassify

__all__ = [
    "Backbone", "BeamSpan", "Call", "CausalLM", "Classify", "Contrast", "DoubleHeads", "FeatureMaps", "Head",
    "HeadModule", "ImageClassify", "ImageProjection", "MaskedImage", "MaskedLM", "MultipleChoice",
    "NextSentence", "Pretraining", "Seq2SeqLM", "Span", "SummaryChoice", "SummaryClassify", "TextProjection",
    "TokenClassify", "Transform",
]  # fmt: skip
