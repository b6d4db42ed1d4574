"""The call of models that read any input into latent vectors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.context import Context
from phyla.errors import ArgumentError
from phyla.heads.latent import LatentCall
from phyla.model import PreTrainedModel
from phyla.skeletons.base import conclude, expand_head_mask, flag


class LatentModel(PreTrainedModel):
    """Text, pixels, sound or several of them to latent vectors, and from these to an output of any shape."""

    main_input_name = "inputs"

    def forward(
        self,
        inputs: Tensor | Mapping[str, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        subsampled_output_points: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Run the model.

        inputs: token ids (B, S), pixels (B, C, Y, X), frame pairs (B, 2, C, Y, X), ready vectors (B, S, D),
        or a tensor of each modality by name; input_ids and pixel_values are other names for it.
        attention_mask (B, N): 1 for real elements. subsampled_output_points: modality -> flat numbers of the
        outputs wanted.
        """
        config, backbone = self.config, self.backbone
        given = [x for x in (inputs, input_ids, pixel_values) if x is not None]
        if len(given) != 1:
            raise ArgumentError("pass exactly one of inputs, input_ids and pixel_values")
        x: Any = given[0]
        if backbone.embed is not None:
            x = backbone.embed(x, interpolate_pos_encoding)
        elif x.shape[-1] != config.d_model:
            raise ArgumentError(
                f"inputs must be (batch, positions, {config.d_model}), but are {tuple(x.shape)}"
            )
        attentions = flag(output_attentions, config.output_attentions)
        ctx = Context(
            torch.arange(len(backbone.latents), device=x.device)[None],
            len(backbone.latents),
            memory=x,
            memory_mask=None if attention_mask is None else attention_mask.to(x.device).bool(),
            implementation=self.implementation,
            attentions=[] if attentions else None,
            cross_attentions=[] if attentions else None,
        )
        ctx.head_mask = expand_head_mask(head_mask, backbone.depth, x.dtype)
        states = flag(output_hidden_states, config.output_hidden_states)
        out = backbone(ctx, x, states, subsampled_output_points)
        call = LatentCall(config, labels=labels, points=subsampled_output_points)
        return conclude(self, out, call, return_dict)
