"""X-MOD (Pfeiffer et al. 2022, arXiv:2205.06266): XLM-R with a small feed-forward for each language.

Public checkpoints: facebook/xmod-base, facebook/xmod-large-prenorm and every `model_type: xmod`.
Differs from XLM-R in: behind each feed-forward, a bottleneck chosen by the row's language; norms may stand
before the branches; one norm may serve a layer several times.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    FFN, Attention, Block, Causal, Context, Full, Heads, Layer, LayerNorm, Linear, Spec, activation, make,
    repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError
from phyla.families import bert, roberta
from phyla.family import family
from phyla.skeletons.language import LanguageTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    pre_norm: bool = False
    adapter_reduction_factor: int | float = 2
    adapter_layer_norm: bool = False
    adapter_reuse_layer_norm: bool = True
    ln_before_adapter: bool = True
    languages: list | tuple = ("en_XX",)
    default_language: str | None = None

    def finish(self) -> None:
        bert.check_positions(self)
        self.languages = list(self.languages)


class Bottleneck(nn.Module):
    """down(act(up(x))) of one language, without a sum. x (B, S, D)."""

    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__()
        self.up, self.act, self.down = Linear(width, inner), activation(act), Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Languages(Block):
    """The branch x + bottleneck(x), each row by that of its language; `pre` and `post` as of `residual`."""

    def __init__(
        self, width: int, inner: int, languages: Sequence[str], act: str, pre: Spec | None,
        post: Spec | None, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.parts = nn.ModuleDict({str(name): Bottleneck(width, inner, act) for name in languages})
        self.pre_norm, self.post_norm, self.dropout_prob = make(pre), make(post), dropout

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        h = x if self.pre_norm is None else self.pre_norm(x)
        y = self._chosen(h, ctx.notes.get("languages"))
        if self.training and self.dropout_prob:
            y = F.dropout(y, self.dropout_prob)
        x = x + y
        return x if self.post_norm is None else self.post_norm(x)

    def _chosen(self, x: Tensor, languages: int | Tensor | None) -> Tensor:
        """The bottlenecks' output (B, S, D) for the language of all rows, or one for each row (B,)."""
        parts = list(self.parts.values())
        if not isinstance(languages, Tensor):
            return parts[languages or 0](x)
        languages = languages.repeat(len(x) // len(languages))  # adapters side by side repeat the batch
        if torch.compiler.is_compiling():
            return self._all(x, languages, parts)
        y = torch.zeros_like(x)
        for number in languages.unique().tolist():
            if not 0 <= number < len(parts):
                raise ArgumentError(
                    f"lang_ids must be from 0 to {len(parts) - 1} (config.languages), but hold {number}"
                )
            rows = torch.where(languages == number)[0]
            y = y.index_add(0, rows, parts[number](x[rows]).to(y.dtype))
        return y

    def _all(self, x: Tensor, languages: Tensor, parts: list[nn.Module]) -> Tensor:
        """Every bottleneck on every row: static shapes for captured graphs."""
        share = F.one_hot(languages, len(parts)).to(x.dtype)  # (B, languages)
        y = torch.zeros_like(x)
        for number, part in enumerate(parts):
            y = y + part(x) * share[:, number, None, None]
        return y


SLOTS = (("ffn", "pre_norm"), ("ffn", "post_norm"), ("languages", "pre_norm"), ("languages", "post_norm"))


class LanguageLayer(Layer):
    """A layer whose `languages` branch is chosen by row; shares: its feed-forward's norms are one."""

    def __init__(self, shares: bool, **branches: Spec) -> None:
        super().__init__(**branches)
        self.shares, first = shares, None
        for branch, slot in SLOTS if shares else ():
            norm = getattr(getattr(self, branch), slot)
            if norm is not None and first is None:
                first = norm
            elif norm is not None:
                setattr(getattr(self, branch), slot, first)

    def language_parameters(self) -> list[nn.Parameter]:
        """What is there for languages alone: the bottlenecks, and the norm before them that is their own."""
        own = None if self.shares else self.ffn.post_norm or self.languages.pre_norm
        return [*self.languages.parts.parameters(), *(() if own is None else own.parameters())]


def build(c: Config) -> Spec:
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    pre, post = (norm, None) if c.pre_norm else (None, norm)
    inner = norm if c.adapter_layer_norm or c.adapter_reuse_layer_norm else None
    attn = Attention(c.hidden_size, Heads(c.num_attention_heads), dropout=c.attention_probs_dropout_prob)
    own = attn.but(position=bert.relative_keys(c), mask=Causal() if c.is_decoder else Full())
    branches = {"attn": residual(own, pre=pre, post=post, dropout=drop)}
    if c.add_cross_attention:
        branches["cross"] = residual(attn.but(cross=True), pre=pre, post=post, dropout=drop)
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    branches["ffn"] = residual(ffn, pre=pre, post=inner if c.ln_before_adapter else None, dropout=drop)
    branches["languages"] = Languages(
        c.hidden_size, int(c.hidden_size // c.adapter_reduction_factor), c.languages, c.hidden_act,
        None if c.ln_before_adapter else inner, post, drop,
    )  # fmt: skip
    layer = LanguageLayer(c.adapter_reuse_layer_norm and not c.adapter_layer_norm, **branches)
    spec = roberta.build(c)
    return spec.but(layers=repeat(c.num_hidden_layers, layer, c.pruned_heads), norm=pre)


def names(c: Config) -> NameMap:
    """RoBERTa's names, with the norms where the configuration puts them."""
    lines = {k: v for k, v in roberta.NAMES.lines.items() if not k.endswith("post_norm")}
    place, layer = "pre_norm" if c.pre_norm else "post_norm", "encoder.layer.{i}."
    lines[f"layers.{{i}}.attn.{place}"] = f"{layer}attention.output.LayerNorm"
    lines[f"layers.{{i}}.cross.{place}"] = f"{layer}crossattention.output.LayerNorm"
    before = "layers.{i}.ffn.post_norm" if c.ln_before_adapter else "layers.{i}.languages.pre_norm"
    last = "layers.{i}.ffn.pre_norm" if c.pre_norm else "layers.{i}.languages.post_norm"
    if c.adapter_layer_norm:
        lines[before] = f"{layer}output.adapter_layer_norm"
    elif c.adapter_reuse_layer_norm and not c.pre_norm:
        last = before  # the first of the places that share the norm
    lines[last] = f"{layer}output.LayerNorm"
    for name in c.languages:
        ours, theirs = f"layers.{{i}}.languages.parts.{name}.", f"{layer}output.adapter_modules.{name}."
        lines |= {f"{ours}up": f"{theirs}dense1", f"{ours}down": f"{theirs}dense2"}
    if c.pre_norm:
        lines["norm"] = "encoder.LayerNorm"
    return roberta.NAMES.but(lines=lines)


HEADS = roberta.roberta_heads("Xmod")

family(
    "xmod", config=Config, build=build, names=names, heads=HEADS, skeleton=LanguageTextModel, public="Xmod"
)
