"""Outputs of models that see."""

from typing import Any

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


class ImageClassifierOutputWithNoAttention(ModelOutput):
    """Scores of the labels for each image (B, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None


class BaseModelOutputWithNoAttention(ModelOutput):
    """The last map (B, C, Y, X)."""

    last_hidden_state: One = None
    hidden_states: Many = None


class BaseModelOutputWithPoolingAndNoAttention(ModelOutput):
    """The last map (B, C, Y, X) and its mean."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None


class BackboneOutput(ModelOutput):
    """Feature maps (B, C, Y, X) of the chosen stages."""

    feature_maps: Many = None
    hidden_states: Many = None
    attentions: Many = None


class SemanticSegmenterOutput(ModelOutput):
    """Scores (B, labels, Y, X) of the labels for each place."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class DepthEstimatorOutput(ModelOutput):
    """Depth (B, Y, X) of each place."""

    loss: One = None
    predicted_depth: One = None
    hidden_states: Many = None
    attentions: Many = None


class SwinModelOutput(ModelOutput):
    """Tokens of the last stage, their mean, and the states also as maps (B, D, Y, X)."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None
    attentions: Many = None
    reshaped_hidden_states: Many = None


class SwinImageClassifierOutput(ModelOutput):
    """Scores of the labels for each image (B, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None
    reshaped_hidden_states: Many = None


class SwinMaskedImageModelingOutput(ModelOutput):
    """Reconstructed pixels (B, C, Y, X)."""

    loss: One = None
    reconstruction: One = None
    hidden_states: Many = None
    attentions: Many = None
    reshaped_hidden_states: Many = None


class DeiTForImageClassificationWithTeacherOutput(ModelOutput):
    """Mean scores (B, labels), and those of the class vector and of the teacher's vector."""

    logits: One = None
    cls_logits: One = None
    distillation_logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class BeitModelOutputWithPooling(ModelOutput):
    """States of all tokens and the mean of the patches, or the first vector."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None
    attentions: Many = None


class ViTMAEModelOutput(ModelOutput):
    """States of the patches that are seen, which are not (B, P), and the order that puts all back (B, P)."""

    last_hidden_state: One = None
    mask: One = None
    ids_restore: One = None
    hidden_states: Many = None
    attentions: Many = None


class ViTMAEForPreTrainingOutput(ModelOutput):
    """Pixels of each patch (B, P, pixels), which patches were hidden, and the order that puts all back."""

    loss: One = None
    logits: One = None
    mask: One = None
    ids_restore: One = None
    hidden_states: Many = None
    attentions: Many = None


class VideoMAEForPreTrainingOutput(ModelOutput):
    """Pixels of each hidden tube (B, hidden, pixels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class HieraModelOutput(ModelOutput):
    """States of the last stage, their mean, which units are seen, the order that puts all back."""

    last_hidden_state: One = None
    pooler_output: One = None
    bool_masked_pos: One = None
    ids_restore: One = None
    hidden_states: Many = None
    attentions: Many = None
    reshaped_hidden_states: Many = None


class HieraForImageClassificationOutput(ModelOutput):
    """Scores of the labels for each image (B, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None
    reshaped_hidden_states: Many = None


class HieraForPreTrainingOutput(ModelOutput):
    """Pixels of each place of the last map (B, places, pixels), which are seen, the way back to order."""

    loss: One = None
    logits: One = None
    bool_masked_pos: One = None
    ids_restore: One = None
    hidden_states: Many = None
    attentions: Many = None
    reshaped_hidden_states: Many = None


class SegFormerImageClassifierOutput(ModelOutput):
    """Scores of the labels for each image (B, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class BaseModelOutputWithPoolingAndIntermediateActivations(ModelOutput):
    """States, their pooled vector, and the maps of a convolutional backbone in front."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None
    attentions: Many = None
    intermediate_activations: Many = None


class VitPoseEstimatorOutput(ModelOutput):
    """Heat of each joint (B, joints, Y, X)."""

    loss: One = None
    heatmaps: One = None
    hidden_states: Many = None
    attentions: Many = None


class SuperPointKeypointDescriptionOutput(ModelOutput):
    """Points (B, N, 2) as shares of the sides, scores, descriptors (B, N, D), which are real (B, N)."""

    loss: One = None
    keypoints: One = None
    scores: One = None
    descriptors: One = None
    mask: One = None
    hidden_states: Many = None


class KeypointMatchingOutput(ModelOutput):
    """Of each point of two images (B, 2, N) the partner's number or -1, the score, and which are real."""

    loss: One = None
    matches: One = None
    matching_scores: One = None
    keypoints: One = None
    mask: One = None
    hidden_states: Many = None
    attentions: Many = None


class YolosObjectDetectionOutput(ModelOutput):
    """Scores (B, objects, labels + 1) and boxes (B, objects, 4): centre and size, shares of the image."""

    loss: One = None
    loss_dict: Any = None
    logits: One = None
    pred_boxes: One = None
    auxiliary_outputs: Any = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None
