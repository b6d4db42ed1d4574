"""The calls of models whose learned queries look at an image and hand what they find to a language model."""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import Cache, KVCache
from phyla.blocks.fusion import check_count, place
from phyla.blocks.stack import StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.heads.lm import token_table
from phyla.heads.loss import IGNORED
from phyla.model import PreTrainedModel
from phyla.outputs import (
    BaseModelOutputWithAttentionMask,
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithPast,
    ModelOutput,
    Seq2SeqLMOutput,
)
from phyla.skeletons.base import IdTensor, check_ids, context_for, expand_head_mask, finish, flag, take_cache
from phyla.skeletons.encoder_decoder import joint_output
from phyla.skeletons.multimodal import wants_cache
from phyla.skeletons.vision import see


def ask(
    model: PreTrainedModel,
    stack: Any,
    vectors: Tensor,
    queries: int,
    mask: Tensor | None,
    memory: Tensor | None,
    attentions: bool = False,
    states: bool = False,
    memory_mask: Tensor | None = None,
    head_mask: Tensor | None = None,
) -> StackOutput:
    """Run a stack of queries on vectors (B, S, D), the first `queries` of which look at memory (B, K, D')."""
    ctx = context_for(model, vectors.shape[:2], vectors.device, mask, None, None, attentions, True)
    ctx.memory = None if memory is None else memory.to(vectors.dtype)
    ctx.memory_mask = None if memory_mask is None else memory_mask.bool()
    ctx.memo["queries"] = queries
    ctx.head_mask = expand_head_mask(head_mask, len(stack.layers), vectors.dtype)
    out = stack.run(stack.embed(vectors), ctx, None, states)
    out.pooler_output = out.last_hidden_state[:, 0]
    return out


class QueryModel(PreTrainedModel):
    """Vectors of queries and words to their states."""

    def forward(
        self,
        query_embeds: Tensor | None = None,
        query_length: int | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on query_embeds (B, S, D), the first query_length (default: all) of which are
        queries.
        """
        if query_embeds is None:
            raise ArgumentError("pass query_embeds (batch, queries, width)")
        count = query_embeds.shape[1] if query_length is None else query_length
        config = self.config
        out = ask(
            self, self.backbone, query_embeds, count, attention_mask, encoder_hidden_states,
            flag(output_attentions, config.output_attentions),
            flag(output_hidden_states, config.output_hidden_states), encoder_attention_mask, head_mask,
        )  # fmt: skip
        return finish(self, {}, out, return_dict)


class LookingModel(PreTrainedModel):
    """Base of models whose backbone has a tower `vision`, learned queries `query` and their stack
    `qformer`.
    """

    main_input_name = "pixel_values"

    def look(
        self, pixels: Tensor | None, attentions: bool | None, states: bool | None, interpolate: bool = False
    ) -> StackOutput:
        """The tower's output for pixels (B, C, Y, X)."""
        if pixels is None:
            raise ArgumentError("pass pixel_values (batch, channels, height, width)")
        config = self.config
        return see(
            self, self.backbone.vision, pixels, None, None, flag(attentions, config.output_attentions),
            flag(states, config.output_hidden_states), interpolate,
        )  # fmt: skip

    def found(
        self, seen: StackOutput, attentions: bool | None = False, states: bool | None = False
    ) -> StackOutput:
        """The queries' output for what the tower saw."""
        config, memory = self.config, seen.last_hidden_state
        queries = self.backbone.query.expand(len(memory), -1, -1)
        return ask(
            self, self.backbone.qformer, queries, queries.shape[1], None, memory,
            flag(attentions, config.output_attentions), flag(states, config.output_hidden_states),
        )  # fmt: skip


def shown(kind: type[ModelOutput], out: Any, return_dict: bool, **fields: Any) -> Any:
    """A part's output under public names."""
    names = kind.__dataclass_fields__
    made = kind(**{n: fields[n] if n in fields else getattr(out, n, None) for n in names})
    return made if return_dict else made.to_tuple()


def layers_of(cache: Cache | None) -> Any:
    """Keys and values of each layer, as public results of models that take no cache have them."""
    found = []
    for slot in () if cache is None else cache.slots:
        if isinstance(slot, KVCache) and slot.keys is not None and slot.values is not None:
            found.append((slot.keys[:, :, : slot.used], slot.values[:, :, : slot.used]))
    return tuple(found) or None


def shifted(labels: Tensor, config: Any) -> Tensor:
    """Decoder inputs for targets labels (B, T): one step to the right, the start token in front."""
    if config.decoder_start_token_id is None:
        raise ArgumentError(
            "decoder_start_token_id of the text_config must be set to make inputs from labels"
        )
    ids = torch.cat((torch.full_like(labels[:, :1], config.decoder_start_token_id), labels[:, :-1]), 1)
    return ids.masked_fill(ids == IGNORED, config.pad_token_id or 0)


class QueryTextModel(LookingModel):
    """Images and token ids to scores of a language model, a decoder or an encoder-decoder.

    The backbone has `projector` and `text` besides; the head says whether the vectors of the image stand at
    placeholder tokens where the config names one, or always in front of the text.
    """

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.config.is_encoder_decoder)

    @property
    def placeholder(self) -> int | None:
        """Id of the token in whose places the image stands, or None where it stands in front of the text."""
        return self.config.image_token_index if getattr(self.head_spec, "at_tokens", True) else None

    @property
    def prompt_lead(self) -> int:
        """Positions of the image in front of a prompt."""
        return 0 if self.placeholder is not None else self.config.num_query_tokens

    def get_input_embeddings(self) -> Any:
        """The language model's token table."""
        return token_table(self.backbone.text)

    def get_image_features(
        self, pixel_values: Tensor, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Any:  # fmt: skip
        """The tower's output."""
        seen = self.look(pixel_values, output_attentions, output_hidden_states, interpolate_pos_encoding)
        return shown(BaseModelOutputWithPooling, seen, flag(return_dict, self.config.return_dict))

    def get_qformer_features(
        self, pixel_values: Tensor, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Any:  # fmt: skip
        """The queries' output."""
        seen = self.look(pixel_values, output_attentions, output_hidden_states, interpolate_pos_encoding)
        out = self.found(seen, output_attentions, output_hidden_states)
        kind = BaseModelOutputWithPoolingAndCrossAttentions
        return shown(kind, out, flag(return_dict, self.config.return_dict))

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None, labels: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:  # fmt: skip
        """The language model's output for a text alone."""
        vectors = self.get_input_embeddings()(input_ids)
        options = (None, None, output_attentions, output_hidden_states)
        if not self.is_encoder_decoder:
            labels = None
        out, fields = self._speak(
            input_ids, vectors, attention_mask, (decoder_input_ids, decoder_attention_mask, None), labels,
            options, 0,
        )  # fmt: skip
        return self._language(out, fields, flag(return_dict, self.config.return_dict), legacy=True)

    def start_prompt(self, named: dict[str, Any]) -> Tensor:
        """Ids (B, S) of a prompt without a text: the image, and the token that begins texts."""
        start = self.config.get_text_config().bos_token_id
        ids = [] if self.placeholder is None else [self.placeholder] * self.config.num_query_tokens
        ids += [] if start is None else [start]
        pixels = named["pixel_values"]
        return torch.tensor([ids], device=pixels.device).expand(len(pixels), -1)

    def _merged(
        self, ids: Tensor, mask: Tensor | None, found: StackOutput | None
    ) -> tuple[Tensor, Tensor | None]:
        """The text's vectors with those of the image, and the mask that goes with them."""
        check_ids(ids, "input_ids")
        token = self.placeholder
        marked = ids == (-1 if token is None else token)
        vectors = self.get_input_embeddings()(ids.masked_fill(marked, 0) if found is not None else ids)
        if found is None:
            return vectors, mask
        image = self.backbone.projector(found.last_hidden_state.to(vectors.dtype))
        if token is not None:
            flat = image.flatten(0, 1)
            check_count(marked, flat, token)
            return place(vectors, marked, flat), mask
        if mask is not None and mask.shape[1] == ids.shape[1]:
            mask = torch.cat((mask.new_ones(image.shape[:2]), mask), 1)
        return torch.cat((image.to(vectors.dtype), vectors), 1), mask

    def encode(
        self,
        pixel_values: Tensor | None = None,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithAttentionMask:
        """States of the language model's encoder for an image and a text, and which of them are real."""
        if input_ids is None:
            input_ids = self.start_prompt({"pixel_values": pixel_values})
        found = self.found(self.look(pixel_values, False, False, interpolate_pos_encoding))
        vectors, mask = self._merged(input_ids, attention_mask, found)
        return self._encode(vectors, mask, output_attentions, output_hidden_states)

    def _encode(
        self, vectors: Tensor, mask: Tensor | None, attentions: bool | None, states: bool | None
    ) -> BaseModelOutputWithAttentionMask:
        config = self.config
        ctx = context_for(
            self, vectors.shape[:2], vectors.device, mask, None, None, flag(attentions,
            config.output_attentions),
            False,
        )  # fmt: skip
        out = self.backbone.text.encoder(ctx, None, vectors, None, flag(states, config.output_hidden_states))
        return BaseModelOutputWithAttentionMask(
            out.last_hidden_state, ctx.attention_mask, None, out.hidden_states, out.attentions
        )

    def _speak(
        self,
        ids: Tensor | None,
        vectors: Tensor | None,
        mask: Tensor | None,
        decoder: tuple[Tensor | None, Tensor | None, Any],
        labels: Tensor | None,
        options: tuple[Any, bool | None, bool | None, bool | None],
        keep: int | Tensor,
    ) -> tuple[Any, dict[str, Any]]:
        """The language model's output and its head's fields.

        decoder: ids, their mask, and the encoder's output. options: past_key_values, use_cache,
        output_attentions, output_hidden_states.
        """
        past, use_cache, attentions, states = options
        config, text, encoded = self.config, self.backbone.text, None
        given: Any = vectors
        if self.is_encoder_decoder:
            decoder_ids, decoder_mask, encoded = decoder
            if decoder_ids is None and labels is not None:
                decoder_ids = shifted(labels, config.get_text_config())
            if decoder_ids is None:
                raise ArgumentError("the language model has a decoder: pass decoder_input_ids (or labels)")
            if encoded is None:
                encoded = self._encode(given, mask, attentions, states)
            ids, mask, vectors, given, text = decoder_ids, decoder_mask, None, decoder_ids, text.decoder
        batch, length = given.shape[:2]
        cache = take_cache(self, past, wants_cache(self, use_cache), batch, length)
        ctx = context_for(
            self, (batch, length), given.device, mask, None, cache, flag(attentions,
            config.output_attentions),
            encoded is not None,
        )  # fmt: skip
        if encoded is not None:
            ctx.memory, ctx.memory_mask = encoded.last_hidden_state, encoded.attention_mask
        out = text(
            ctx, ids if vectors is None else None, vectors, None, flag(states, config.output_hidden_states)
        )
        if encoded is not None:
            out = joint_output(out, encoded)
        elif labels is not None:
            ahead = out.last_hidden_state.shape[1] - labels.shape[1]
            labels = torch.cat((labels.new_full((batch, ahead + 1), IGNORED), labels[:, 1:]), 1)
        call = Call(config, ids, mask, labels, logits_to_keep=keep)
        return out, self.head(out, call)  # type: ignore[misc]

    def _language(self, out: Any, fields: dict[str, Any], return_dict: bool, legacy: bool) -> Any:
        if self.is_encoder_decoder:
            return shown(Seq2SeqLMOutput, out, return_dict, **fields)
        cache = layers_of(out.past_key_values) if legacy else out.past_key_values
        fields = {"logits": fields["logits"], "past_key_values": cache}
        return shown(CausalLMOutputWithPast, out, return_dict, **fields)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
        use_cache: bool | None = None,
        past_key_values: Any = None,
        encoder_outputs: Any = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Run the model.

        pixel_values (B, C, Y, X), in the first step alone; input_ids (B, S) with attention_mask (B, S);
        decoder_input_ids (B, T), or labels in their place, for language models with an encoder.
        """
        named, states = flag(return_dict, self.config.return_dict), output_hidden_states
        seen = found = vectors = None
        mask = attention_mask
        if pixel_values is not None:
            seen = self.look(pixel_values, output_attentions, states, interpolate_pos_encoding)
            found = self.found(seen, output_attentions, states)
        if encoder_outputs is None:
            if input_ids is None:
                raise ArgumentError("pass input_ids (batch, sequence)")
            vectors, mask = self._merged(input_ids, mask, found)
        options = (past_key_values, use_cache, output_attentions, states)
        decoder = (decoder_input_ids, decoder_attention_mask, encoder_outputs)
        out, fields = self._speak(input_ids, vectors, mask, decoder, labels, options, logits_to_keep)
        spoken = self._language(out, fields, named, legacy=past_key_values is None)
        kinds: Any = (BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndCrossAttentions)
        parts = [None if o is None else shown(k, o, named) for k, o in zip(kinds, (seen, found), strict=True)]
        fields |= {"vision_outputs": parts[0], "qformer_outputs": parts[1], "language_model_outputs": spoken}
        return finish(self, fields, out, return_dict)


class QueryTowerModel(LookingModel):
    """An image to vectors that can be compared with those of texts; the head projects the queries' states."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on pixel_values (B, C, Y, X)."""
        seen = self.look(pixel_values, output_attentions, output_hidden_states)
        return finish(self, self.head.image_fields(self.found(seen)), seen, return_dict)  # type: ignore[union-attr]


class QueryReaderModel(LookingModel):
    """A text to vectors that can be compared with those of images."""

    main_input_name = "input_ids"

    def read(
        self,
        ids: Tensor | None,
        mask: Tensor | None,
        positions: Tensor | None,
        attentions: bool,
        states: bool,
    ) -> StackOutput:
        """The query stack's output for a text alone."""
        if ids is None:
            raise ArgumentError("pass input_ids (batch, sequence)")
        check_ids(ids, "input_ids")
        vectors = self.backbone.embed(ids, positions)
        return ask(self, self.backbone.qformer, vectors, 0, mask, None, attentions, states)

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on input_ids (B, S)."""
        config = self.config
        out = self.read(
            input_ids, attention_mask, position_ids, flag(output_attentions, config.output_attentions),
            flag(output_hidden_states, config.output_hidden_states),
        )  # fmt: skip
        return finish(self, self.head.text_fields(out), out, return_dict)  # type: ignore[union-attr]


class QueryMatchModel(QueryReaderModel):
    """Images and texts, compared by their vectors or read together."""

    main_input_name = "pixel_values"

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        use_image_text_matching_head: bool | None = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Compare pixel_values (I, C, Y, X) with input_ids (T, S): scores (I, T).

        use_image_text_matching_head: read each text with its image (I = T): scores (I, 2) of not matching and
        matching.
        """
        seen, named = (
            self.look(pixel_values, output_attentions, output_hidden_states),
            flag(return_dict, self.config.return_dict),
        )
        if use_image_text_matching_head:
            if input_ids is None:
                raise ArgumentError("pass input_ids (batch, sequence)")
            queries = self.backbone.query.expand(len(input_ids), -1, -1)
            words = self.backbone.embed(input_ids, None)
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            mask = torch.cat((mask.new_ones(queries.shape[:2]), mask), 1)
            vectors, count = torch.cat((queries.to(words.dtype), words), 1), queries.shape[1]
            text = ask(self, self.backbone.qformer, vectors, count, mask, seen.last_hidden_state)
            fields = self.head.match_fields(text, seen, count)  # type: ignore[union-attr]
        else:
            text = self.read(input_ids, attention_mask, None, False, False)
            fields = self.head.compare_fields(text, self.found(seen))  # type: ignore[union-attr]
        kind = BaseModelOutputWithPoolingAndCrossAttentions
        fields["text_model_output"] = shown(kind, text, named)
        fields["vision_model_output"] = shown(BaseModelOutputWithPooling, seen, named)
        return finish(self, fields, seen, return_dict)
