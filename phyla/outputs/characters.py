"""Outputs of models that read characters."""

from phyla.outputs.base import Many, ModelOutput, One


class CanineModelOutputWithPooling(ModelOutput):
    """States of the characters and one vector a row; hidden_states go through all three encoders in order."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None
    attentions: Many = None
