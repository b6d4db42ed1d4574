"""The calls of models that speak: frames of a spectrogram one after the other, and their vocoder."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError
from phyla.heads.speaking import SpeechCall
from phyla.model import Lazy, PreTrainedModel
from phyla.outputs import BaseModelOutput
from phyla.skeletons.base import IdTensor, conclude, context_for, expand_head_mask, finish, flag, take_cache
from phyla.skeletons.encoder_decoder import joint_output
from phyla.skeletons.side import Side
from phyla.skeletons.speech import SpeechModel, listen


class WaveToTextModel(SpeechModel):
    """Samples of an encoder and token ids of a decoder to states of the decoder."""

    main_input_name = "input_values"

    def encode(  # type: ignore[override]
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """States of the encoder for samples input_values (B, T)."""
        return super().encode(
            input_values, attention_mask, head_mask, output_attentions, output_hidden_states
        )

    def forward(  # type: ignore[override]
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Run encoder and decoder; labels (B, S) stand in for decoder_input_ids, shifted right."""
        return super().forward(
            input_values, attention_mask, decoder_input_ids, decoder_attention_mask, head_mask,
            decoder_head_mask, cross_attn_head_mask, encoder_outputs, past_key_values, labels=labels,
            use_cache=use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=return_dict,
            logits_to_keep=logits_to_keep,
        )  # fmt: skip

    def freeze_feature_encoder(self) -> None:
        """Train without the convolutions that read the waveform."""
        self.backbone.encoder.embed.features.requires_grad_(False)


class SpeakingModel(PreTrainedModel):
    """A source (text, samples or states) to the frames of a spectrogram.

    The embeddings of both sides are called as `embed(source, mask)` and `embed(frames, speaker, ctx)`.
    """

    main_input_name = "input_values"
    generate_speech = Lazy("phyla.generation.speak", "speak", "method")

    @property
    def is_encoder_decoder(self) -> bool:
        return True

    def get_encoder(self) -> Any:
        """The encoder, which is called as `encode` is."""
        return Side(self.backbone.encoder, self.encode)

    def get_decoder(self) -> Any:
        """The decoder's stack."""
        return self.backbone.decoder

    def freeze_feature_encoder(self) -> None:
        """Train without the convolutions that read the waveform."""
        self.backbone.encoder.embed.features.requires_grad_(False)

    def encode(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """States of the encoder."""
        encoder = self.backbone.encoder
        return listen(
            self, encoder, input_values, attention_mask, head_mask, output_attentions, output_hidden_states
        )

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_values: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        speaker_embeddings: Tensor | None = None,
        labels: Tensor | None = None,
        stop_labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run encoder and decoder.

        decoder_input_values (B, T, M): frames so far, every reduction_factor-th one. speaker_embeddings
        (B, V): the voice. labels (B, T', M): the frames to say, -100 behind their end; they stand in for
        decoder_input_values.
        """
        config = self.config
        if labels is not None and decoder_input_values is None:
            decoder_input_values, decoder_attention_mask = earlier_frames(
                labels, config.reduction_factor, decoder_attention_mask
            )
        if decoder_input_values is None:
            raise ArgumentError("pass decoder_input_values (batch, frames, mels), or labels")
        guided = labels is not None and getattr(self.head, "guides", False)
        if guided:
            output_attentions = True
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                input_values, attention_mask, head_mask, output_attentions, output_hidden_states
            )
        elif isinstance(encoder_outputs, tuple | list):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        memory = encoder_outputs.last_hidden_state
        memory_mask = self.backbone.encoder.embed.real(attention_mask, memory.shape[1])
        batch, length = decoder_input_values.shape[:2]
        caching = bool(config.use_cache and not self.training) if use_cache is None else bool(use_cache)
        cache = take_cache(self, past_key_values, caching, batch, length)
        ctx = context_for(
            self, (batch, length), memory.device, decoder_attention_mask, None, cache,
            flag(output_attentions, config.output_attentions), True, "decoder_attention_mask",
        )  # fmt: skip
        ctx.memory, ctx.memory_mask = memory, None if memory_mask is None else memory_mask.bool()
        decoder = self.backbone.decoder
        ctx.head_mask = expand_head_mask(decoder_head_mask, len(decoder.layers), self.dtype)
        x = decoder.embed(decoder_input_values, speaker_embeddings, ctx)
        out = decoder.run(x, ctx, None, flag(output_hidden_states, config.output_hidden_states))
        joined = joint_output(out, encoder_outputs)
        call = SpeechCall(config, attention_mask=memory_mask, labels=labels, length=memory.shape[1])
        return conclude(self, joined, call, return_dict)


def earlier_frames(frames: Tensor, reduction: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Every `reduction`-th of the frames (B, T, M), one step later, silence in front."""
    frames = frames[:, reduction - 1 :: reduction]
    mask = None if mask is None else mask[:, reduction - 1 :: reduction]
    frames = frames.roll(1, 1)
    first = frames.new_zeros(frames[:, :1].shape)
    frames = frames.slice_scatter(first, 1, 0, 1)
    return frames.masked_fill(frames == -100.0, 0.0), mask


class TextSpeakingModel(SpeakingModel):
    """Text to the frames of a spectrogram."""

    main_input_name = "input_ids"
    generate = Lazy("phyla.generation.speak", "speak_text", "method")
    generate_speech = Lazy("phyla.generation.speak", "speak_text", "method")

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        decoder_input_values: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        speaker_embeddings: Tensor | None = None,
        labels: Tensor | None = None,
        stop_labels: Tensor | None = None,
    ) -> Any:
        """As `SpeakingModel`, for token ids input_ids (B, S)."""
        return super().forward(
            input_ids, attention_mask, decoder_input_values, decoder_attention_mask, head_mask,
            decoder_head_mask, cross_attn_head_mask, encoder_outputs, past_key_values, use_cache,
            speaker_embeddings, labels, stop_labels, output_attentions, output_hidden_states, return_dict,
        )  # fmt: skip


class VocoderModel(PreTrainedModel):
    """Frames of a spectrogram to sound."""

    main_input_name = "spectrogram"

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Sound (B, T) of frames (B, S, M), or sound (T) of frames (S, M)."""
        if spectrogram.dim() not in (2, 3):
            raise ArgumentError(
                f"spectrogram must be (batch, frames, mels) or (frames, mels), but is "
                f"{tuple(spectrogram.shape)}"
            )
        batched = spectrogram.dim() == 3
        sound = self.backbone(spectrogram if batched else spectrogram[None])[:, 0]
        return sound if batched else sound[0]


class TextToWaveModel(PreTrainedModel):
    """Text to sound in one pass; the backbone answers `forward(ctx, ids, real, voice, states, knobs)`.

    speaking_rate, noise_scale and noise_scale_duration may be set on the model.
    """

    speaking_rate: float
    noise_scale: float
    noise_scale_duration: float

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
            setattr(self, name, getattr(config, name))

    def get_encoder(self) -> Any:
        """The text encoder's stack."""
        return self.backbone.text

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        speaker_id: int | Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> Any:
        """Sound for token ids input_ids (B, S), padded on the right, in the voice number speaker_id."""
        if input_ids is None:
            raise ArgumentError("pass input_ids (batch, sequence)")
        if labels is not None:
            raise ArgumentError("labels cannot be used: the training of this kind of model is not there")
        config = self.config
        ctx = context_for(
            self, input_ids.shape, input_ids.device, attention_mask, None, None,
            flag(output_attentions, config.output_attentions), False,
        )  # fmt: skip
        voice = None
        if config.num_speakers > 1 and speaker_id is not None:
            voice = self.voice(speaker_id)
        knobs = (self.speaking_rate, self.noise_scale, self.noise_scale_duration)
        states = flag(output_hidden_states, config.output_hidden_states)
        return finish(self, {}, self.backbone(ctx, input_ids, voice, states, *knobs), return_dict)

    def voice(self, speaker: int | Tensor) -> Tensor:
        """The vectors (1 or B) of speakers by number."""
        numbers = speaker if isinstance(speaker, Tensor) else torch.tensor([speaker], device=self.device)
        if not torch.compiler.is_compiling() and not bool(
            ((numbers >= 0) & (numbers < self.config.num_speakers)).all()
        ):
            raise ArgumentError(f"speaker_id must be 0 to {self.config.num_speakers - 1}, but is {speaker}")
        return numbers.to(self.device).reshape(-1)
