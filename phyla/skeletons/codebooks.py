"""The calls of models that write codes of sound: a decoder of several codebooks, alone or behind text."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks import Block, Linear
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.family import part
from phyla.heads.base import Call
from phyla.model import Lazy, PreTrainedModel
from phyla.outputs import BaseModelOutput, ModelOutput
from phyla.registry import row
from phyla.skeletons.base import IdTensor, conclude, context_for, expand_head_mask, finish, flag, take_cache


def shifted_codes(labels: Tensor, padding: int, start: int) -> Tensor:
    """Decoder ids (B * K, T) for labels (B, T, K): one step later, the start code in front."""
    codes = labels.transpose(1, 2)
    start_codes = torch.full_like(codes[..., :1], start)
    codes = torch.cat((start_codes, codes[..., :-1]), -1)
    return codes.masked_fill(codes == -100, padding).flatten(0, 1)


class CodebookModel(PreTrainedModel):
    """Codes (B * K, S) of K codebooks to states (B, S, D); codes of a place are read and written together."""

    generate = Lazy("phyla.generation.music", "generate_codes", "method")

    @property
    def num_codebooks(self) -> int:
        """Codebooks that are written."""
        return self.config.num_codebooks

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the decoder on codes input_ids (B * K, S), K codebooks of a row side by side.

        labels (B, T, K) stand in for the codes, one step earlier.
        """
        config = self.config
        if input_ids is None and inputs_embeds is None and labels is not None:
            input_ids = shifted_codes(labels, config.pad_token_id, config.bos_token_id)
        if (input_ids is None) == (inputs_embeds is None):
            raise ArgumentError("pass either input_ids (batch * codebooks, length) or inputs_embeds")
        if input_ids is not None:
            if input_ids.shape[0] % config.num_codebooks:
                raise ArgumentError(
                    f"input_ids must have a multiple of {config.num_codebooks} rows, one a codebook, but "
                    f"have {input_ids.shape[0]}"
                )
            input_ids = input_ids.reshape(-1, config.num_codebooks, input_ids.shape[-1])
            batch, length, device = input_ids.shape[0], input_ids.shape[2], input_ids.device
        else:
            assert inputs_embeds is not None
            batch, length, device = *inputs_embeds.shape[:2], inputs_embeds.device
        caching = bool(config.use_cache and not self.training) if use_cache is None else bool(use_cache)
        cache = take_cache(self, past_key_values, caching, batch, length)
        ctx = context_for(
            self, (batch, length), device, attention_mask, None, cache,
            flag(output_attentions, config.output_attentions), encoder_hidden_states is not None,
        )  # fmt: skip
        ctx.head_mask = expand_head_mask(head_mask, len(self.backbone.layers), self.dtype)
        if encoder_hidden_states is not None:
            ctx.memory = encoder_hidden_states
            if encoder_attention_mask is not None:
                seen = encoder_attention_mask.bool()
                ctx.memory_mask = seen | ~seen.any(-1, keepdim=True)  # text that is all padding is all zeros
        states = flag(output_hidden_states, config.output_hidden_states)
        out = self.backbone(ctx, input_ids, inputs_embeds, None, states)
        call = Call(config, labels=labels)
        return conclude(self, out, call, return_dict)


def text_task(config: PretrainedConfig) -> str:
    """The task of the class that encodes text: an encoder alone where the family has one."""
    tasks = row(config.model_type).classes.values()
    return "text-encoding" if "text-encoding" in tasks else "base-model"


class Trio(Block):
    """A whole text encoder, a whole audio codec and a whole decoder; `project` where widths differ."""

    def __init__(self, text: PretrainedConfig, audio: PretrainedConfig, decoder: PretrainedConfig) -> None:
        super().__init__()
        self.text_encoder = part(text).model(text_task(text))
        self.audio_encoder = part(audio).model("base-model")
        self.decoder = part(decoder).model("causal-lm")
        source, target = part(text).width, part(decoder).width
        given = decoder.cross_attention_hidden_size
        if given is not None and given != source:
            raise ConfigError(
                f"cross_attention_hidden_size of the decoder must be the text encoder's width ({source}), "
                f"but is {given}"
            )
        self.project = Linear(source, target) if source != target and given is None else None


class MusicModel(PreTrainedModel):
    """Text, and sound to go on from, to codes of sound; `generate` gives the sound itself."""

    generate = Lazy("phyla.generation.music", "generate_music", "method")

    @property
    def is_encoder_decoder(self) -> bool:
        return True

    @property
    def implementation(self) -> str:
        """How attention is computed, in all parts."""
        return self.__dict__.get("_implementation", "sdpa")

    @implementation.setter
    def implementation(self, value: str) -> None:
        self.__dict__["_implementation"] = value
        if "backbone" in self._modules:
            self.text_encoder.implementation = self.decoder.implementation = value

    @property
    def text_encoder(self) -> PreTrainedModel:
        """The part that reads the text."""
        return self.backbone.text_encoder

    @property
    def audio_encoder(self) -> PreTrainedModel:
        """The part that turns sound into codes and back."""
        return self.backbone.audio_encoder

    @property
    def decoder(self) -> CodebookModel:
        """The part that writes codes."""
        return self.backbone.decoder

    def get_text_encoder(self) -> PreTrainedModel:
        """The part that reads the text."""
        return self.text_encoder

    get_encoder = get_text_encoder

    def get_audio_encoder(self) -> PreTrainedModel:
        """The part that turns sound into codes and back."""
        return self.audio_encoder

    def get_decoder(self) -> CodebookModel:
        """The part that writes codes."""
        return self.decoder

    def freeze_text_encoder(self) -> None:
        """Train without the text encoder."""
        self.text_encoder.requires_grad_(False)

    def freeze_audio_encoder(self) -> None:
        """Train without the codec."""
        self.audio_encoder.requires_grad_(False)

    def get_unconditional_inputs(self, num_samples: int = 1) -> "Unconditional":
        """Inputs of `generate` without any text."""
        width = part(self.config.text_encoder).width
        states = torch.zeros(num_samples, 1, width, device=self.device, dtype=self.dtype)
        mask = torch.zeros(num_samples, 1, device=self.device, dtype=torch.long)
        return Unconditional((states,), mask, 1.0)

    def memory_of(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """Text states (B, T, D) as the decoder attends to them, padding at 0."""
        if self.backbone.project is not None:
            states = self.backbone.project(states)
        return states if mask is None else states * mask[..., None].to(states.dtype)

    def codes_of(self, sound: Tensor, mask: Tensor | None) -> tuple[Tensor, Any]:
        """Codes (B * K, S) of sound (B, C, T), both channels in turns where the decoder writes stereo."""
        stereo = self.config.decoder.audio_channels == 2
        if stereo and sound.shape[1] != 2:
            raise ArgumentError(f"input_values must have 2 channels, but have {sound.shape[1]}")
        sides = (sound[:, :1], sound[:, 1:]) if stereo else (sound,)
        found = [self.audio_encoder.encode(side, mask, return_dict=False) for side in sides]
        codes = torch.stack([side for side, _ in found], 3).flatten(2, 3)  # (chunks, B, K, S)
        if len(codes) != 1:
            raise ArgumentError(
                f"the codec must read sound as one chunk, but made {len(codes)}: unset chunk_length_s"
            )
        return codes[0].flatten(0, 1), found[0][1]

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Score the next codes behind decoder_input_ids (B * K, S), or behind sound input_values (B, C, T).

        input_ids (B, T) is the text; labels (B, S, K) stand in for the codes, one step earlier.
        """
        config = self.config.decoder
        if encoder_outputs is None:
            encoder_outputs = self.text_encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds,
                output_attentions=output_attentions, output_hidden_states=output_hidden_states,
                return_dict=True,
            )  # fmt: skip
        elif isinstance(encoder_outputs, tuple | list):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is not None:
                start = config.decoder_start_token_id
                decoder_input_ids = shifted_codes(
                    labels, config.pad_token_id, config.bos_token_id if start is None else start
                )
            elif input_values is not None:
                decoder_input_ids, _ = self.codes_of(input_values, padding_mask)
            else:
                raise ArgumentError("pass decoder_input_ids, labels or input_values")
        caching = bool(config.use_cache and not self.training) if use_cache is None else bool(use_cache)
        if past_key_values is None and caching:
            given: Any = decoder_input_ids if decoder_input_ids is not None else decoder_inputs_embeds
            rows = len(encoder_outputs.last_hidden_state)
            past_key_values = self.new_cache(rows, given.shape[1])
        out = self.decoder(
            decoder_input_ids, decoder_attention_mask,
            self.memory_of(encoder_outputs.last_hidden_state, attention_mask), attention_mask,
            past_key_values=past_key_values, inputs_embeds=decoder_inputs_embeds, labels=labels,
            use_cache=caching, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=True,
        )  # fmt: skip
        fields = {
            "loss": out.loss,
            "logits": out.logits,
            "past_key_values": out.past_key_values,
            "decoder_hidden_states": out.hidden_states,
            "decoder_attentions": out.attentions,
            "cross_attentions": out.cross_attentions,
            "encoder_last_hidden_state": encoder_outputs.last_hidden_state,
            "encoder_hidden_states": getattr(encoder_outputs, "hidden_states", None),
            "encoder_attentions": getattr(encoder_outputs, "attentions", None),
        }
        return finish(self, fields, out, return_dict)


class Unconditional(ModelOutput):
    """Arguments of `generate` for sound without text."""

    encoder_outputs: Any = None
    attention_mask: Any = None
    guidance_scale: Any = None
