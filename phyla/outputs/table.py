"""Outputs of models that read tables."""

from phyla.outputs.base import Many, ModelOutput, One


class TableQuestionAnsweringOutput(ModelOutput):
    """Scores of each token as part of the answer (B, S), and of the operations over the chosen cells."""

    loss: One = None
    logits: One = None
    logits_aggregation: One = None
    hidden_states: Many = None
    attentions: Many = None
