"""The calls of models that find objects: pixels with their mask to states of queries."""

from typing import Any

from torch import Tensor

from phyla.blocks.detector import Look
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import check_ids, conclude, finish, flag


def check_mask(pixels: Tensor | None, mask: Tensor | None) -> Tensor:
    """The pixels; ArgumentError unless the mask fits them."""
    if pixels is None or pixels.dim() != 4:
        found = None if pixels is None else tuple(pixels.shape)
        raise ArgumentError(f"pass pixel_values (batch, channels, height, width), not {found}")
    wanted = (pixels.shape[0], *pixels.shape[-2:])
    if mask is not None and tuple(mask.shape) != wanted:
        raise ArgumentError(
            f"pixel_mask must be {wanted}, 1 at pixels that are real, but is {tuple(mask.shape)}"
        )
    return pixels


class DetectionModel(PreTrainedModel):
    """Pixels to states of queries, one for each object."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Find objects in pixel_values (B, C, Y, X), of which pixel_mask (B, Y, X) is 0 at padding.

        labels: for each image an object with class_labels (N) and boxes (N, 4). encoder_outputs: states of
        the image's places, in place of computing them. decoder_attention_mask, inputs_embeds and
        decoder_inputs_embeds are part of the public call and without effect.
        """
        return self.detect(
            pixel_values, pixel_mask, encoder_outputs, labels, output_attentions, output_hidden_states,
            return_dict,
        )  # fmt: skip

    def detect(
        self,
        pixels: Tensor | None,
        mask: Tensor | None,
        encoded: Any,
        labels: Any,
        attentions: bool | None,
        states: bool | None,
        return_dict: bool | None,
    ) -> Any:
        """The public output."""
        config = self.config
        look = Look(
            check_mask(pixels, mask), mask, self.implementation, flag(attentions, config.output_attentions),
            flag(states, config.output_hidden_states), encoded, labels, self.head,
        )  # fmt: skip
        out = self.backbone(look)
        call = Call(config, labels=labels, pixel_values=look.pixels)
        return conclude(self, out, call, return_dict)

    def freeze_backbone(self) -> None:
        """Keep the parameters of the network of feature maps as they are."""
        self.backbone.features.requires_grad_(False)

    def unfreeze_backbone(self) -> None:
        """Train the parameters of the network of feature maps."""
        self.backbone.features.requires_grad_(True)


class GroundedDetectionModel(PreTrainedModel):
    """Pixels and a text to states of queries, one for each object that the text names."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Any = None,
    ) -> Any:
        """Find what input_ids (B, S) name in pixel_values (B, C, Y, X), of which pixel_mask is 0 at padding.

        labels: for each image an object with class_labels (N), numbers of the phrases between full stops,
        and boxes (N, 4).
        """
        config = self.config
        if input_ids is None:
            raise ArgumentError("pass input_ids (batch, tokens): the names of what is to be found")
        check_ids(input_ids, "input_ids")
        # What is longer than the scores are wide is cut off, as published.
        cut = {"ids": input_ids, "segments": token_type_ids, "mask": attention_mask}
        text = {k: None if v is None else v[:, : config.max_text_len] for k, v in cut.items()}
        look = Look(
            check_mask(pixel_values, pixel_mask), pixel_mask, self.implementation,
            flag(output_attentions, config.output_attentions),
            flag(output_hidden_states, config.output_hidden_states), encoder_outputs, labels, self.head,
            {**text, "whole": input_ids},
        )  # fmt: skip
        out = self.backbone(look)
        call = Call(config, text["ids"], text["mask"], labels, pixel_values=pixel_values)
        fields = {} if self.head is None else {**self.head(out, call), "input_ids": input_ids}
        return finish(self, fields, out, return_dict)

    def freeze_backbone(self) -> None:
        """Keep the parameters of the network of feature maps as they are."""
        self.backbone.features.requires_grad_(False)

    def unfreeze_backbone(self) -> None:
        """Train the parameters of the network of feature maps."""
        self.backbone.features.requires_grad_(True)
