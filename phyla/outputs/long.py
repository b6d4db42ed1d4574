"""Outputs of models for long texts: attention to and from global tokens, memories of earlier segments."""

from typing import Any

from phyla.outputs.base import Many, ModelOutput, One


class LongformerBaseModelOutputWithPooling(ModelOutput):
    """States, one pooled vector a row, attention to the window and from global tokens."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None
    attentions: Many = None
    global_attentions: Many = None


class LongformerMaskedLMOutput(ModelOutput):
    """Scores of the tokens behind masks (B, S, V)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None
    global_attentions: Many = None


class LongformerSequenceClassifierOutput(LongformerMaskedLMOutput):
    """Scores of the labels for each row (B, labels)."""


class LongformerTokenClassifierOutput(LongformerMaskedLMOutput):
    """Scores of the labels for each token (B, S, labels)."""


class LongformerMultipleChoiceModelOutput(LongformerMaskedLMOutput):
    """Scores of the choices (B, choices)."""


class LongformerQuestionAnsweringModelOutput(ModelOutput):
    """Scores of each token as start and end of the answer (B, S)."""

    loss: One = None
    start_logits: One = None
    end_logits: One = None
    hidden_states: Many = None
    attentions: Many = None
    global_attentions: Many = None


class LEDSeq2SeqModelOutput(ModelOutput):
    """States of encoder and decoder."""

    last_hidden_state: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    encoder_global_attentions: Many = None


class LEDSeq2SeqLMOutput(ModelOutput):
    """Next-token scores of the decoder (B, S, V)."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    encoder_global_attentions: Many = None


class LEDSeq2SeqSequenceClassifierOutput(LEDSeq2SeqLMOutput):
    """Scores of the labels for each row (B, labels)."""


class LEDSeq2SeqQuestionAnsweringModelOutput(ModelOutput):
    """Scores of each token as start and end of the answer (B, S)."""

    loss: One = None
    start_logits: One = None
    end_logits: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    encoder_global_attentions: Many = None


class XLNetModelOutput(ModelOutput):
    """States, those of the targets where there are any, and memories (T, B, D) of each layer."""

    last_hidden_state: One = None
    mems: Many = None
    hidden_states: Many = None
    attentions: Any = None


class XLNetLMHeadModelOutput(ModelOutput):
    """Scores over the vocabulary of tokens or targets (B, S or M, V)."""

    loss: One = None
    logits: One = None
    mems: Many = None
    hidden_states: Many = None
    attentions: Any = None


class XLNetForSequenceClassificationOutput(XLNetLMHeadModelOutput):
    """Scores of the labels for each row (B, labels)."""


class XLNetForTokenClassificationOutput(XLNetLMHeadModelOutput):
    """Scores of the labels for each token (B, S, labels)."""


class XLNetForMultipleChoiceOutput(XLNetLMHeadModelOutput):
    """Scores of the choices (B, choices)."""


class XLNetForQuestionAnsweringSimpleOutput(ModelOutput):
    """Scores of each token as start and end of the answer (B, S)."""

    loss: One = None
    start_logits: One = None
    end_logits: One = None
    mems: Many = None
    hidden_states: Many = None
    attentions: Any = None


class XLNetForQuestionAnsweringOutput(ModelOutput):
    """The best starts (B, N), of each the best ends (B, N * M), and whether there is an answer (B)."""

    loss: One = None
    start_top_log_probs: One = None
    start_top_index: One = None
    end_top_log_probs: One = None
    end_top_index: One = None
    cls_logits: One = None
    mems: Many = None
    hidden_states: Many = None
    attentions: Any = None


class ReformerModelOutput(ModelOutput):
    """States of both residual streams (B, S, 2 D), and the cache."""

    last_hidden_state: One = None
    past_buckets_states: Any = None
    hidden_states: Many = None
    attentions: Many = None


class ReformerModelWithLMHeadOutput(ModelOutput):
    """Next-token scores (B, S, V), and the cache."""

    loss: One = None
    logits: One = None
    past_buckets_states: Any = None
    hidden_states: Many = None
    attentions: Many = None
