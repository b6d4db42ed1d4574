"""Outputs of models that read any input into a fixed number of latent vectors."""

from typing import Any

from phyla.outputs.base import Many, ModelOutput, One


class PerceiverModelOutput(ModelOutput):
    """What the decoder says, where there is one, and the latent vectors (B, L, D)."""

    logits: Any = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None
    cross_attentions: Many = None


class PerceiverMaskedLMOutput(ModelOutput):
    """Scores of the token at each position the model has (B, positions, V)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None
    cross_attentions: Many = None


class PerceiverClassifierOutput(ModelOutput):
    """Scores of labels (B, labels), motion (B, Y, X, 2), or a tensor of each modality by name."""

    loss: One = None
    logits: Any = None
    hidden_states: Many = None
    attentions: Many = None
    cross_attentions: Many = None
