"""Outputs of classes that hold an encoder with the heads of its pretraining."""

from phyla.outputs.base import Many, ModelOutput, One


class AlbertForPreTrainingOutput(ModelOutput):
    """Scores of masked tokens (B, S, V) and of the order of two sentences (B, 2)."""

    loss: One = None
    prediction_logits: One = None
    sop_logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class ElectraForPreTrainingOutput(ModelOutput):
    """Scores (B, S): positive where the token looks replaced."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class FNetForPreTrainingOutput(ModelOutput):
    """Scores of masked tokens (B, S, V) and of the next-sentence question (B, 2), without attentions."""

    loss: One = None
    prediction_logits: One = None
    seq_relationship_logits: One = None
    hidden_states: Many = None
