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


class LlavaCausalLMOutputWithPast(ModelOutput):
    """Next-token scores (B, S, V) of a text with images, and the images' vectors."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    image_hidden_states: One = None


class LlavaNextCausalLMOutputWithPast(LlavaCausalLMOutputWithPast):
    """Next-token scores (B, S, V) of a text with images in tiles, and the images' vectors."""


class DiffusionGemmaModelOutputWithPast(ModelOutput):
    """States (B, C, D) of a canvas, the cache of the text before it, and its states, where it was read."""

    last_hidden_state: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    encoder_last_hidden_state: One = None


class DiffusionGemmaBlockDiffusionOutputWithPast(ModelOutput):
    """Scores (B, C, V) of all tokens of a canvas."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    encoder_last_hidden_state: One = None


class PaliGemmaCausalLMOutputWithPast(LlavaCausalLMOutputWithPast):
    """Next-token scores (B, S, V) of a text with images, and the images' vectors."""


class Gemma3CausalLMOutputWithPast(LlavaCausalLMOutputWithPast):
    """Next-token scores (B, S, V) of a text with images, and the images' vectors."""


class Qwen2VLCausalLMOutputWithPast(ModelOutput):
    """Next-token scores (B, S, V), and (B, 1) how far positions lag behind the count of tokens."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    rope_deltas: One = None


class ViltForImagesAndTextClassificationOutput(ModelOutput):
    """Scores of the labels; states and attentions are lists, an entry for each image."""

    loss: One = None
    logits: One = None
    hidden_states: list | None = None
    attentions: list | None = None


class BaseModelOutputWithAttentionMask(ModelOutput):
    """States of an encoder that reads a page, and which of them are real."""

    last_hidden_state: One = None
    attention_mask: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    cross_attentions: Many = None


class Blip2ForConditionalGenerationModelOutput(ModelOutput):
    """Next-token scores, and the outputs of tower, queries and language model."""

    loss: One = None
    logits: One = None
    vision_outputs: Any = None
    qformer_outputs: Any = None
    language_model_outputs: Any = None


class Blip2ImageTextMatchingModelOutput(ModelOutput):
    """Scores of images and texts, what they come from, and the outputs of text and tower."""

    loss: One = None
    logits_per_image: One = None
    logits_per_text: One = None
    text_embeds: One = None
    image_embeds: One = None
    text_model_output: Any = None
    vision_model_output: Any = None


class Blip2TextModelOutput(ModelOutput):
    """Vectors of a text in the common space."""

    text_embeds: One = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None


class Blip2VisionModelOutput(ModelOutput):
    """Vectors of an image in the common space."""

    image_embeds: One = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None
