"""Flexible heads: any number of task heads behind one bare model, beside its adapters."""

from phyla.adapters.heads.base import PredictionHead
from phyla.adapters.heads.labels import (
    ClassificationHead,
    ImageClassificationHead,
    MultiLabelClassificationHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    TaggingHead,
)
from phyla.adapters.heads.language import BertStyleMaskedLMHead, CausalLMHead, Seq2SeqLMHead
from phyla.adapters.heads.model import FlexibleModel
from phyla.adapters.heads.module import MODEL_HEAD_MAP
from phyla.adapters.heads.output import DependencyParsingOutput, MultiHeadOutput
from phyla.adapters.heads.parsing import BiaffineParsingHead

__all__ = [
    "MODEL_HEAD_MAP",
    "BertStyleMaskedLMHead",
    "BiaffineParsingHead",
    "CausalLMHead",
    "ClassificationHead",
    "DependencyParsingOutput",
    "FlexibleModel",
    "ImageClassificationHead",
    "MultiHeadOutput",
    "MultiLabelClassificationHead",
    "MultipleChoiceHead",
    "PredictionHead",
    "QuestionAnsweringHead",
    "Seq2SeqLMHead",
    "TaggingHead",
]
