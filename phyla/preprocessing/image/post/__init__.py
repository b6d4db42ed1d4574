"""Model outputs to boxes, masks, depth and keypoints in the picture's own size."""

from .boxes import (
    FocalBoxes,
    OldBoxes,
    OldOpenBoxes,
    OpenBoxes,
    PhraseBoxes,
    QueryBoxes,
    SuppressedBoxes,
    TopBoxes,
)
from .depth import Depth, InverseDepth, PaddedDepth
from .old_panoptic import OldPanoptic
from .points import Keypoints, Matches, Poses
from .prompted import PromptedMasks
from .segments import Coloured, InstanceMasks, QueryMasks, Semantic, TaskMasks

# The groups of post-processing methods that a row of the table can name.
POST: dict[str, type] = {
    "semantic": Semantic,
    "query_masks": QueryMasks,
    "instance_masks": InstanceMasks,
    "task_masks": TaskMasks,
    "coloured": Coloured,
    "depth": Depth,
    "depth_fov": InverseDepth,
    "depth_padded": PaddedDepth,
    "top_boxes": TopBoxes,
    "old_boxes": OldBoxes,
    "focal_boxes": FocalBoxes,
    "suppressed_boxes": SuppressedBoxes,
    "phrase_boxes": PhraseBoxes,
    "query_boxes": QueryBoxes,
    "open_boxes": OpenBoxes,
    "old_open_boxes": OldOpenBoxes,
    "old_panoptic": OldPanoptic,
    "keypoints": Keypoints,
    "matches": Matches,
    "poses": Poses,
    "prompted_masks": PromptedMasks,
}
