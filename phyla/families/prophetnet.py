"""ProphetNet (Qi et al. 2020, arXiv:2001.04063): a decoder that predicts the next n tokens at once.

Public checkpoints: microsoft/prophetnet-large-uncased, microsoft/prophetnet-large-uncased-cnndm, ...
Differs from the plain encoder-decoder in: n predicting streams beside the decoder's main one, relative
positions scored by the query, norms after the residual sums; the next token is read from the first stream.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, BucketBias, Causal, Context, Decoder, Embed, Encoder, EncoderDecoder, Heads, Layer,
    LayerNorm, Learned, Linear, Spec, StackOutput, repeat, residual,
)  # fmt: skip
from phyla.blocks.attention import attend
from phyla.blocks.embed import Tokens
from phyla.blocks.mask import self_mask
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Head, Seq2SeqLM
from phyla.heads.base import Call, HeadModule
from phyla.heads.lm import TokenScores
from phyla.outputs import (
    BaseModelOutput, ProphetNetDecoderLMOutput, ProphetNetDecoderModelOutput, ProphetNetSeq2SeqLMOutput,
    ProphetNetSeq2SeqModelOutput,
)  # fmt: skip
from phyla.skeletons import EncoderDecoderModel, TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    activation_dropout: float = 0.1
    activation_function: str = "gelu"
    vocab_size: int = 30522
    hidden_size: int = 1024
    encoder_ffn_dim: int = 4096
    num_encoder_layers: int = 12
    num_encoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    num_decoder_layers: int = 12
    num_decoder_attention_heads: int = 16
    attention_dropout: float = 0.1
    dropout: float = 0.1
    max_position_embeddings: int = 512
    init_std: float = 0.02
    is_encoder_decoder: bool = True
    add_cross_attention: bool = True
    decoder_start_token_id: int | None = 0
    ngram: int = 2
    num_buckets: int = 32
    relative_max_distance: int = 128
    disable_ngram_loss: bool = False
    eps: float = 0.0
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2

    ALIASES = {"num_attention_heads": "num_encoder_attention_heads"}

    @property
    def num_hidden_layers(self) -> int:
        """Layers of both sides."""
        return self.num_encoder_layers + self.num_decoder_layers


class Places(Learned):
    """Learned positions behind that of padding; later ones than the table has share its last row."""

    def index(self, ctx: Context, ids: Tensor | None) -> Tensor:
        return super().index(ctx, ids).clamp(max=len(self.weight) - 1)


class StreamAttention(Attention):
    """Self-attention of a main stream and of `streams` predicting ones, side by side: x (B, (1 + n) S, D).

    The main stream is causal. Predicting stream k sees the main stream up to k positions back, its first
    position, and itself at its own position (section 3.2 of the paper). Biases are scored by the query from
    the bucket of the distance.
    """

    paged = False  # its streams stand one behind the other
    both_sides = False  # of buckets: later positions have none of their own
    reads_by_place = True  # False: as the paper means it, whatever the length of a call

    def __init__(
        self, width: int, heads: Heads, streams: int, buckets: int, max_distance: int, dropout: float = 0.0
    ) -> None:
        super().__init__(width, heads, mask=Causal(), dropout=dropout)
        self.streams, self.buckets, self.max_distance = streams, buckets, max_distance
        self.relative = Linear(width, buckets * self.num_heads)

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        length, count = ctx.length, self.streams
        q, k, v = self.project(x, x)  # (B, H, (1 + n) S, E)
        table = self.relative(x).unflatten(-1, (self.buckets, -1)).permute(0, 3, 1, 2)  # (B, H, (1 + n) S, X)
        main_k, main_v, first = k[:, :, :length], v[:, :, :length], 0
        cache = ctx.slot(self.slot)
        if cache is not None:
            main_k, main_v, first = cache.update(main_k, main_v)
        keys = main_k.shape[2]
        query = torch.arange(ctx.start, ctx.start + length, device=x.device)[:, None]
        key = torch.arange(first, first + keys, device=x.device)[None]
        bias = self._biases(table[:, :, :length], key - query)
        mask = self_mask(self.mask, ctx, first, keys)
        y = [self._answer(q[:, :, :length], main_k, main_v, mask, bias, ctx, ctx.attentions)]
        # Each stream is a row of its own from here on: (B, H, n S, E) -> (B n, H, S, E).
        own_q, own_k, own_v, own_table = (
            t[:, :, length:].unflatten(2, (count, length)).transpose(1, 2) for t in (q, k, v, table)
        )
        # The reference reads these scores position by position where it means head by head: its public
        # results are so, and depend on the length of a call. Steps of one position are as meant.
        if self.reads_by_place:
            own_table = own_table.permute(0, 3, 1, 2, 4).reshape(own_table.shape)
        own_q, own_k, own_v, own_table = (t.flatten(0, 1) for t in (own_q, own_k, own_v, own_table))
        both_k, both_v = (
            torch.cat((main.repeat_interleave(count, 0), own), 2)
            for main, own in ((main_k, own_k), (main_v, own_v))
        )
        bias = torch.cat(
            (self._biases(own_table, key - 1 - query), own_table[..., :1].expand(-1, -1, -1, length)), -1
        )
        seen = self._seen(query, key, ctx, first, x)
        recorded = ctx.memo.setdefault("stream-attentions", []) if ctx.attentions is not None else None
        streams = self._answer(own_q, both_k, both_v, seen, bias, ctx, recorded)
        y.append(streams.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3))
        joined = torch.cat(y, 2)  # (B, H, (1 + n) S, E)
        return self.o(joined.transpose(1, 2).flatten(2))

    def _biases(self, table: Tensor, distance: Tensor) -> Tensor:
        """(B, H, S, K) from what the queries score for each bucket (B, H, S, X)."""
        at = BucketBias.bucket(self, distance)  # type: ignore[arg-type]
        return table.gather(-1, at.expand(*table.shape[:2], -1, -1))

    def _seen(self, query: Tensor, key: Tensor, ctx: Context, first: int, x: Tensor) -> Tensor:
        """bool (B n or n, 1, S, K + S): what the predicting streams may attend to."""
        back = torch.arange(self.streams, device=x.device)[:, None, None]
        main = (key <= query - back) | (key == 0)  # (n, S, K)
        own = torch.eye(ctx.length, dtype=torch.bool, device=x.device).expand(self.streams, -1, -1)
        given = ctx.attention_mask
        main = main[None].expand(x.shape[0], -1, -1, -1)
        if given is not None and given.dim() == 2:
            main = main & given[:, None, None, first : first + key.shape[1]]
        own = own[None].expand(x.shape[0], -1, -1, -1)
        return torch.cat((main, own), -1).flatten(0, 1)[:, None]

    def _answer(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor, ctx: Context,
        record: list[Tensor] | None,
    ) -> Tensor:  # fmt: skip
        dropout = self.attention_dropout if self.training else 0.0
        if record is None and ctx.implementation != "eager" and ctx.head_mask is None:
            return attend(q, k, v, mask, bias, False, self.scale, dropout)
        y, weights = self._attend_openly(q, k, v, mask, bias, dropout, ctx)
        if record is not None:
            record.append(weights)
        return y


class StreamDecoder(Decoder):
    """A decoder with predicting streams behind its main one, all in one tensor (B, (1 + n) S, D)."""

    def __init__(self, embed: Spec, layers: Any, width: int, streams: int, dropout: float) -> None:
        super().__init__(embed=embed, layers=layers)
        self.streams, self.stream_dropout = Tokens(streams, width), dropout

    def forward(
        self,
        ctx: Context,
        ids: Tensor | None = None,
        vectors: Tensor | None = None,
        segment_ids: Tensor | None = None,
        record_states: bool = False,
    ) -> StackOutput:
        x = self.embed(ids, vectors, segment_ids, ctx)
        batch, length = x.shape[:2]
        count, position = len(self.streams.weight), self.embed.position
        ahead = position((position.index(ctx, ids) + 1).clamp(max=len(position.weight) - 1)).to(x.dtype)
        # The first stream has the last vector, as the public checkpoints were trained.
        streams = self.streams.weight.roll(1, 0)[None, :, None] + ahead[:, None]  # (B or 1, n, S, D)
        streams = self.embed.norm(streams.expand(batch, -1, -1, -1).flatten(1, 2))
        if self.training and self.stream_dropout:
            streams = F.dropout(streams, self.stream_dropout)
        out: Any = self.run(torch.cat((x, streams), 1), ctx, ids, record_states)
        out.last_hidden_state, out.last_hidden_state_ngram = self._split(out.last_hidden_state, length)
        if out.hidden_states is not None:
            pairs = [self._split(states, length) for states in out.hidden_states]
            out.hidden_states, out.hidden_states_ngram = (tuple(s) for s in zip(*pairs, strict=True))
            out.decoder_ngram_hidden_states = out.hidden_states_ngram
        if out.attentions is not None:
            weights = ctx.memo["stream-attentions"]
            out.ngram_attentions = tuple(w.unflatten(0, (-1, count)) for w in weights)
            out.decoder_ngram_attentions = out.ngram_attentions
        return out

    @staticmethod
    def _split(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
        return x[:, :length], x[:, length:]


class StreamScores(TokenScores):
    """Scores of the next token from the first predicting stream, of later ones from the others."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        count = call.config.ngram
        x = out.last_hidden_state_ngram.unflatten(1, (count, -1))  # (B, n, S, D)
        if call.labels is None:
            x = self.kept(x.transpose(1, 2), call).transpose(1, 2)
        logits = self.scores(x)
        return {
            "loss": None if call.labels is None else self.stream_loss(logits, call.labels, call.config),
            "logits": logits[:, 0],
            "logits_ngram": logits[:, 1:] if count > 1 else None,
        }

    def stream_loss(self, logits: Tensor, labels: Tensor, c: Any) -> Tensor:
        """Every stream scores the same labels (B, S); with disable_ngram_loss the first one alone."""
        counted = 1 if c.disable_ngram_loss else c.ngram
        words = logits[:, :counted].float().log_softmax(-1)  # (B, n, S, V)
        target = labels[:, None].expand(-1, counted, -1)
        loss = F.nll_loss(words.flatten(0, 2), target.flatten())
        if c.eps > 0:
            real = target != -100
            every = -(words.sum(-1) * real).sum() / real.sum()
            loss = (1.0 - c.eps) * loss + c.eps / words.shape[-1] * every
        return loss


@dataclass(frozen=True)
class StreamLM(CausalLM):
    """Next-token scores of the decoder alone."""

    def make(self, config: Any, width: int) -> HeadModule:
        return StreamScores(self, config, width)


@dataclass(frozen=True)
class StreamSeq2Seq(Seq2SeqLM):
    """Next-token scores of the decoder behind its encoder."""

    def make(self, config: Any, width: int) -> HeadModule:
        return StreamScores(self, config, width)


def embedding(c: Config) -> Spec:
    table = Places(c.max_position_embeddings, c.hidden_size, offset=(c.pad_token_id or 0) + 1)
    norm = LayerNorm(c.hidden_size)
    return Embed(c.vocab_size, c.hidden_size, table, norm=norm, dropout=c.dropout, padding=c.pad_token_id)


def layer(c: Config, side: str, attn: Spec, cross: bool) -> Layer:
    placed: dict[str, Any] = {"post": LayerNorm(c.hidden_size), "dropout": c.dropout}
    branches = {"attn": residual(attn, **placed)}
    if cross:
        heads = Heads(c.num_decoder_attention_heads)
        across = Attention(c.hidden_size, heads, cross=True, dropout=c.attention_dropout)
        branches["cross"] = residual(across, **placed)
    ffn = FFN(
        c.hidden_size, getattr(c, f"{side}_ffn_dim"), c.activation_function, dropout=c.activation_dropout
    )
    return Layer(**branches, ffn=residual(ffn, **placed))


def build_encoder(c: Config) -> Spec:
    attn = Attention(c.hidden_size, Heads(c.num_encoder_attention_heads), dropout=c.attention_dropout)
    layers = repeat(c.num_encoder_layers, layer(c, "encoder", attn, False))
    return Encoder(embed=embedding(c), layers=layers)


def build_decoder(c: Config) -> Spec:
    attn = StreamAttention(
        c.hidden_size, Heads(c.num_decoder_attention_heads), c.ngram, c.num_buckets, c.relative_max_distance,
        c.attention_dropout,
    )  # fmt: skip
    layers = repeat(c.num_decoder_layers, layer(c, "decoder", attn, c.add_cross_attention))
    return StreamDecoder(embedding(c), layers, c.hidden_size, c.ngram, c.dropout)


def build(c: Config) -> EncoderDecoder:
    return EncoderDecoder(build_encoder(c), build_decoder(c))


def side_names(ours: str, theirs: str, decoder: bool) -> dict[str, str]:
    """Lines of one side, our paths beginning with `ours`."""
    at, to = f"{ours}layers.{{i}}", f"{theirs}layers.{{i}}"
    lines = {
        f"{ours}embed.position": f"{theirs}position_embeddings",
        f"{ours}embed.norm": f"{theirs}embeddings_layer_norm",
        f"{at}.ffn.up": f"{to}.feed_forward.intermediate",
        f"{at}.ffn.down": f"{to}.feed_forward.output",
        f"{at}.ffn.post_norm": f"{to}.feed_forward_layer_norm",
    }
    for branch, public in {"attn": "self_attn", **({"cross": "cross_attn"} if decoder else {})}.items():
        lines[f"{at}.{branch}.post_norm"] = f"{to}.{public}_layer_norm"
        for part, name in {"q": "query_proj", "k": "key_proj", "v": "value_proj", "o": "out_proj"}.items():
            lines[f"{at}.{branch}.{part}"] = f"{to}.{public}.{name}"
    if decoder:
        lines[f"{ours}streams"] = f"{theirs}ngram_embeddings"
        lines[f"{at}.attn.relative"] = f"{to}.self_attn.relative_pos_embeddings"
    return lines


_WORDS = ("encoder.word_embeddings", "decoder.word_embeddings")
NAMES = NameMap(
    side_names("encoder.", "encoder.", False)
    | side_names("decoder.", "decoder.", True)
    | {"encoder.embed.tokens": "word_embeddings"},
    prefix="prophetnet",
    aliases={"encoder.embed.tokens": _WORDS},
)
DECODER_NAMES = NameMap(
    side_names("", "decoder.", True) | {"embed.tokens": "word_embeddings"},
    prefix="prophetnet",
    aliases={"embed.tokens": _WORDS},
    ignore=(r"(prophetnet\.)?encoder\..*",),
)


def alone(side: str) -> NameMap:
    """Names of one side as a model of its own; files of whole models hold it too."""
    other = "decoder" if side == "encoder" else "encoder"
    return NameMap(
        side_names("", "", side == "decoder") | {"embed.tokens": "word_embeddings"},
        prefix=f"prophetnet.{side}",
        aliases={"embed.tokens": ("prophetnet.word_embeddings",)},
        ignore=(rf"prophetnet\.{other}\..*", r"lm_head\..*"),
    )


HEADS: dict[str, Head] = {
    "ProphetNetModel": Backbone(output=ProphetNetSeq2SeqModelOutput),
    "ProphetNetForConditionalGeneration": StreamSeq2Seq(
        names={"out": "lm_head"}, output=ProphetNetSeq2SeqLMOutput
    ),
    "ProphetNetForCausalLM": StreamLM(
        names={"out": "lm_head"}, output=ProphetNetDecoderLMOutput, shifted=False, build=build_decoder,
        table=DECODER_NAMES, skeleton=TextModel, changes={"is_decoder": True, "is_encoder_decoder": False},
    ),
    "ProphetNetEncoder": Backbone(
        build=build_encoder, table=alone("encoder"), skeleton=TextModel, output=BaseModelOutput
    ),
    "ProphetNetDecoder": Backbone(
        build=build_decoder, table=alone("decoder"), skeleton=TextModel, output=ProphetNetDecoderModelOutput
    ),
}  # fmt: skip

family(
    "prophetnet", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=EncoderDecoderModel,
    public="ProphetNet",
)  # fmt: skip
