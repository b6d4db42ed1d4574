"""Outputs of encoder-decoders that route tokens, predict several at once, or read what they retrieved."""

from typing import Any

from phyla.outputs.base import Many, ModelOutput, One


class MoEModelOutput(ModelOutput):
    """States of a backbone with routers; router_probs holds what the routers scored."""

    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None
    router_probs: Any = None


class Seq2SeqMoEModelOutput(ModelOutput):
    """States of encoder and decoder, and what their routers scored."""

    last_hidden_state: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    decoder_router_logits: Any = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    encoder_router_logits: Any = None


class Seq2SeqMoEOutput(ModelOutput):
    """Next-token scores of the decoder (B, S, V) with the losses of the routers."""

    loss: One = None
    logits: One = None
    encoder_z_loss: Any = None
    decoder_z_loss: Any = None
    encoder_aux_loss: Any = None
    decoder_aux_loss: Any = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    decoder_router_logits: Any = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    encoder_router_logits: Any = None


class RetrievAugLMOutput(ModelOutput):
    """Next-token scores for each retrieved passage (B * passages, T, V), and how well each passage fits."""

    logits: One = None
    doc_scores: One = None
    past_key_values: Any = None
    retrieved_doc_embeds: One = None
    retrieved_doc_ids: One = None
    context_input_ids: One = None
    context_attention_mask: One = None
    question_encoder_last_hidden_state: One = None
    question_enc_hidden_states: Many = None
    question_enc_attentions: Many = None
    generator_enc_last_hidden_state: One = None
    generator_enc_hidden_states: Many = None
    generator_enc_attentions: Many = None
    generator_dec_hidden_states: Many = None
    generator_dec_attentions: Many = None
    generator_cross_attentions: Many = None


class RetrievAugLMMarginOutput(ModelOutput):
    """The same with a loss; scores may be summed over the passages (B, T, V)."""

    loss: One = None
    logits: One = None
    doc_scores: One = None
    past_key_values: Any = None
    retrieved_doc_embeds: One = None
    retrieved_doc_ids: One = None
    context_input_ids: One = None
    context_attention_mask: One = None
    question_encoder_last_hidden_state: One = None
    question_enc_hidden_states: Many = None
    question_enc_attentions: Many = None
    generator_enc_last_hidden_state: One = None
    generator_enc_hidden_states: Many = None
    generator_enc_attentions: Many = None
    generator_dec_hidden_states: Many = None
    generator_dec_attentions: Many = None
    generator_cross_attentions: Many = None


class PassagesOutput(ModelOutput):
    """What a generator reads: its encoder's states (B, passages, K, D), mask (B, passages, K), and scores."""

    last_hidden_state: One = None
    attention_mask: One = None
    doc_scores: One = None


class DPRContextEncoderOutput(ModelOutput):
    """One vector a passage (B, E)."""

    pooler_output: One = None
    hidden_states: Many = None
    attentions: Many = None


class DPRQuestionEncoderOutput(ModelOutput):
    """One vector a question (B, E)."""

    pooler_output: One = None
    hidden_states: Many = None
    attentions: Many = None


class DPRReaderOutput(ModelOutput):
    """Scores of each token as start and end of the answer (N, S), and of each passage to hold it (N)."""

    start_logits: One = None
    end_logits: One = None
    relevance_logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class ProphetNetDecoderModelOutput(ModelOutput):
    """States of the main stream (B, S, D) and of the n predicting ones (B, n * S, D)."""

    last_hidden_state: One = None
    last_hidden_state_ngram: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    hidden_states_ngram: Many = None
    attentions: Many = None
    ngram_attentions: Many = None
    cross_attentions: Many = None


class ProphetNetDecoderLMOutput(ModelOutput):
    """Scores of the next token (B, S, V) and of those behind it (B, n - 1, S, V)."""

    loss: One = None
    logits: One = None
    logits_ngram: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    hidden_states_ngram: Many = None
    attentions: Many = None
    ngram_attentions: Many = None
    cross_attentions: Many = None


class ProphetNetSeq2SeqModelOutput(ModelOutput):
    """States of encoder and decoder, of its main stream and of the predicting ones."""

    last_hidden_state: One = None
    last_hidden_state_ngram: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_ngram_hidden_states: Many = None
    decoder_attentions: Many = None
    decoder_ngram_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class ProphetNetSeq2SeqLMOutput(ModelOutput):
    """Scores of the decoder's next token (B, S, V) and of those behind it (B, n - 1, S, V)."""

    loss: One = None
    logits: One = None
    logits_ngram: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_ngram_hidden_states: Many = None
    decoder_attentions: Many = None
    decoder_ngram_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
