"""The call of one encoder that reads a text and looks at an image."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks.stack import StackOutput
from phyla.errors import ArgumentError
from phyla.heads.page import PageCall
from phyla.model import PreTrainedModel
from phyla.skeletons.base import (
    IdTensor,
    conclude,
    context_for,
    expand_head_mask,
    finish,
    flag,
    only_one,
    read_ids,
)


class JointModel(PreTrainedModel):
    """Token ids and pixels to states of tokens and patches; the backbone has `embed`, `image`, `stack`."""

    def read(
        self,
        ids: Tensor | None,
        vectors: Tensor | None,
        mask: Tensor | None,
        kinds: Tensor | None,
        seen: tuple[Tensor | None, Tensor | None, Tensor | None, int],
        head_mask: Tensor | None,
        attentions: bool | None,
        states: bool | None,
    ) -> StackOutput:
        """The backbone's output; seen: pixels, their mask, ready vectors of patches, number of the image."""
        pixels, pixel_mask, patches, number = seen
        given = read_ids(ids, vectors)
        if (pixels is None) == (patches is None):
            raise ArgumentError("pass either pixel_values or image_embeds, and not both")
        images = len(pixels) if pixels is not None else len(patches)  # type: ignore[arg-type]
        if images != len(given):
            raise ArgumentError(
                f"there must be an image for each text, but there are {images} for {len(given)}"
            )
        backbone, config = self.backbone, self.config
        text = context_for(self, given.shape[:2], given.device, mask, None, None, False, False)
        words = backbone.embed(ids, vectors, kinds, text)
        patches, real = backbone.image(pixels, pixel_mask, patches, self.training)
        x = torch.cat(backbone.marked(words, patches, number), 1)
        mask = text.attention_mask
        if mask is None:
            mask = torch.ones(words.shape[:2], dtype=torch.bool, device=x.device)
        mask = torch.cat((mask, real), 1)
        ctx = context_for(
            self, x.shape[:2], x.device, mask, None, None, flag(attentions, config.output_attentions), False
        )
        ctx.head_mask = expand_head_mask(head_mask, len(backbone.stack.layers), x.dtype)
        return backbone.stack.run(x, ctx, None, flag(states, config.output_hidden_states))

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_token_type_idx: int | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S); pixel_values (B, C, Y, X) with pixel_mask (B, Y, X), 0 at padding on the right and
        below, or image_embeds (B, P, D) with their mask in its place.
        """
        seen = (pixel_values, pixel_mask, image_embeds, image_token_type_idx or 1)
        out = self.read(
            input_ids, inputs_embeds, attention_mask, token_type_ids, seen, head_mask, output_attentions,
            output_hidden_states,
        )  # fmt: skip
        given = only_one(input_ids, inputs_embeds)
        call = PageCall(self.config, input_ids, attention_mask, labels, words=given.shape[1])
        return conclude(self, out, call, return_dict)


class JointImagesModel(JointModel):
    """A text with several images, which are read one after the other."""

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on input_ids (B, S) and pixel_values (B, images, C, Y, X), labels (B)."""
        if pixel_values is not None and pixel_values.dim() == 4:
            pixel_values = pixel_values[:, None]
        if image_embeds is not None and image_embeds.dim() == 3:
            image_embeds = image_embeds[:, None]
        images = pixel_values if pixel_values is not None else image_embeds
        wanted = self.config.num_images
        if images is None or images.shape[1] != wanted:
            found = None if images is None else images.shape[1]
            raise ArgumentError(f"each text needs {wanted} images (config key num_images), but has {found}")
        outs = []
        for i in range(wanted):
            pixels, mask, vectors = (
                t if t is None else t[:, i] for t in (pixel_values, pixel_mask, image_embeds)
            )
            outs.append(
                self.read(
                    input_ids, inputs_embeds, attention_mask, token_type_ids, (pixels, mask, vectors, i + 1),
                    head_mask, output_attentions, output_hidden_states,
                )
            )  # fmt: skip
        joined = StackOutput(
            outs[-1].last_hidden_state,
            torch.cat([out.pooler_output for out in outs if out.pooler_output is not None], -1),
        )
        fields = (
            {} if self.head is None else self.head(joined, PageCall(self.config, input_ids, labels=labels))
        )
        for name in ("hidden_states", "attentions"):
            lists = [getattr(out, name) for out in outs]
            fields[name] = lists if lists[0] is not None else None
        return finish(self, fields, joined, return_dict)
