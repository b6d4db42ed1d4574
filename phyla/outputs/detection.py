"""Outputs of models that find objects and masks."""

from typing import Any

from phyla.outputs.base import Many, ModelOutput, One


class DetrModelOutput(ModelOutput):
    """States of the queries (B, Q, D) and of the places of the image."""

    last_hidden_state: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    intermediate_hidden_states: One = None


class DetrObjectDetectionOutput(ModelOutput):
    """Scores (B, Q, labels + 1) and boxes (B, Q, 4): centre and size, shares of the image."""

    loss: One = None
    loss_dict: Any = None
    logits: One = None
    pred_boxes: One = None
    auxiliary_outputs: Any = None
    last_hidden_state: One = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class DetrSegmentationOutput(ModelOutput):
    """Scores, boxes, and for each query a mask (B, Q, Y / 4, X / 4) of scores."""

    loss: One = None
    loss_dict: Any = None
    logits: One = None
    pred_boxes: One = None
    pred_masks: One = None
    auxiliary_outputs: Any = None
    last_hidden_state: One = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class DeformableDetrModelOutput(ModelOutput):
    """States of the queries (B, Q, D), of all layers (B, L, Q, D), and the points they start from."""

    init_reference_points: One = None
    last_hidden_state: One = None
    intermediate_hidden_states: One = None
    intermediate_reference_points: One = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    enc_outputs_class: One = None
    enc_outputs_coord_logits: One = None


class DeformableDetrObjectDetectionOutput(ModelOutput):
    """Scores (B, Q, labels) and boxes (B, Q, 4): centre and size, shares of the image."""

    loss: One = None
    loss_dict: Any = None
    logits: One = None
    pred_boxes: One = None
    auxiliary_outputs: Any = None
    init_reference_points: One = None
    last_hidden_state: One = None
    intermediate_hidden_states: One = None
    intermediate_reference_points: One = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    enc_outputs_class: Any = None
    enc_outputs_coord_logits: Any = None


class SamImageSegmentationOutput(ModelOutput):
    """Expected overlaps (B, P, masks) and masks (B, P, masks, Y, X) of the prompts."""

    iou_scores: One = None
    pred_masks: One = None
    vision_hidden_states: Many = None
    vision_attentions: Many = None
    mask_decoder_attentions: Many = None


class Mask2FormerModelOutput(ModelOutput):
    """Maps of the network and the pixel decoder; states of the queries (Q, B, D) and masks of all layers."""

    encoder_last_hidden_state: One = None
    pixel_decoder_last_hidden_state: One = None
    transformer_decoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    pixel_decoder_hidden_states: Many = None
    transformer_decoder_hidden_states: Many = None
    transformer_decoder_intermediate_states: Many = None
    masks_queries_logits: Many = None
    attentions: Many = None


class Mask2FormerForUniversalSegmentationOutput(ModelOutput):
    """Scores of labels (B, Q, labels + 1) and masks (B, Q, Y, X) of the queries."""

    loss: One = None
    class_queries_logits: One = None
    masks_queries_logits: One = None
    auxiliary_logits: Any = None
    encoder_last_hidden_state: One = None
    pixel_decoder_last_hidden_state: One = None
    transformer_decoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    pixel_decoder_hidden_states: Many = None
    transformer_decoder_hidden_states: Many = None
    attentions: Many = None


class GroundingDinoModelOutput(ModelOutput):
    """States of queries (B, Q, D), of places and of the text, and what the queries were chosen by."""

    last_hidden_state: One = None
    init_reference_points: One = None
    intermediate_hidden_states: One = None
    intermediate_reference_points: One = None
    decoder_hidden_states: Many = None
    decoder_attentions: Any = None
    encoder_last_hidden_state_vision: One = None
    encoder_last_hidden_state_text: One = None
    encoder_vision_hidden_states: Many = None
    encoder_text_hidden_states: Many = None
    encoder_attentions: Any = None
    enc_outputs_class: One = None
    enc_outputs_coord_logits: One = None
    encoder_logits: One = None
    encoder_pred_boxes: One = None


class GroundingDinoObjectDetectionOutput(ModelOutput):
    """Scores of the text's tokens (B, Q, most tokens) and boxes (B, Q, 4) of the queries."""

    loss: One = None
    loss_dict: Any = None
    logits: One = None
    pred_boxes: One = None
    auxiliary_outputs: Any = None
    last_hidden_state: One = None
    init_reference_points: One = None
    intermediate_hidden_states: One = None
    intermediate_reference_points: One = None
    decoder_hidden_states: Many = None
    decoder_attentions: Any = None
    encoder_last_hidden_state_vision: One = None
    encoder_last_hidden_state_text: One = None
    encoder_vision_hidden_states: Many = None
    encoder_text_hidden_states: Many = None
    encoder_attentions: Any = None
    enc_outputs_class: One = None
    enc_outputs_coord_logits: One = None
    encoder_logits: One = None
    encoder_pred_boxes: One = None
    input_ids: One = None


class TableTransformerModelOutput(ModelOutput):
    """States of the queries (B, Q, D) and of the places of the image."""

    last_hidden_state: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    intermediate_hidden_states: One = None


class TableTransformerObjectDetectionOutput(ModelOutput):
    """Scores (B, Q, labels + 1) and boxes (B, Q, 4): centre and size, shares of the image."""

    loss: One = None
    loss_dict: Any = None
    logits: One = None
    pred_boxes: One = None
    auxiliary_outputs: Any = None
    last_hidden_state: One = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class ConditionalDetrModelOutput(ModelOutput):
    """States of the queries (B, Q, D) and of the places of the image."""

    last_hidden_state: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
    intermediate_hidden_states: One = None
    reference_points: One = None


class ConditionalDetrObjectDetectionOutput(ModelOutput):
    """Scores (B, Q, labels + 1) and boxes (B, Q, 4): centre and size, shares of the image."""

    loss: One = None
    loss_dict: Any = None
    logits: One = None
    pred_boxes: One = None
    auxiliary_outputs: Any = None
    last_hidden_state: One = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class ConditionalDetrSegmentationOutput(ModelOutput):
    """Scores, boxes, and for each query a mask (B, Q, Y / 4, X / 4) of scores."""

    loss: One = None
    loss_dict: Any = None
    logits: One = None
    pred_boxes: One = None
    pred_masks: One = None
    auxiliary_outputs: Any = None
    last_hidden_state: One = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None
