"""The call of models that give each query a label and a mask."""

from typing import Any

from torch import Tensor

from phyla.blocks.detector import Look
from phyla.heads.masks import MaskCall
from phyla.model import PreTrainedModel
from phyla.skeletons.base import conclude, flag
from phyla.skeletons.detection import check_mask


class MaskQueryModel(PreTrainedModel):
    """Pixels to labels and masks of queries."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        mask_labels: Any = None,
        class_labels: Any = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Segment pixel_values (B, C, Y, X); pixel_mask is part of the public call and without effect.

        mask_labels, class_labels: for each image masks (N, Y, X) and their labels (N).
        """
        config = self.config
        look = Look(
            check_mask(pixel_values, pixel_mask), None, self.implementation,
            flag(output_attentions, config.output_attentions),
            flag(output_hidden_states, config.output_hidden_states), labels=mask_labels,
        )  # fmt: skip
        out = self.backbone(look)
        call = MaskCall(
            config, pixel_values=pixel_values, mask_labels=mask_labels, class_labels=class_labels,
            auxiliary=flag(output_auxiliary_logits, bool(config.output_auxiliary_logits)),
        )  # fmt: skip
        return conclude(self, out, call, return_dict)
