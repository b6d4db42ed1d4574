"""The call of models that hear waveforms."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.stack import StackOutput
from phyla.blocks.wave import frame_mask
from phyla.errors import ArgumentError
from phyla.heads.ctc import AudioCall
from phyla.model import PreTrainedModel
from phyla.skeletons.base import conclude, context_for, flag


class AudioModel(PreTrainedModel):
    """Samples to states of frames; the backbone is a `WaveEncoder`."""

    main_input_name = "input_values"
    target_lang: str | None = None

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        sampled_negative_indices: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on samples input_values (B, T), attention_mask (B, T) being 0 at padding behind them.

        mask_time_indices (B, S) mark frames to hide, sampled_negative_indices (B, S, K) the frames of the
        whole batch to tell them from.
        """
        if input_values is None or input_values.dim() != 2:
            found = None if input_values is None else tuple(input_values.shape)
            raise ArgumentError(f"input_values must be (batch, samples), but are {found}")
        config = self.config
        if mask_time_indices is not None:
            mask_time_indices = mask_time_indices.bool()
        states = flag(output_hidden_states, config.output_hidden_states)
        states = states or getattr(self.head, "mix", None) is not None
        out = self.listen(
            input_values, attention_mask, mask_time_indices,
            flag(output_attentions, config.output_attentions), states,
        )  # fmt: skip
        call = AudioCall(
            config, attention_mask=attention_mask, labels=labels, hidden=mask_time_indices,
            negatives=sampled_negative_indices,
        )  # fmt: skip
        if attention_mask is not None:
            call.lengths = self.frames_of(attention_mask.sum(-1))
        return conclude(self, out, call, return_dict)

    def listen(
        self, wave: Tensor, mask: Tensor | None, marks: Tensor | None, attentions: bool, states: bool
    ) -> StackOutput:
        """The backbone's output for samples (B, T)."""
        lengths = None if mask is None else mask.sum(-1)
        x, features, real = self.backbone.embed(wave, lengths, marks)
        ctx = context_for(self, x.shape[:2], x.device, real, None, None, attentions, False)
        out = self.backbone.run(x, ctx, None, states)
        if self.backbone.shrink is not None:
            out.last_hidden_state = self.backbone.shrink(out.last_hidden_state)
        out.extract_features = features
        return out

    def frames_of(self, samples: Tensor) -> Tensor:
        """How many states so many samples (B) give."""
        frames = self.backbone.embed.features.length(samples)
        return frames if self.backbone.shrink is None else self.backbone.shrink.length(frames)

    def _get_feat_extract_output_lengths(
        self, input_lengths: Tensor | int, add_adapter: bool | None = None
    ) -> Tensor:
        samples = torch.as_tensor(input_lengths)
        if add_adapter is False:
            return self.backbone.embed.features.length(samples)
        return self.frames_of(samples)

    def _get_feature_vector_attention_mask(
        self, feature_vector_length: int, attention_mask: Tensor, add_adapter: bool | None = None
    ) -> Tensor:
        lengths = self._get_feat_extract_output_lengths(attention_mask.sum(-1), add_adapter)
        return frame_mask(lengths, feature_vector_length)

    def freeze_feature_encoder(self) -> None:
        """Train without the convolutions that read the waveform."""
        self.backbone.embed.features.requires_grad_(False)

    freeze_feature_extractor = freeze_feature_encoder

    def freeze_base_model(self) -> None:
        """Train the head alone."""
        self.backbone.requires_grad_(False)

    def set_gumbel_temperature(self, temperature: float) -> None:
        """How evenly pretraining draws its codes."""
        head: Any = self.head
        head.quantiser.temperature = temperature

    def init_adapter_layers(self) -> None:
        """Fresh small layers and a fresh head, to train a new language."""
        from phyla.checkpoints.languages import init_language

        init_language(self)

    @classmethod
    def from_pretrained(cls, source: Any, *, target_lang: str | None = None, **options: Any) -> Any:
        """As for any model; target_lang also reads the weights of that language (see `load_adapter`)."""
        loaded = super().from_pretrained(source, **options)  # type: ignore[misc]
        if target_lang is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            places = ("revision", "cache_dir", "local_files_only", "token", "subfolder")
            model.load_adapter(target_lang, **{k: v for k, v in options.items() if k in places})
        return loaded

    def load_adapter(self, target_lang: str, force_load: bool = True, **source: Any) -> Any:
        """Read `adapter.LANGUAGE.safetensors` (or .bin) of the model's source: its small layers and its head.

        source: where to look, as for from_pretrained (revision, cache_dir, ...). The folder of an adapter,
        with an adapter_config.json, is read as on any other model.
        """
        from phyla.checkpoints.languages import load_language

        if (Path(target_lang) / "adapter_config.json").is_file():
            return super().load_adapter(target_lang, **source)  # type: ignore[misc]
        if force_load or target_lang != self.target_lang:
            load_language(self, target_lang, **source)
            self.target_lang = target_lang
