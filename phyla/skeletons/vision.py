"""The call of models that see."""

from typing import Any

from torch import Tensor

from phyla.blocks.stack import Stack, StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.heads.pose import PoseCall
from phyla.model import PreTrainedModel
from phyla.skeletons.base import conclude, context_for, expand_head_mask, finish, flag


class VisionModel(PreTrainedModel):
    """Pixels to states of the patches."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on pixel_values (B, C, Y, X), already resized and normalised."""
        if pixel_values is None:
            raise ArgumentError("pass pixel_values (batch, channels, height, width)")
        out = self.see(
            pixel_values,
            bool_masked_pos,
            head_mask,
            output_attentions,
            output_hidden_states,
            interpolate_pos_encoding,
        )
        call = Call(self.config, labels=labels, pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
        fields = {} if self.head is None else self.head(out, call)
        if self.head_spec.needs_states and not flag(output_hidden_states, self.config.output_hidden_states):
            out.hidden_states = None
            vars(out).pop("reshaped_hidden_states", None)
        return finish(self, fields, out, return_dict)

    def see(
        self,
        pixels: Tensor,
        hidden: Tensor | None,
        head_mask: Tensor | None,
        attentions: bool | None,
        states: bool | None,
        interpolate: bool | None,
    ) -> StackOutput:
        """The backbone's output for pixels (B, C, Y, X)."""
        return see(
            self, self.backbone, pixels, hidden, head_mask, flag(attentions, self.config.output_attentions),
            flag(states, self.config.output_hidden_states) or self.head_spec.needs_states, bool(interpolate),
        )  # fmt: skip


class NoisyVisionModel(VisionModel):
    """Pixels to states of patches of which some are hidden at random; `noise` decides which."""

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> Any:
        """Run the model on pixel_values (B, C, Y, X); the places of smallest noise (B, places) are seen."""
        return super().forward(
            pixel_values, noise, head_mask, None, output_attentions, output_hidden_states,
            interpolate_pos_encoding, return_dict,
        )  # fmt: skip


class PoseModel(VisionModel):
    """Pixels of a person to places of the joints."""

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        dataset_index: Tensor | None = None,
        flip_pairs: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on pixel_values (B, C, Y, X), each by the experts of dataset_index (B).

        flip_pairs (N, 2): the pixels are mirrored; joints change places in pairs, maps are mirrored back.
        """
        if pixel_values is None:
            raise ArgumentError("pass pixel_values (batch, channels, height, width)")
        states = flag(output_hidden_states, self.config.output_hidden_states)
        out = see(
            self, self.backbone, pixel_values, None, None,
            flag(output_attentions, self.config.output_attentions), states, False, {"dataset": dataset_index},
        )  # fmt: skip
        call = PoseCall(self.config, labels=labels, pixel_values=pixel_values, flip_pairs=flip_pairs)
        return conclude(self, out, call, return_dict)


class BackboneModel(PreTrainedModel):
    """Pixels to feature maps of the stages that the configuration chooses."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Feature maps (B, C, Y, X) of pixel_values (B, C, Y, X), one for each of out_features."""
        return self.extract(pixel_values, output_hidden_states, output_attentions, return_dict, {})

    def extract(
        self,
        pixels: Tensor | None,
        states: bool | None,
        attentions: bool | None,
        return_dict: bool | None,
        memo: dict[Any, Any],
    ) -> Any:
        """The public output; `memo` is what layers of a kind ask the call for."""
        if pixels is None:
            raise ArgumentError("pass pixel_values (batch, channels, height, width)")
        config = self.config
        attentions = flag(attentions, config.output_attentions)
        states = flag(states, config.output_hidden_states)
        out = self.backbone(pixels, self.implementation, attentions, states, memo)
        return finish(self, {}, out, return_dict)

    def extract_masked(
        self,
        pixels: Tensor | None,
        head_mask: Tensor | None,
        states: bool | None,
        attentions: bool | None,
        return_dict: bool | None,
        memo: dict[Any, Any],
    ) -> Any:
        """`extract` with shares (H) or (L, H) of the heads."""
        if head_mask is not None:
            layers = len(self.backbone.layers)
            memo = {**memo, "head_mask": expand_head_mask(head_mask, layers, self.dtype)}
        return self.extract(pixels, states, attentions, return_dict, memo)

    @property
    def stage_names(self) -> list[str]:
        """Names of the stem and of all stages."""
        return self.config.stage_names

    @property
    def out_features(self) -> list[str]:
        """Names of the stages whose maps are given."""
        return self.config.out_features

    @property
    def out_indices(self) -> list[int]:
        """Numbers of the stages whose maps are given, as the configuration has them."""
        return self.config.out_indices

    @property
    def num_features(self) -> list[int]:
        """Channels of the stem and of every stage."""
        return self.head_spec.channels(self.config)  # type: ignore[attr-defined]

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of every stage by name."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def channels(self) -> list[int]:
        """Channels of the maps that are given."""
        return self.head_spec.chosen_channels(self.config)  # type: ignore[attr-defined]


class ExpertBackboneModel(BackboneModel):
    """A feature extractor some of whose layers choose an expert by the data set that an image is from."""

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        dataset_index: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Feature maps of pixel_values (B, C, Y, X), each by the experts of dataset_index (B)."""
        return self.extract_masked(
            pixel_values, head_mask, output_hidden_states, output_attentions, return_dict,
            {"dataset": dataset_index},
        )  # fmt: skip


def see(
    model: PreTrainedModel,
    stack: Stack,
    pixels: Tensor,
    hidden: Tensor | None,
    head_mask: Tensor | None,
    attentions: bool,
    states: bool,
    interpolate: bool,
    memo: dict[Any, Any] | None = None,
) -> StackOutput:
    """Run a vision stack whose embedding takes pixels; what that finds beside the states joins the output."""
    x = stack.embed(pixels, hidden, interpolate)
    x, found = x if isinstance(x, tuple) else (x, {})
    ctx = context_for(model, x.shape[:2], x.device, None, None, None, attentions, False)
    ctx.head_mask = expand_head_mask(head_mask, len(stack.layers), x.dtype)
    ctx.memo.update(memo or {})
    ctx.memo["pixels"] = (pixels.shape[-2], pixels.shape[-1])
    out = stack.run(x, ctx, None, states)
    vars(out).update(found)
    out.image_size = ctx.memo["pixels"]
    return out
