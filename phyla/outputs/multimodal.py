"""Outputs of models that compare or join modalities."""

from typing import Any

from phyla.outputs.base import Many, ModelOutput, One


class CLIPOutput(ModelOutput):
    """Similarities of images and texts and the embeddings they come from."""

    loss: One = None
    logits_per_image: One = None
    logits_per_text: One = None
    text_embeds: One = None
    image_embeds: One = None
    text_model_output: Any = None
    vision_model_output: Any = None


class CLIPTextModelOutput(ModelOutput):
    """Projected text vectors."""

    text_embeds: One = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None


class CLIPVisionModelOutput(ModelOutput):
    """Projected image vectors."""

    image_embeds: One = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None
