"""The call of models that draw masks of what points, boxes and rough masks show."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError
from phyla.model import PreTrainedModel
from phyla.skeletons.base import finish, flag


class PromptedModel(PreTrainedModel):
    """Pixels, or the map of an earlier call, and prompts to masks."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        multimask_output: bool = True,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Masks of pixel_values (B, C, Y, X), or of their image_embeddings (B, D, Y', X').

        P prompts an image: input_points (B, P, N, 2) in pixels with input_labels (B, P, N) (1 inside, 0
        outside, -1 no point, -10 padding), input_boxes (B, P, 4), input_masks (B, 1, Y, X) of scores.
        attention_similarity (B * P, tokens, places) is added to the scores of attention to the image;
        target_embedding joins the tokens.
        """
        if (pixel_values is None) == (image_embeddings is None):
            raise ArgumentError("pass either pixel_values or image_embeddings, and not both")
        attentions = flag(output_attentions, self.config.output_attentions)
        states = flag(output_hidden_states, self.config.output_hidden_states)
        fields: dict[str, Any] = {}
        if pixel_values is not None:
            seen = self.backbone.vision(pixel_values, self.implementation, attentions, states)
            image_embeddings = seen.last_hidden_state
            fields = {"vision_hidden_states": seen.hidden_states, "vision_attentions": seen.attentions}
        assert image_embeddings is not None
        self._check(image_embeddings, input_points, input_boxes)
        sparse, dense = self.backbone.prompts(input_points, input_labels, input_boxes, input_masks)
        masks, scores, found = self.backbone.decoder(
            image_embeddings, self.get_image_wide_positional_embeddings(), sparse, dense, self.implementation,
            attention_similarity, target_embedding,
        )  # fmt: skip
        kept = slice(1, None) if multimask_output else slice(0, 1)
        fields |= {"iou_scores": scores[:, :, kept], "pred_masks": masks[:, :, kept]}
        if attentions:
            fields["mask_decoder_attentions"] = found
        return finish(self, fields, None, return_dict)

    def _check(self, image: Tensor, points: Tensor | None, boxes: Tensor | None) -> None:
        for name, given, dims in (("input_points", points, 4), ("input_boxes", boxes, 3)):
            if given is not None and (given.dim() != dims or given.shape[0] != image.shape[0]):
                wanted = "(batch, prompts, points, 2)" if dims == 4 else "(batch, prompts, 4)"
                raise ArgumentError(
                    f"{name} must be {wanted} for {image.shape[0]} images, but are {tuple(given.shape)}"
                )
        if points is not None and boxes is not None and points.shape[1] != boxes.shape[1]:
            raise ArgumentError(
                "points and boxes must be of as many prompts, but are of "
                f"{points.shape[1]} and {boxes.shape[1]}"
            )

    def get_image_wide_positional_embeddings(self) -> Tensor:
        """Vectors (1, D, Y', X') of the places of the image's map."""
        return self.backbone.prompts.grid()

    @torch.no_grad()
    def get_image_embeddings(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Tensor:
        """The map (B, D, Y', X') of pixel_values, to be used for many prompts."""
        return self.backbone.vision(pixel_values, self.implementation, False, False).last_hidden_state

    @torch.no_grad()
    def get_prompt_embeddings(
        self,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Vectors (B, P, N, D) of points and corners, and the map (B or 1, D, Y', X') of the masks."""
        sparse, dense = self.backbone.prompts(input_points, input_labels, input_boxes, input_masks)
        return (dense.new_zeros((1, 1, 1, dense.shape[1])) if sparse is None else sparse), dense
