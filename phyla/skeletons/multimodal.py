"""The call of text decoders that see: images stand among the tokens, once, in the first step."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks.fusion import Images, ImageText, check_count, place
from phyla.blocks.stack import StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import (
    IdTensor,
    check_ids,
    conclude,
    context_for,
    flag,
    only_one,
    read_ids,
    take_cache,
)
from phyla.skeletons.vision import see


class ImageTextModel(PreTrainedModel):
    """Token ids and images to states of a text decoder; the backbone is an `ImageText`."""

    backbone: ImageText

    def _look(self, stack: Any, pixels: Tensor, states: bool) -> StackOutput:
        return see(self, stack, pixels, None, None, False, states, False)

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | list | None = None,
    ) -> Tensor:
        """Vectors (..., D) of images as the text model reads them."""
        images = Images(pixel_values, image_sizes, vision_feature_layer, vision_feature_select_strategy)
        return self.backbone.features(images, self._look)

    def get_decoder(self) -> Any:
        """The text model's stack."""
        return self.backbone.text

    def forward(
        self,
        input_ids: IdTensor = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        token_type_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_sizes: Tensor | list | None = None,
        vision_feature_layer: int | list | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S) with one placeholder token for each vector of an image, or inputs_embeds (B, S, D) in
        their place. pixel_values (N, C, Y, X): all images of the batch, in order of rows and tokens; only the
        call that holds their tokens needs them. attention_mask (B, cached + S). token_type_ids (B, S): 0
        where a text is read, 1 where it is learned (models that read both ways). labels (B, S).
        """
        config, backbone = self.config, self.backbone
        given = read_ids(input_ids, inputs_embeds)
        batch, length = given.shape[:2]
        vectors, features = self._merged(
            input_ids, inputs_embeds,
            None if pixel_values is None else Images(
                pixel_values, image_sizes, vision_feature_layer, vision_feature_select_strategy
            ),
        )  # fmt: skip
        cache = take_cache(self, past_key_values, wants_cache(self, use_cache), batch, length)
        ctx = context_for(
            self, (batch, length), given.device, attention_mask, position_ids, cache,
            flag(output_attentions, config.output_attentions), False,
        )  # fmt: skip
        backbone.arrange(ctx, token_type_ids, labels is not None)
        states = flag(output_hidden_states, config.output_hidden_states)
        out = backbone.text(ctx, None, vectors, None, states)
        out.image_hidden_states = features
        call = Call(
            config, input_ids, attention_mask, labels, logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
        return conclude(self, out, call, return_dict)

    def _merged(
        self, ids: Tensor | None, vectors: Tensor | None, images: Images | None
    ) -> tuple[Tensor, Tensor | None]:
        """The text's vectors (B, S, D) with those of the images in their places, and the images' own."""
        backbone, token = self.backbone, self.backbone.token
        embed = backbone.text.embed
        if ids is not None:
            marked = ids == token
            outside = token >= embed.tokens.num_embeddings
            vectors = embed.words(ids.masked_fill(marked, 0) if outside or images is not None else ids)
        if vectors is None:
            raise ArgumentError("pass input_ids or inputs_embeds")
        if images is None:
            return vectors, None
        if ids is None:
            marked = (vectors == embed.words(torch.tensor(token, device=vectors.device))).all(-1)
        features = backbone.features(images, self._look)
        flat = features.reshape(-1, features.shape[-1])
        check_count(marked, flat, token)
        return place(vectors, marked, flat), features


def wants_cache(model: PreTrainedModel, asked: bool | None) -> bool:
    """The caller's choice, or outside of training that of the text part's config."""
    if asked is not None:
        return bool(asked)
    return bool(model.config.get_text_config().__dict__.get("use_cache", True)) and not model.training


class GridTextModel(PreTrainedModel):
    """Token ids, images and videos of any size to states of a text decoder.

    The backbone has `vision(patches, grids, implementation)`, `text`,
    the ids `image_token` and `video_token`,
    and `places(ids, mask, grids, ctx, deltas)`, which says where tokens stand in time, height and width.
    """

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Vectors (N, D) of images as the text model reads them."""
        return self.backbone.vision(pixel_values, image_grid_thw, self.implementation)

    get_video_features = get_image_features

    def get_decoder(self) -> Any:
        """The text model's stack."""
        return self.backbone.text

    def get_rope_index(
        self,
        input_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Positions (3, B, S) in time, height and width, and (B, 1) how far they end before the row does."""
        real = None if attention_mask is None else attention_mask.bool()
        return self.backbone.places(input_ids, real, (image_grid_thw, video_grid_thw), None, None)

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        rope_deltas: Tensor | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run the model.

        input_ids (B, S) with one placeholder for each vector of an image or a video. pixel_values (patches,
        F)
        of all images, one after the other, and image_grid_thw (images, 3): their patches in time, height and
        width; the same for videos. position_ids (3, B, S) or (B, S), else made from the ids and the grids.
        """
        config, backbone = self.config, self.backbone
        given = only_one(input_ids, inputs_embeds)
        table = backbone.text.embed.tokens
        ids = input_ids
        if ids is not None:
            check_ids(ids, "input_ids")
            vectors = table(ids)
        else:
            vectors = given
            ids = torch.full(given.shape[:2], -1, device=given.device)
            for token in (backbone.image_token, backbone.video_token):
                vector = table(torch.full((), token, device=given.device))
                ids = ids.masked_fill((given == vector).all(-1), token)
        sources = (
            ("image", backbone.image_token, pixel_values, image_grid_thw),
            ("video", backbone.video_token, pixel_values_videos, video_grid_thw),
        )
        for what, token, pixels, grids in sources:
            if pixels is None:
                continue
            if grids is None:
                raise ArgumentError(f"{what}s need {what}_grid_thw, their patches in time, height and width")
            features = backbone.vision(pixels, grids, self.implementation)
            marked = ids == token
            check_count(marked, features, token, what)
            vectors = place(vectors, marked, features)
        batch, length = vectors.shape[:2]
        cache = take_cache(self, past_key_values, wants_cache(self, use_cache), batch, length)
        ctx = context_for(
            self, (batch, length), given.device, attention_mask, position_ids, cache,
            flag(output_attentions, config.output_attentions), False,
        )  # fmt: skip
        if position_ids is None:
            mask = ctx.attention_mask
            real = mask[:, ctx.start :] if mask is not None and mask.dim() == 2 else None
            both = (image_grid_thw, video_grid_thw)
            ctx.positions, rope_deltas = backbone.places(ids, real, both, ctx, rope_deltas)
        states = flag(output_hidden_states, config.output_hidden_states)
        out = backbone.text(ctx, None, vectors, None, states)
        out.rope_deltas = rope_deltas
        call = Call(
            config, input_ids, attention_mask, labels, logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
        return conclude(self, out, call, return_dict)
