"""A small decoder and a small encoder-decoder with the interface that generation works against; no part of
phyla.blocks.
"""

import math
from types import SimpleNamespace

import torch
from torch import nn

from phyla.outputs import BaseModelOutput, CausalLMOutputWithPast, Seq2SeqLMOutput


class TinyCache:
    def __init__(self, layers):
        self.layers, self.length = [None] * layers, 0
        self.cross = None

    def extend(self, layer, k, v):
        old = self.layers[layer]
        self.layers[layer] = (k, v) if old is None else (torch.cat([old[0], k], 1), torch.cat([old[1], v], 1))
        return self.layers[layer]

    def reorder(self, index):
        self.layers = [None if kv is None else tuple(x[index] for x in kv) for kv in self.layers]
        self.cross = None if self.cross is None else tuple(x[index] for x in self.cross)

    def truncate(self, length):
        self.layers = [None if kv is None else tuple(x[:, :length] for x in kv) for kv in self.layers]
        self.length = length

    shifts = True

    def shift(self, by):
        for kv in (kv for kv in self.layers if kv is not None):
            for x in kv:
                for row, places in enumerate(by):
                    x[row] = x[row].roll(places, 0)

    def forget(self, count):
        self.layers = [None if kv is None else tuple(x[:, count:] for x in kv) for kv in self.layers]
        self.length -= count


def attend(q, k, v, allowed):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~allowed, -1e30).softmax(-1)
    return weights @ v, weights


class TinyDecoder(nn.Module):
    """Two layers of single-head attention with learned positions."""

    main_input_name = "input_ids"

    def __init__(self, vocabulary=23, width=16, context=64, seed=0, dtype=torch.float64, **config):
        super().__init__()
        torch.manual_seed(seed)
        self.config = SimpleNamespace(
            vocab_size=vocabulary,
            max_position_embeddings=context,
            num_hidden_layers=2,
            is_encoder_decoder=False,
            tie_word_embeddings=False,
            **config,
        )
        self.generation_config = None
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Embedding(context, width)
        self.types = nn.Embedding(3, width)
        self.maps = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(4)) for _ in range(2))
        self.head = nn.Linear(width, vocabulary)
        for p in self.parameters():
            nn.init.normal_(p, std=0.9)
        self.to(dtype)
        self.calls = []

    @property
    def device(self):
        return self.embed.weight.device

    @property
    def dtype(self):
        return self.embed.weight.dtype

    def get_input_embeddings(self):
        return self.embed

    def new_cache(self, batch, length):
        return TinyCache(2)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        past_key_values=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        token_type_ids=None,
        pixel_values=None,
    ):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        new = x.shape[1]
        past = past_key_values.length if past_key_values is not None else 0
        self.calls.append(
            SimpleNamespace(
                new=new,
                mask=attention_mask,
                pixels=pixel_values,
                types=token_type_ids,
                keep=logits_to_keep,
                places=position_ids,
            )
        )
        if position_ids is None:
            if attention_mask is None:
                position_ids = torch.arange(past, past + new)[None]
            else:
                position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        x = x + self.place(position_ids)
        if token_type_ids is not None:
            x = x + self.types(token_type_ids)
        if pixel_values is not None:
            x = x + pixel_values.mean(1)[:, None, None]
        allowed = torch.ones(past + new, past + new, dtype=torch.bool).tril()[-new:][None]
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None].bool()
        states, weights = [x], []
        for layer, (q, k, v, o) in enumerate(self.maps):
            keys, values = k(x), v(x)
            if past_key_values is not None:
                keys, values = past_key_values.extend(layer, keys, values)
            mixed, attention = attend(q(x), keys, values, allowed)
            x = x + o(mixed).tanh()
            states.append(x)
            weights.append(attention[:, None])
        if past_key_values is not None:
            past_key_values.length = past + new
        return CausalLMOutputWithPast(
            logits=self.head(x[:, -logits_to_keep:]),
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )


class TinyEncoderDecoder(TinyDecoder):
    """The decoder above, with an encoder (a bag of positions) and cross-attention kept in the cache."""

    def __init__(self, **config):
        super().__init__(**{"decoder_start_token_id": 3, **config})
        self.config.is_encoder_decoder = True
        self.source = nn.Linear(16, 16).to(self.dtype)
        self.cross = nn.ModuleList(nn.Linear(16, 16).to(self.dtype) for _ in range(2))
        self.encoded = 0

    def encode(self, input_ids=None, attention_mask=None, inputs_embeds=None, output_hidden_states=None):
        self.encoded += 1
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        x = self.source(x + self.place(torch.arange(x.shape[1]))).tanh() * 2
        return BaseModelOutput(last_hidden_state=x, hidden_states=(x,) if output_hidden_states else None)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        encoder_outputs=None,
        past_key_values=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
    ):
        memory = encoder_outputs.last_hidden_state
        if past_key_values is not None and past_key_values.cross is not None:
            keys, values = past_key_values.cross
        else:
            keys, values = (m(memory) for m in self.cross)
            if past_key_values is not None:
                past_key_values.cross = keys, values
        out = super().forward(
            decoder_input_ids,
            decoder_attention_mask,
            past_key_values=past_key_values,
            output_hidden_states=True,
            output_attentions=output_attentions,
            logits_to_keep=logits_to_keep,
        )
        states = out.hidden_states[-1][:, -logits_to_keep:]
        allowed = torch.ones(1, 1, memory.shape[1], dtype=torch.bool)
        if attention_mask is not None:
            allowed = attention_mask[:, None].bool()
        mixed, weights = attend(states, keys, values, allowed)
        return Seq2SeqLMOutput(
            logits=self.head(states + 3 * mixed),
            past_key_values=past_key_values,
            decoder_hidden_states=out.hidden_states if output_hidden_states else None,
            decoder_attentions=out.attentions,
            cross_attentions=(weights[:, None],) if output_attentions else None,
        )


class FixedScores(nn.Module):
    """Gives the same scores (vocabulary,) at every position, or those of `table` (vocabulary, vocabulary) by
    the last id.
    """

    main_input_name = "input_ids"

    def __init__(self, table):
        super().__init__()
        self.table = table if table.ndim == 2 else table.expand(table.shape[0], -1)
        self.config = SimpleNamespace(vocab_size=table.shape[-1], is_encoder_decoder=False)
        self.generation_config = None
        self.device = torch.device("cpu")

    def forward(self, input_ids, attention_mask=None, past_key_values=None, logits_to_keep=0):
        return CausalLMOutputWithPast(logits=self.table[input_ids][:, -logits_to_keep:])
