"""ESM-1b (Rives et al. 2021, doi:10.1073/pnas.2016239118); ESM-2 (Lin et al., doi:10.1126/science.ade2574).

Public checkpoints: facebook/esm2_t6_8M_UR50D, facebook/esm1b_t33_650M_UR50S and every `model_type: esm`.
Differs from RoBERTa in: norms before each branch and at the end, rotary positions on demand, padding at zero,
masked tokens that count as dropped, contacts read from the attention. The folding head of ESMFold
(EsmForProteinFolding) is not here yet; its language model loads.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Causal, Context, Embed, Encoder, Full, Heads, Layer, LayerNorm, Learned, Linear, Pool,
    RelativeKeys, Rotary, Spec, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError, nearest
from phyla.families import bert
from phyla.family import family
from phyla.heads import Backbone, Classify, Head, MaskedLM, TokenClassify, Transform
from phyla.outputs import BaseModelOutputWithPoolingAndCrossAttentions
from phyla.skeletons import TextModel

POSITIONS = (*bert.POSITIONS, "rotary")
# Of all tokens in training, 15% were chosen and 80% of these masked.
MASKED_IN_TRAINING = 0.15 * 0.8


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int | None = None
    mask_token_id: int | None = None
    pad_token_id: int | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 1026
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    emb_layer_norm_before: bool | None = None
    token_dropout: bool = False
    is_folding_model: bool = False
    esmfold_config: dict | None = None
    vocab_list: list | None = None

    def finish(self) -> None:
        kind = self.position_embedding_type
        if kind not in POSITIONS:
            raise ConfigError(
                f"position_embedding_type must be one of {POSITIONS}, but is {kind!r}."
                + nearest(kind, POSITIONS)
            )
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError("add_cross_attention needs a decoder: set is_decoder to true")


class Residues(Embed):
    """Token vectors with padding at zero. hides: the mask token, whose vector is dropped and made up for."""

    def __init__(
        self,
        vocabulary: Any,
        width: int,
        position: Spec,
        norm: Spec | None,
        padding: int | None,
        hides: int | None,
    ) -> None:
        super().__init__(vocabulary, width, position, norm=norm, padding=padding)
        self.hides = hides

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, segment_ids: Tensor | None, ctx: Context
    ) -> Tensor:
        x = self.tokens(ids) if vectors is None else vectors
        given = ctx.attention_mask
        real = given[:, ctx.start :, None].to(x.dtype) if given is not None and given.dim() == 2 else None
        if self.hides is not None:
            x = x * (1 - MASKED_IN_TRAINING)
            if ids is not None:
                hidden = (ids == self.hides)[..., None]
                count = ids.shape[1] if real is None else real.sum(1)
                x = x.masked_fill(hidden, 0.0) / (1 - hidden.sum(1) / count)[..., None].to(x.dtype)
        x = x + self.position(self.position.index(ctx, ids))
        if self.norm is not None:
            x = self.norm(x)
        x = x if real is None else x * real
        return x if self.site is None else self.site(x, ctx)


class HalfScaled(RelativeKeys):
    """Relative scores of which the attention scale reaches the queries' part alone."""

    def bias(self, q: Tensor, k: Tensor, first: int, scale: float, ctx: Context) -> Tensor:
        return super().bias(q * scale, k, first, 1.0, ctx)


class Cross(Attention):
    """Attention to an encoder whose positions turn as well."""

    def _cross(self, x: Tensor, ctx: Context, cache: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super()._cross(x, ctx, cache)
        if isinstance(self.position, Rotary):
            there = torch.arange(k.shape[2], device=k.device)[None]
            q = self.position.rotate(q, q, ctx)[0]
            k = self.position.rotate(k, k, replace(ctx, positions=there, memo={}))[1]
        return q, k, v


class Protein(Encoder):
    """A stack with the logistic regression that reads contacts from the attention of all layers."""

    def __init__(self, embed: Spec, layers: Any, norm: Spec, pool: Spec | None, maps: int) -> None:
        super().__init__(embed, layers, norm=norm, pool=pool)
        self.contacts = Linear(maps, 1)

    def contact(self, attentions: tuple[Tensor, ...], ids: Tensor, mask: Tensor) -> Tensor:
        """Chance (B, S - 2, S - 2) that two residues touch; ids and mask (B, S), the ends left out."""
        maps = torch.cat(attentions, 1).to(self.contacts.weight.dtype)  # (B, layers * H, S, S)
        kept = (ids != 2).to(maps.dtype) * mask.to(maps.dtype)
        maps = maps * kept[:, None, :, None] * kept[:, None, None]
        maps = maps[..., 1:-1, 1:-1]
        maps = maps + maps.transpose(-1, -2)
        rows, columns, total = (
            maps.sum(-1, keepdim=True),
            maps.sum(-2, keepdim=True),
            maps.sum((-1, -2), keepdim=True),
        )
        maps = maps - rows * columns / total
        return torch.sigmoid(self.contacts(maps.permute(0, 2, 3, 1)).squeeze(-1))


class ProteinModel(TextModel):
    """Residues to states, and to contacts."""

    def predict_contacts(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Chance (B, S - 2, S - 2) that two residues touch; tokens and attention_mask (B, S)."""
        out = self(tokens, attention_mask=attention_mask, output_attentions=True, return_dict=True)
        return self.backbone.contact(out.attentions, tokens, attention_mask)


def build(c: Config) -> Protein:
    norm, drop = LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    heads, kind = Heads(c.num_attention_heads), c.position_embedding_type
    position: Spec | None = None
    table = Learned(c.max_position_embeddings, c.hidden_size, count="tokens", padding=c.pad_token_id)
    width = heads.resolve(c.hidden_size)[2]
    if kind != "absolute":
        table = bert.Kept(c.max_position_embeddings, c.hidden_size)
        position = HalfScaled(c.max_position_embeddings, width, queries=kind == "relative_key_query")
    if kind == "rotary":
        position = Rotary(width)
    settings: dict[str, Any] = {"position": position, "dropout": c.attention_probs_dropout_prob}
    branches: dict[str, Spec] = {
        "attn": Attention(c.hidden_size, heads, mask=Causal() if c.is_decoder else Full(), **settings)
    }
    if c.add_cross_attention:
        branches["cross"] = Cross(c.hidden_size, heads, cross=True, **settings)
    branches["ffn"] = FFN(c.hidden_size, c.intermediate_size)
    layer = Layer(**{name: residual(mixer, pre=norm, dropout=drop) for name, mixer in branches.items()})
    return Protein(
        embed=Residues(
            c.vocab_size, c.hidden_size, table, norm if c.emb_layer_norm_before else None, c.pad_token_id,
            hides=c.mask_token_id if c.token_dropout else None,
        ),
        layers=repeat(c.num_hidden_layers, layer, c.pruned_heads),
        norm=norm,
        pool=Pool(c.hidden_size),
        maps=c.num_hidden_layers * c.num_attention_heads,
    )  # fmt: skip


def attention_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of a layer's attention: BERT's, but for the norm."""
    lines = bert.attention_names(ours, theirs)
    at = f"layers.{{i}}.{ours}"
    del lines[f"{at}.post_norm"]
    return lines | {f"{at}.pre_norm": f"encoder.layer.{{i}}.{theirs}.LayerNorm"}


NAMES = NameMap(
    {
        "embed.tokens": "embeddings.word_embeddings",
        "embed.position": "embeddings.position_embeddings",
        "embed.norm": "embeddings.layer_norm",
        **attention_names("attn", "attention"),
        **attention_names("cross", "crossattention"),
        "layers.{i}.ffn.pre_norm": "encoder.layer.{i}.LayerNorm",
        "layers.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
        "layers.{i}.ffn.down": "encoder.layer.{i}.output.dense",
        "norm": "encoder.emb_layer_norm_after",
        "pool.dense": "pooler.dense",
        "contacts": "contact_head.regression",
    },
    prefix="esm",
    ignore=(
        r"(esm\.)?embeddings\.position_ids",
        r"(esm\.)?encoder\.layer\.\d+\.\w+\.self\.rotary_embeddings\.inv_freq",
    ),
)

SCORES = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "out.weight": "lm_head.decoder.weight"}
ROW = {"dense": "classifier.dense", "out": "classifier.out_proj"}
DROPOUT = ("hidden_dropout_prob",)

HEADS: dict[str, Head] = {
    "EsmModel": Backbone(output=BaseModelOutputWithPoolingAndCrossAttentions, pool=True),
    "EsmForMaskedLM": MaskedLM(
        names=SCORES | {"out.bias": "lm_head.bias"},
        transform=lambda c: Transform("gelu", c.layer_norm_eps), bias=True,
    ),
    "EsmForSequenceClassification": Classify(on="first", dense="tanh", names=ROW, dropout=DROPOUT),
    "EsmForTokenClassification": TokenClassify(names={"out": "classifier"}, dropout=DROPOUT),
}  # fmt: skip

family("esm", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=ProteinModel, public="Esm")
