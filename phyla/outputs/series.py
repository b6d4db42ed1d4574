"""Outputs of models of time series and trajectories."""

from typing import Any

from phyla.outputs.base import Many, ModelOutput, One


class DecisionTransformerOutput(ModelOutput):
    """Predicted next states (B, T, states), actions (B, T, actions) and returns (B, T, 1) of a trajectory."""

    state_preds: One = None
    action_preds: One = None
    return_preds: One = None
    hidden_states: Many = None
    attentions: Many = None
    last_hidden_state: One = None


class PatchTSTModelOutput(ModelOutput):
    """States of patches (B, C, P, D), what was hidden of them, and the location and scale of the values."""

    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None
    mask: One = None
    loc: One = None
    scale: One = None
    patch_input: One = None


class PatchTSTForPretrainingOutput(ModelOutput):
    """Values of all patches (B, C, P, length)."""

    loss: One = None
    prediction_output: One = None
    hidden_states: Many = None
    attentions: Many = None


class PatchTSTForClassificationOutput(ModelOutput):
    """Scores of the classes (B, classes)."""

    loss: One = None
    prediction_logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class PatchTSTForRegressionOutput(ModelOutput):
    """Numbers (B, targets), or the parameters of their distribution."""

    loss: One = None
    regression_outputs: Any = None
    hidden_states: Many = None
    attentions: Many = None


class PatchTSTForPredictionOutput(ModelOutput):
    """Future values (B, T, C), or the parameters of their distribution."""

    loss: One = None
    prediction_outputs: Any = None
    hidden_states: Many = None
    attentions: Many = None
    loc: One = None
    scale: One = None


class SamplePatchTSTOutput(ModelOutput):
    """Sampled futures (B, samples, T, C) or numbers (B, samples, targets)."""

    sequences: One = None


class SampleTSPredictionOutput(ModelOutput):
    """Sampled futures (B, samples, T) or (B, samples, T, C)."""

    sequences: One = None


class Seq2SeqTSModelOutput(ModelOutput):
    """States of past and future, and the location and scale of the values."""

    last_hidden_state: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    loc: One = None
    scale: One = None
    static_features: One = None


class Seq2SeqTSPredictionOutput(ModelOutput):
    """Parameters of the distribution of each future value."""

    loss: One = None
    params: Any = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    loc: One = None
    scale: One = None
    static_features: One = None
