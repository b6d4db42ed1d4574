"""The call of models that forecast a series with an encoder and a decoder."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks.series import SeriesOutput
from phyla.errors import ArgumentError
from phyla.heads.series import SeriesCall
from phyla.model import PreTrainedModel
from phyla.outputs import BaseModelOutput
from phyla.outputs.series import SampleTSPredictionOutput
from phyla.skeletons.base import conclude, context_for, expand_head_mask, flag, take_cache
from phyla.skeletons.encoder_decoder import joint_output


class ForecastModel(PreTrainedModel):
    """Values and features of the past, and of the future, to the distribution of later values."""

    main_input_name = "past_values"

    @property
    def is_encoder_decoder(self) -> bool:
        return True

    def encode(
        self,
        features: Tensor,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """States of the encoder for features (B, context, F)."""
        attentions = flag(output_attentions, self.config.output_attentions)
        ctx = context_for(self, features.shape[:2], features.device, None, None, None, attentions, False)
        encoder = self.backbone.encoder
        ctx.head_mask = expand_head_mask(head_mask, len(encoder.layers), self.dtype)
        out = encoder(ctx, None, features, None, flag(output_hidden_states, self.config.output_hidden_states))
        return BaseModelOutput(out.last_hidden_state, out.hidden_states, out.attentions)

    def forward(
        self,
        past_values: Tensor | None = None,
        past_time_features: Tensor | None = None,
        past_observed_mask: Tensor | None = None,
        static_categorical_features: Tensor | None = None,
        static_real_features: Tensor | None = None,
        future_values: Tensor | None = None,
        future_time_features: Tensor | None = None,
        future_observed_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on past_values (B, T) or (B, T, C), T the context and the largest lag.

        past_time_features, future_time_features (B, T, features). static_categorical_features (B, n) and
        static_real_features (B, m) hold for the whole series. Observed masks are 1 where a value is known.
        future_values are what the decoder reads and the loss compares with; without them the encoder runs.
        """
        config = self.config
        if past_values is None or past_time_features is None:
            raise ArgumentError("pass past_values and past_time_features")
        if (future_values is None) != (future_time_features is None) and future_values is not None:
            raise ArgumentError("pass future_time_features together with future_values")
        features, loc, scale, static = self.backbone.features(
            past_values, past_time_features, past_observed_mask, static_categorical_features,
            static_real_features, future_values, future_time_features,
        )  # fmt: skip
        context = config.context_length
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                features[:, :context], head_mask, output_attentions, output_hidden_states
            )
        elif isinstance(encoder_outputs, tuple | list):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        memory = encoder_outputs.last_hidden_state
        if future_values is None:
            out = SeriesOutput(memory[:, :0])
        else:
            out = self._decode(
                features[:, context:], memory, decoder_attention_mask, decoder_head_mask, past_key_values,
                flag(use_cache, bool(config.use_cache) and not self.training and self.head is None),
                output_attentions, output_hidden_states,
            )  # fmt: skip
        joined: Any = joint_output(out, encoder_outputs)
        joined.loc, joined.scale, joined.static_features = loc, scale, static
        call = SeriesCall(config, future_values=future_values, future_observed_mask=future_observed_mask)
        return conclude(self, joined, call, return_dict)

    def _decode(
        self, features: Tensor, memory: Tensor, mask: Tensor | None, head_mask: Tensor | None, past: Any,
        caching: bool, attentions: bool | None, states: bool | None,
    ) -> Any:  # fmt: skip
        batch, length = features.shape[:2]
        cache = take_cache(self, past, caching, batch, length)
        attentions = flag(attentions, self.config.output_attentions)
        ctx = context_for(
            self, (batch, length), features.device, mask, None, cache, attentions, True,
            "decoder_attention_mask",
        )  # fmt: skip
        ctx.memory, decoder = memory, self.backbone.decoder
        ctx.head_mask = expand_head_mask(head_mask, len(decoder.layers), self.dtype)
        return decoder(ctx, None, features, None, flag(states, self.config.output_hidden_states))

    def can_generate(self) -> bool:
        return self.head is not None

    @torch.no_grad()
    def generate(
        self,
        past_values: Tensor,
        past_time_features: Tensor,
        future_time_features: Tensor,
        past_observed_mask: Tensor | None = None,
        static_categorical_features: Tensor | None = None,
        static_real_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SampleTSPredictionOutput:
        """Draw `num_parallel_samples` futures (B, samples, T) or (B, samples, T, C), value after value."""
        if self.head is None:
            raise ArgumentError(f"{type(self).__name__} has nothing to draw; use the class for prediction")
        config, count = self.config, self.config.num_parallel_samples
        features, loc, scale, static = self.backbone.features(
            past_values, past_time_features, past_observed_mask, static_categorical_features,
            static_real_features, None, None,
        )  # fmt: skip
        memory = self.encode(features).last_hidden_state
        steps = config.prediction_length
        known = torch.cat((static[:, None].expand(-1, steps, -1), future_time_features[:, :steps]), -1)
        memory, known, loc, scale, past = (
            t.repeat_interleave(count, 0)  # type: ignore[union-attr]
            for t in (memory, known, loc, scale, past_values)
        )
        values, at = (past - loc) / scale, past.shape[1]
        values = torch.cat((values, torch.zeros_like(values[:, :1]).repeat_interleave(steps, 1)), 1)
        cache = self.new_cache(len(memory), steps)
        for step in range(steps):
            lagged = torch.stack([values[:, at + step - lag] for lag in config.lags_sequence], -1)
            inputs = torch.cat((lagged.flatten(1), known[:, step]), -1)[:, None]
            out = self._decode(inputs, memory, None, None, cache, True, False, False)
            params = self.head.out(out.last_hidden_state)
            drawn = self.head.out.distribution(params, loc, scale).sample()  # (rows, 1) or (rows, 1, C)
            values[:, at + step] = ((drawn - loc) / scale)[:, 0]
            past = torch.cat((past, drawn), 1)
        return SampleTSPredictionOutput(past[:, at:].unflatten(0, (-1, count)))
