"""Outputs of models that see."""

from phyla.outputs.base import Many, ModelOutput, One


class ImageClassifierOutput(ModelOutput):
    """Scores of the labels for each image (B, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class MaskedImageModelingOutput(ModelOutput):
    """Reconstructed pixels (B, C, Y, X)."""

    loss: One = None
    reconstruction: One = None
    hidden_states: Many = None
    attentions: Many = None
