"""The call of any encoder with any decoder, each a whole model of its own family."""

import os
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.blocks import Linear
from phyla.blocks.cache import number_slots
from phyla.blocks.spec import Block
from phyla.checkpoints.configs import load_config
from phyla.checkpoints.names import NameMap
from phyla.checkpoints.state import layout_of
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.family import part
from phyla.heads.loss import cross_entropy
from phyla.model import PreTrainedModel, init_module, materialise
from phyla.outputs import BaseModelOutput
from phyla.registry import model_class
from phyla.skeletons.base import IdTensor, finish, flag, take_cache

_SIDES = {"encoder": "base-model", "decoder": "causal-lm"}


class Pair(Block):
    """A whole encoder and a whole decoder with its head; `project` where their widths differ.

    tied: the decoder's weights are the encoder's too, wherever both have the same part.
    """

    def __init__(self, encoder: PretrainedConfig, decoder: PretrainedConfig, tied: bool = False) -> None:
        super().__init__()
        # The decoder comes first, because files keep its name of a shared weight.
        self.decoder, self.encoder = part(decoder).model("causal-lm"), part(encoder).model("base-model")
        must_attend(self.decoder)
        source, target = states_width(encoder), part(decoder).width
        apart = source != target and decoder.cross_attention_hidden_size is None
        self.project = Linear(source, target) if apart else None
        if tied:
            tie(self.encoder.backbone, self.decoder.backbone)


def must_attend(decoder: nn.Module) -> None:
    """Raise ConfigError for a decoder that could not see the encoder."""
    if not any(getattr(module, "cross", False) is True for module in decoder.modules()):
        raise ConfigError(
            f"the decoder must attend to the encoder, but {type(decoder).__name__} has no cross-attention: "
            "set is_decoder and add_cross_attention in its configuration, where its family has it"
        )


def states_width(config: PretrainedConfig) -> int:
    """Elements of an encoder's states, behind an adapter of its own if it has one (speech)."""
    adapted = config.__dict__.get("output_hidden_size") if config.__dict__.get("add_adapter") else None
    return adapted or part(config).width


def tie(encoder: nn.Module, decoder: nn.Module) -> None:
    """Give the encoder the decoder's parameters, path by path."""
    own = dict(encoder.named_parameters())
    for path, weight in decoder.named_parameters():
        if path in own and own[path].shape == weight.shape:
            holder, _, leaf = path.rpartition(".")
            setattr(encoder.get_submodule(holder), leaf, weight)


def pair_spec(c: PretrainedConfig) -> Any:
    """The description of the two sides of a configuration."""
    return Pair(c.encoder, c.decoder, c.tie_encoder_decoder)


def pair_names(c: PretrainedConfig) -> NameMap:
    """Names: each side as its own files have it, behind the name of the side."""
    sides = {side: (f"{side}.", part(getattr(c, side)).model_names(task)) for side, task in _SIDES.items()}
    return NameMap({"project": "enc_to_dec_proj"}, parts=sides)


class PairModel(PreTrainedModel):
    """An encoder's states to next-token scores of a decoder that attends to them."""

    shows_projected: ClassVar[bool] = False  # encoder_last_hidden_state is what the decoder attends to

    @property
    def is_encoder_decoder(self) -> bool:
        return True

    @property
    def implementation(self) -> str:
        """How attention is computed, on both sides."""
        return self.__dict__.get("_implementation", "sdpa")

    @implementation.setter
    def implementation(self, value: str) -> None:
        self.__dict__["_implementation"] = value
        for side in _SIDES if "backbone" in self._modules else ():
            getattr(self.backbone, side).implementation = value

    def __init__(
        self,
        config: PretrainedConfig | None = None,
        encoder: PreTrainedModel | None = None,
        decoder: PreTrainedModel | None = None,
        **options: Any,
    ) -> None:
        """A model of a configuration with fresh weights, or one of a ready encoder and decoder."""
        if encoder is None or decoder is None:
            if config is None:
                raise ArgumentError("pass a configuration, or both an encoder and a decoder")
            super().__init__(config, **options)
            return
        nn.Module.__init__(self)
        if config is None:
            kind: Any = self.config_class
            config = kind.from_encoder_decoder_configs(encoder.config, decoder.config)
        self._assemble(config)
        self._join(encoder, decoder)

    def _join(self, encoder: PreTrainedModel, decoder: PreTrainedModel) -> None:
        """Put ready models into the places of the two sides; what stands between them starts afresh."""
        must_attend(decoder)
        pair = self.backbone
        pair.encoder, pair.decoder = encoder, decoder
        self.config.encoder, self.config.decoder = encoder.config, decoder.config
        if self.config.tie_encoder_decoder:
            tie(encoder.backbone, decoder.backbone)
        number_slots(self)
        materialise(self, encoder.device, encoder.dtype)
        if pair.project is not None:
            init_module(pair.project, float(getattr(decoder.config, "initializer_range", 0.02)))

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | os.PathLike | None = None,
        decoder_pretrained_model_name_or_path: str | os.PathLike | None = None,
        *model_args: Any,
        **options: Any,
    ) -> "PairModel":
        """Join two checkpoints; cross-attention that the decoder's lacks starts afresh.

        Options that begin with `encoder_` or `decoder_` are those of the side's `from_pretrained` (or
        `encoder_model`, a ready model); others are keys of the joint configuration.
        """
        sources = {
            "encoder": encoder_pretrained_model_name_or_path,
            "decoder": decoder_pretrained_model_name_or_path,
        }
        ready: dict[str, PreTrainedModel] = {}
        for side, task in _SIDES.items():
            own = {
                k.removeprefix(side + "_"): options.pop(k) for k in list(options) if k.startswith(side + "_")
            }
            given = own.pop("model", None)
            if given is None and sources[side] is None:
                raise ArgumentError(f"pass {side}_pretrained_model_name_or_path or {side}_model")
            ready[side] = given if given is not None else load_side(sources[side], side, task, own)
        kind: Any = cls.config_class
        config = kind.from_encoder_decoder_configs(
            ready["encoder"].config, ready["decoder"].config, **options
        )
        return cls(config, ready["encoder"], ready["decoder"]).eval()

    def get_encoder(self) -> PreTrainedModel:
        """The whole encoder."""
        return self.backbone.encoder

    def get_decoder(self) -> PreTrainedModel:
        """The whole decoder, with its head."""
        return self.backbone.decoder

    def get_output_embeddings(self) -> nn.Module:
        """The matrix of the scores."""
        return self.backbone.decoder.head.out

    def get_input_embeddings(self) -> nn.Module:
        """The token table of the side that reads ids."""
        return self.backbone.decoder.get_input_embeddings()

    @property
    def target_words(self) -> int:
        """How many token ids the decoder knows."""
        return self.backbone.decoder.get_input_embeddings().num_embeddings

    @property
    def source_words(self) -> int | None:
        """How many token ids the encoder knows, None where it takes no ids."""
        tokens = getattr(getattr(self.backbone.encoder.backbone, "embed", None), "tokens", None)
        return None if tokens is None else tokens.num_embeddings

    def decode(
        self,
        ids: Tensor | None,
        inputs: dict[str, Any],
        encoded: Any,
        memory_mask: Tensor | None,
        past: Any,
        use_cache: bool | None,
        labels: Tensor | None,
        total: int | Tensor | None,
        return_dict: bool | None,
    ) -> Any:
        """The public output for decoder ids (B, T), or labels (B, T) from which they follow.

        inputs: further arguments of the decoder's call. encoded: the encoder's output.
        """
        config, decoder = self.config, self.backbone.decoder
        if isinstance(encoded, tuple | list):
            encoded = BaseModelOutput(*encoded)
        if labels is not None and ids is None and "inputs_embeds" not in inputs:
            ids = self.start_ids(labels)
        given = ids if ids is not None else inputs.get("inputs_embeds")
        if given is None:
            raise ArgumentError("pass decoder_input_ids, decoder_inputs_embeds or labels")
        default = bool(decoder.config.__dict__.get("use_cache", False)) and not self.training
        cache = take_cache(self, past, flag(use_cache, default), *given.shape[:2])
        memory = encoded.last_hidden_state
        fresh = cache is None or cache.length == 0 or self.shows_projected
        if self.backbone.project is not None and fresh:
            memory = self.backbone.project(memory)  # later steps find its keys and values in the cache
        out = decoder(
            input_ids=ids, encoder_hidden_states=memory, encoder_attention_mask=memory_mask,
            past_key_values=cache, use_cache=cache is not None, return_dict=True, **inputs,
        )  # fmt: skip
        loss = None if labels is None else cross_entropy(out.logits, labels, total)
        fields = {
            "loss": loss,
            "logits": out.logits,
            "past_key_values": cache,
            "decoder_hidden_states": out.hidden_states,
            "decoder_attentions": out.attentions,
            "cross_attentions": getattr(out, "cross_attentions", None),
            "encoder_last_hidden_state": memory if self.shows_projected else encoded.last_hidden_state,
            "encoder_hidden_states": getattr(encoded, "hidden_states", None),
            "encoder_attentions": getattr(encoded, "attentions", None),
        }
        return finish(self, fields, out, flag(return_dict, config.return_dict))

    def start_ids(self, ids: Tensor) -> Tensor:
        """Decoder inputs for targets `ids` (B, T): one step to the right, the start token in front."""
        start, padding = self.config.decoder_start_token_id, self.config.pad_token_id
        for key, value in (("decoder_start_token_id", start), ("pad_token_id", padding)):
            if value is None:
                raise ArgumentError(f"config.{key} must be set to make decoder inputs from labels")
        shifted = torch.cat((torch.full_like(ids[:, :1], start), ids[:, :-1]), 1)
        return shifted.masked_fill(shifted == -100, padding)

    prepare_decoder_input_ids_from_labels = start_ids


def load_side(source: Any, side: str, task: str, options: dict[str, Any]) -> PreTrainedModel:
    """One side from its checkpoint; a decoder is told that it is one, and may lack cross-attention."""
    config = options.pop("config", None)
    if config is None:
        keys = ("revision", "cache_dir", "local_files_only", "token", "subfolder")
        config = load_config(source, **{k: options[k] for k in keys if k in options})
    missing: list[str] = list(options.pop("allow_missing", ()))
    if side == "decoder":
        config.is_decoder = config.add_cross_attention = True
        layout = layout_of(part(config).model(task))
        for line in (*layout.lines(True), *layout.lines(False)):
            missing += line.theirs if ".cross." in line.ours[0] else ()
    cls: Any = model_class(config.model_type, task, config.architectures)
    return cls.from_pretrained(source, config=config, allow_missing=missing, **options)


def given(**inputs: Any) -> dict[str, Any]:
    """The arguments that are there."""
    return {name: value for name, value in inputs.items() if value is not None}


def chosen(keep: int | Tensor) -> int | Tensor | None:
    """Positions to score, None for all."""
    return None if isinstance(keep, int) and keep == 0 else keep


def for_decoder(
    mask: Tensor | None,
    vectors: Tensor | None,
    segments: Tensor | None,
    positions: Tensor | None,
    heads: Tensor | None,
    attentions: bool | None,
    states: bool | None,
    keep: int | Tensor,
) -> dict[str, Any]:
    """What is there of the arguments of the decoder, by the names of its own call."""
    return given(
        attention_mask=mask, inputs_embeds=vectors, token_type_ids=segments, position_ids=positions,
        head_mask=heads, output_attentions=attentions, output_hidden_states=states,
        logits_to_keep=chosen(keep),
    )  # fmt: skip


class TextPairModel(PairModel):
    """Token ids of an encoder and of a decoder to next-token scores."""

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's token table."""
        return self.backbone.encoder.get_input_embeddings()

    def encode(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """The encoder's output for input_ids (B, S)."""
        return self.backbone.encoder(
            **given(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds,
                token_type_ids=token_type_ids, position_ids=position_ids, head_mask=head_mask,
                output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            ),
            return_dict=True,
        )  # fmt: skip

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
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
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_token_type_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run both sides, or the decoder alone where encoder_outputs are given; labels (B, T) are targets."""
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                input_ids, attention_mask, inputs_embeds, token_type_ids, position_ids, head_mask,
                output_attentions, output_hidden_states,
            )  # fmt: skip
        inputs = for_decoder(
            decoder_attention_mask, decoder_inputs_embeds, decoder_token_type_ids, decoder_position_ids,
            decoder_head_mask, output_attentions, output_hidden_states, logits_to_keep,
        )  # fmt: skip
        return self.decode(
            decoder_input_ids, inputs, encoder_outputs, attention_mask, past_key_values, use_cache, labels,
            num_items_in_batch, return_dict,
        )  # fmt: skip


class VisionPairModel(PairModel):
    """Pixels to next-token scores of a decoder (captions, text in images)."""

    main_input_name = "pixel_values"

    def encode(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """The encoder's output for pixel_values (B, C, Y, X)."""
        if pixel_values is None:
            raise ArgumentError("pass pixel_values (batch, channels, height, width)")
        options = given(
            interpolate_pos_encoding=interpolate_pos_encoding, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )  # fmt: skip
        return self.backbone.encoder(pixel_values=pixel_values, return_dict=True, **options)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        decoder_token_type_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run both sides, or the decoder alone where encoder_outputs are given; labels (B, T) are targets."""
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                pixel_values, interpolate_pos_encoding, output_attentions, output_hidden_states
            )
        inputs = for_decoder(
            decoder_attention_mask, decoder_inputs_embeds, decoder_token_type_ids, decoder_position_ids,
            decoder_head_mask, output_attentions, output_hidden_states, logits_to_keep,
        )  # fmt: skip
        return self.decode(
            decoder_input_ids, inputs, encoder_outputs, None, past_key_values, use_cache, labels,
            num_items_in_batch, return_dict,
        )  # fmt: skip


class SpeechPairModel(PairModel):
    """Waveforms or spectrograms to next-token scores of a decoder."""

    shows_projected = True

    @property
    def main_input_name(self) -> str:  # type: ignore[override]
        """What the encoder hears: samples or features."""
        return self.backbone.encoder.main_input_name

    def encode(
        self,
        inputs: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """The encoder's output for samples (B, T) or features (B, T, F)."""
        heard = [x for x in (inputs, input_values, input_features) if x is not None]
        if len(heard) != 1:
            raise ArgumentError(f"pass one of inputs, input_values, input_features, not {len(heard)}")
        options = given(
            attention_mask=attention_mask, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )  # fmt: skip
        return self.backbone.encoder(heard[0], return_dict=True, **options)

    def forward(
        self,
        inputs: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        return_dict: bool | None = None,
        decoder_token_type_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run both sides, or the decoder alone where encoder_outputs are given; labels (B, T) are targets."""
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                inputs, attention_mask, input_values, input_features, output_attentions, output_hidden_states
            )
        memory_mask = attention_mask
        if attention_mask is not None:
            frames = encoder_outputs[0].shape[1]
            memory_mask = self.backbone.encoder._get_feature_vector_attention_mask(frames, attention_mask)
        heard = for_decoder(
            decoder_attention_mask, decoder_inputs_embeds, decoder_token_type_ids, decoder_position_ids,
            decoder_head_mask, output_attentions, output_hidden_states, logits_to_keep,
        )  # fmt: skip
        return self.decode(
            decoder_input_ids, heard, encoder_outputs, memory_mask, past_key_values, use_cache, labels,
            num_items_in_batch, return_dict,
        )  # fmt: skip

    def freeze_feature_encoder(self) -> None:
        """Keep the encoder's convolutions as they are in training."""
        self.backbone.encoder.freeze_feature_encoder()
