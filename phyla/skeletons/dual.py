"""The call of two towers."""

from typing import Any

from torch import Tensor

from phyla.blocks.stack import DualOutput, StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call, HeadModule
from phyla.model import PreTrainedModel
from phyla.skeletons.base import IdTensor, check_ids, context_for, finish, finish_tower, flag
from phyla.skeletons.vision import see


class DualModel(PreTrainedModel):
    """Texts and images to vectors that can be compared; the head is a `Contrast`."""

    head: HeadModule

    def read(
        self,
        ids: Tensor | None,
        mask: Tensor | None,
        positions: Tensor | None,
        segments: Tensor | None,
        attentions: bool | None,
        states: bool | None,
    ) -> StackOutput:
        """The text tower's output for ids (B, S)."""
        if ids is None:
            raise ArgumentError("pass input_ids (batch, sequence)")
        check_ids(ids, "input_ids")
        attentions = flag(attentions, self.config.output_attentions)
        ctx = context_for(self, ids.shape, ids.device, mask, positions, None, attentions, False)
        return self.backbone.text(ctx, ids, None, segments, flag(states, self.config.output_hidden_states))

    def look(
        self, pixels: Tensor | None, attentions: bool | None, states: bool | None, interpolate: bool | None
    ) -> StackOutput:
        """The image tower's output for pixels (B, C, Y, X)."""
        if pixels is None:
            raise ArgumentError("pass pixel_values (batch, channels, height, width)")
        return see(
            self, self.backbone.image, pixels, None, None, flag(attentions, self.config.output_attentions),
            flag(states, self.config.output_hidden_states), bool(interpolate),
        )  # fmt: skip

    def get_text_features(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Vectors (B, E) of texts in the common space, not normed; output_ options do not change them."""
        out = self.read(input_ids, attention_mask, position_ids, token_type_ids, None, None)
        return self.head.vector("text", out)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> Tensor:
        """Vectors (B, E) of images in the common space, not normed; output_ options do not change them."""
        return self.head.vector("image", self.look(pixel_values, None, None, interpolate_pos_encoding))

    def forward(
        self,
        input_ids: IdTensor = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Any:
        """Compare input_ids (T, S) with pixel_values (I, C, Y, X): scores (T, I); return_loss wants T = I."""
        states = output_hidden_states
        text = self.read(input_ids, attention_mask, position_ids, token_type_ids, output_attentions, states)
        image = self.look(pixel_values, output_attentions, states, interpolate_pos_encoding)
        texts, images = len(text.last_hidden_state), len(image.last_hidden_state)
        if return_loss and texts != images:
            raise ArgumentError(f"return_loss needs a text for each image, but got {texts} for {images}")
        out = DualOutput(text, image)
        fields = self.head(out, Call(self.config, input_ids, attention_mask, return_loss=bool(return_loss)))
        for name, tower in (("text_model_output", text), ("vision_model_output", image)):
            fields[name] = finish_tower(self, tower, return_dict)
        return finish(self, fields, out, return_dict)
