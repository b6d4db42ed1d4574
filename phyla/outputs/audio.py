"""Outputs of models that hear and speak."""

from typing import Any

from phyla.outputs.base import Many, ModelOutput, One


class Wav2Vec2BaseModelOutput(ModelOutput):
    """States (B, S, D) and the features that the convolutions gave (B, S, C)."""

    last_hidden_state: One = None
    extract_features: One = None
    hidden_states: Many = None
    attentions: Many = None


class Wav2Vec2ForPreTrainingOutput(ModelOutput):
    """Projected states and quantised features (B, S, E), and the parts of the loss."""

    loss: One = None
    projected_states: One = None
    projected_quantized_states: One = None
    codevector_perplexity: One = None
    hidden_states: Many = None
    attentions: Many = None
    contrastive_loss: One = None
    diversity_loss: One = None


class CausalLMOutput(ModelOutput):
    """Scores of the characters for each frame (B, S, V)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class XVectorOutput(ModelOutput):
    """Scores (B, E) and the speaker's vector (B, E)."""

    loss: One = None
    logits: One = None
    embeddings: One = None
    hidden_states: Many = None
    attentions: Many = None


class EncodecEncoderOutput(ModelOutput):
    """Codes (chunks, B, codebooks, S) and the loudness of each chunk, a list of (B, 1, 1) or None."""

    audio_codes: One = None
    audio_scales: Any = None


class EncodecDecoderOutput(ModelOutput):
    """Sound (B, C, T)."""

    audio_values: One = None


class EncodecOutput(ModelOutput):
    """Codes (chunks, B, codebooks, S), and the sound (B, C, T) made of them."""

    audio_codes: One = None
    audio_values: One = None


class Seq2SeqSpectrogramOutput(ModelOutput):
    """Log-mel frames (B, T, M) of the speech."""

    loss: One = None
    spectrogram: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class VitsModelOutput(ModelOutput):
    """Sound (B, T), how much of each row is real (B), and the frames (B, F, S) that it was made of."""

    waveform: One = None
    sequence_lengths: One = None
    spectrogram: One = None
    hidden_states: Many = None
    attentions: Many = None


class ClapOutput(ModelOutput):
    """Similarities of sounds and texts and the embeddings they come from."""

    loss: One = None
    logits_per_audio: One = None
    logits_per_text: One = None
    text_embeds: One = None
    audio_embeds: One = None
    text_model_output: Any = None
    audio_model_output: Any = None


class ClapTextModelOutput(ModelOutput):
    """Projected text vectors."""

    text_embeds: One = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None


class ClapAudioModelOutput(ModelOutput):
    """Projected vectors of sounds."""

    audio_embeds: One = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None
