"""Outputs of models that read and write text, and the backbones' common ones."""

from typing import Any

from phyla.outputs.base import Many, ModelOutput, One


class BaseModelOutput(ModelOutput):
    """States of a backbone."""

    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None


class BaseModelOutputWithPooling(ModelOutput):
    """States and one pooled vector a row."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None
    attentions: Many = None


class BaseModelOutputWithPast(ModelOutput):
    """States and the cache."""

    last_hidden_state: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None


class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """States, cache and attention to the encoder."""

    last_hidden_state: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    cross_attentions: Many = None


class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """States, pooled vector, cache and attention to the encoder."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None
    past_key_values: Any = None
    attentions: Many = None
    cross_attentions: Many = None


class MoeModelOutputWithPast(ModelOutput):
    """States, cache and router scores."""

    last_hidden_state: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    router_logits: Many = None


class StateSpaceModelOutput(ModelOutput):
    """States of a recurrent backbone and its cache."""

    last_hidden_state: One = None
    cache_params: Any = None
    hidden_states: Many = None


class StateSpaceCausalLMOutput(ModelOutput):
    """Next-token scores of a recurrent model and its cache."""

    loss: One = None
    logits: One = None
    cache_params: Any = None
    hidden_states: Many = None


class RwkvOutput(ModelOutput):
    """States of a recurrent backbone and its memory: five tensors (B, D, layers)."""

    last_hidden_state: One = None
    state: Any = None
    hidden_states: Many = None
    attentions: Many = None


class RwkvCausalLMOutput(ModelOutput):
    """Next-token scores of a recurrent model and its memory: five tensors (B, D, layers)."""

    loss: One = None
    logits: One = None
    state: Any = None
    hidden_states: Many = None
    attentions: Many = None


class CausalLMOutputWithPast(ModelOutput):
    """Next-token scores (B, S, V)."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None


class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Next-token scores (B, S, V) of a decoder that may attend to an encoder."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    cross_attentions: Many = None


class MoeCausalLMOutputWithPast(ModelOutput):
    """Next-token scores (B, S, V) with the router's share of the loss."""

    loss: One = None
    aux_loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    router_logits: Many = None


class MaskedLMOutput(ModelOutput):
    """Scores of the tokens behind masks (B, S, V)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class BertForPreTrainingOutput(ModelOutput):
    """Scores of masked tokens (B, S, V) and of the next-sentence question (B, 2)."""

    loss: One = None
    prediction_logits: One = None
    seq_relationship_logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class NextSentencePredictorOutput(ModelOutput):
    """Scores (B, 2): follows, does not follow."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class SequenceClassifierOutput(ModelOutput):
    """Scores of the labels for each row (B, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class SequenceClassifierOutputWithPast(ModelOutput):
    """Scores of the labels for each row (B, labels), with the cache."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None


class TokenClassifierOutput(ModelOutput):
    """Scores of the labels for each token (B, S, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class MultipleChoiceModelOutput(ModelOutput):
    """Scores of the choices (B, choices)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class QuestionAnsweringModelOutput(ModelOutput):
    """Scores of each token as start and end of the answer (B, S)."""

    loss: One = None
    start_logits: One = None
    end_logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class Seq2SeqModelOutput(ModelOutput):
    """States of encoder and decoder."""

    last_hidden_state: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class Seq2SeqLMOutput(ModelOutput):
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


class Seq2SeqSequenceClassifierOutput(ModelOutput):
    """Scores of the labels for each row (B, labels)."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class Seq2SeqQuestionAnsweringModelOutput(ModelOutput):
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


class GPT2DoubleHeadsModelOutput(ModelOutput):
    """Next-token scores (B, choices, S, V) and scores of the choices (B, choices)."""

    loss: One = None
    mc_loss: One = None
    logits: One = None
    mc_logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
