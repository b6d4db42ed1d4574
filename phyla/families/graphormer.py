"""Graphormer (Ying et al. 2021, arXiv:2106.05234).

Public checkpoints: clefourrier/graphormer-base-pcqm4mv2, ... Differs from the plain encoder in: nodes of a
graph in place of tokens, with vectors of their degrees and a node for the whole graph in front; attention is
biased by the length of the shortest path and its edges.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Block, Context, Heads, Layer, LayerNorm, Linear, Spec, StackOutput, activation, make,
    repeat, residual,
)  # fmt: skip
from phyla.blocks.embed import Tokens
from phyla.blocks.position import Position
from phyla.blocks.shapes import Bias, Keys, Queries
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone
from phyla.heads.graph import GraphClassify
from phyla.outputs import BaseModelOutputWithNoAttention
from phyla.skeletons.graph import GraphModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. max_nodes and traceable change nothing in the result."""

    num_classes: int = 1
    num_atoms: int = 512 * 9
    num_edges: int = 512 * 3
    num_in_degree: int = 512
    num_out_degree: int = 512
    num_spatial: int = 512
    num_edge_dis: int = 128
    multi_hop_max_dist: int = 5
    spatial_pos_max: int = 1024
    edge_type: str = "multi_hop"
    max_nodes: int = 512
    share_input_output_embed: bool = False
    num_hidden_layers: int = 12
    embedding_dim: int = 768
    ffn_embedding_dim: int = 768
    num_attention_heads: int = 32
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    layerdrop: float = 0.0
    encoder_normalize_before: bool = False
    pre_layernorm: bool = False
    apply_graphormer_init: bool = False
    activation_fn: str = "gelu"
    embed_scale: float | None = None
    freeze_embeddings: bool = False
    num_trans_layers_to_freeze: int = 0
    traceable: bool = False
    q_noise: float = 0.0
    qn_block_size: int = 8
    kdim: int | None = None
    vdim: int | None = None
    bias: bool = True
    self_attention: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2

    def finish(self) -> None:
        self.hidden_size = self.embedding_dim
        wrong = [d for d in (self.kdim, self.vdim) if d not in (None, self.embedding_dim)]
        if wrong or self.share_input_output_embed:
            raise ConfigError(
                "graphormer attends to itself alone: kdim and vdim must be null or embedding_dim "
                f"({self.embedding_dim}), but are {self.kdim} and {self.vdim}; share_input_output_embed must "
                f"be false, but is {self.share_input_output_embed}"
            )


class NoisyLinear(Linear):
    """A projection that loses random blocks of its weights while training (arXiv:2004.07320)."""

    share, block = 0.0, 8

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.share):
            return super().forward(x)
        lost = torch.rand(self.out_features, self.in_features // self.block, device=x.device) < self.share
        weight = self.weight.masked_fill(lost.repeat_interleave(self.block, 1), 0) / (1 - self.share)
        y = F.linear(x, weight, self.bias)
        return y if self.site is None else self.site(x, y, self)


def noisy(linear: Linear, noise: tuple[float, int]) -> Linear:
    """The projection with noise (share, block) in training, or itself without."""
    if noise[0] <= 0:
        return linear
    made = NoisyLinear(linear.in_features, linear.out_features, linear.bias is not None)
    made.share, made.block = noise
    return made


class GraphAttention(Attention):
    """Attention with perhaps noisy projections."""

    def __init__(
        self, width: int, heads: Heads, position: Spec, bias: bool, dropout: float, noise: tuple[float, int]
    ) -> None:
        super().__init__(width, heads, position, bias=bias, dropout=dropout)
        for name in "qkvo":
            setattr(self, name, noisy(getattr(self, name), noise))


class GraphFFN(FFN):
    """A feed-forward with perhaps noisy projections."""

    def __init__(self, width: int, inner: int, act: str, dropout: float, noise: tuple[float, int]) -> None:
        super().__init__(width, inner, act=act, dropout=dropout)
        self.up, self.down = noisy(self.up, noise), noisy(self.down, noise)


class SharedBias(Position):
    """Takes the bias that the graph has put into the call."""

    def bias(self, q: Queries, k: Keys, first: int, scale: float, ctx: Context) -> Bias:
        return ctx.memo["graph-bias"].to(q.dtype)


class PathBias(Block):
    """Biases of a pair of nodes by the length of their shortest path and the edges on it (sections 3.1.2-3).

    hops: edges of a path that count (0: all); whole: paths count, else the direct edge alone.
    """

    def __init__(self, heads: int, paths: int, edges: int, distances: int, hops: int, whole: bool) -> None:
        super().__init__()
        self.heads, self.hops = heads, hops
        self.path, self.edge = Tokens(paths, heads, padding=0), Tokens(edges, heads, padding=0)
        self.graph = Tokens(1, heads)
        self.hop = Tokens(distances * heads * heads, 1) if whole else None

    def forward(self, given: Tensor, lengths: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
        """given (B, N + 1, N + 1) -> (B, H, N + 1, N + 1)."""
        pairs = self.path(lengths)  # (B, N, N, H)
        if self.hop is None:
            pairs = pairs + self.edge(kinds).mean(-2)
        else:
            count = torch.where(lengths > 1, lengths - 1, 1)
            if self.hops > 0:
                count, edges = count.clamp(max=self.hops), edges[:, :, :, : self.hops]
            vectors = self.edge(edges).mean(-2)  # (B, N, N, hops, H)
            maps = self.hop.weight.view(-1, self.heads, self.heads)[: vectors.shape[3]]
            pairs = pairs + torch.einsum("bijdh,dhk->bijk", vectors, maps) / count[..., None]
        graph = self.graph.weight.view(1, self.heads, 1, 1)
        bias = F.pad(pairs.permute(0, 3, 1, 2), (1, 0, 1, 0))
        ends = torch.zeros_like(bias[:1, :1])
        ends[..., 0, :], ends[..., :, 0] = 1, 1
        return bias + graph * ends + 2 * given[:, None]  # the given bias counts twice, as in public results


class Graph(Block):
    """Nodes -> vectors with degrees behind the graph's own -> layers -> a map of the states, normed.

    sizes: of the tables of nodes, in- and out-degrees. frozen: layers that do not learn, and whether the
    tables do not. noise: (share, block) of quantisation noise; with a share a projection follows the vectors.
    """

    def __init__(
        self, width: int, sizes: tuple[int, int, int], bias: Spec, layers: Any, act: str,
        norms: tuple[bool, bool], scale: float | None, noise: tuple[float, int], dropout: float,
        layer_drop: float, frozen: tuple[int, bool],
    ) -> None:  # fmt: skip
        super().__init__()
        nodes, ins, outs = sizes
        self.node, self.graph = Tokens(nodes, width, padding=0), Tokens(1, width)
        self.in_degree, self.out_degree = Tokens(ins, width, padding=0), Tokens(outs, width, padding=0)
        self.scale, self.dropout_prob, self.layer_drop = scale, dropout, layer_drop
        self.noise = noisy(Linear(width, width, bias=False), noise) if noise[0] > 0 else None
        self.embed_norm = make(LayerNorm(width)) if norms[0] else None
        self.bias, self.layers = make(bias), make(list(layers))
        self.unused_norm = make(LayerNorm(width)) if norms[1] else None  # files of pre-norm models hold it
        self.dense, self.act, self.norm = Linear(width, width), activation(act), make(LayerNorm(width))
        still = [*self.layers[: frozen[0]], *([self.node, self.graph] if frozen[1] else [])]
        for module in still:
            module.requires_grad_(False)

    def forward(
        self, ctx: Context, nodes: Tensor, edges: Tensor, given: Tensor, ins: Tensor, outs: Tensor,
        lengths: Tensor, kinds: Tensor, perturb: Tensor | None,
    ) -> StackOutput:  # fmt: skip
        real = F.pad(nodes[:, :, 0] != 0, (1, 0), value=True)  # (B, N + 1)
        ctx.attention_mask = real
        ctx.memo["graph-bias"] = self.bias(given, lengths, edges, kinds)
        x = self.node(nodes).sum(-2) + self.in_degree(ins) + self.out_degree(outs)  # (B, N, D)
        if perturb is not None:
            x = x + perturb
        x = torch.cat((self.graph.weight.expand(len(x), 1, -1), x), 1)
        x = x if self.scale is None else x * self.scale
        x = x if self.noise is None else self.noise(x)
        x = x if self.embed_norm is None else self.embed_norm(x)
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        states = [x.transpose(0, 1)]
        for index, layer in enumerate(self.layers):
            ctx.layer = index
            if self.training and self.layer_drop and torch.rand(()) < self.layer_drop:
                continue
            x = layer(x, ctx)
            states.append(x.transpose(0, 1))
        return StackOutput(self.norm(self.act(self.dense(x))), hidden_states=tuple(states))


def build(c: PretrainedConfig) -> Spec:
    place: dict[str, Any] = {"pre" if c.pre_layernorm else "post": LayerNorm(c.embedding_dim)}
    noise, heads = (c.q_noise, c.qn_block_size), Heads(c.num_attention_heads)
    attn = GraphAttention(c.embedding_dim, heads, SharedBias(), c.bias, c.attention_dropout, noise)
    ffn = GraphFFN(c.embedding_dim, c.ffn_embedding_dim, c.activation_fn, c.activation_dropout, noise)
    layer = Layer(
        attn=residual(attn, dropout=c.dropout, **place), ffn=residual(ffn, dropout=c.dropout, **place)
    )
    bias = PathBias(
        c.num_attention_heads, c.num_spatial, c.num_edges + 1, c.num_edge_dis, c.multi_hop_max_dist,
        c.edge_type == "multi_hop",
    )  # fmt: skip
    return Graph(
        c.embedding_dim, (c.num_atoms + 1, c.num_in_degree, c.num_out_degree), bias,
        repeat(c.num_hidden_layers, layer), c.activation_fn, (c.encoder_normalize_before, c.pre_layernorm),
        c.embed_scale, noise, c.dropout, c.layerdrop, (c.num_trans_layers_to_freeze, c.freeze_embeddings),
    )  # fmt: skip


def names(c: PretrainedConfig) -> NameMap:
    top, place = "graph_encoder", "pre_norm" if c.pre_layernorm else "post_norm"
    at = f"{top}.layers.{{i}}"
    return NameMap(
        {
            "node": f"{top}.graph_node_feature.atom_encoder",
            "graph": f"{top}.graph_node_feature.graph_token",
            "in_degree": f"{top}.graph_node_feature.in_degree_encoder",
            "out_degree": f"{top}.graph_node_feature.out_degree_encoder",
            "bias.path": f"{top}.graph_attn_bias.spatial_pos_encoder",
            "bias.edge": f"{top}.graph_attn_bias.edge_encoder",
            "bias.hop": f"{top}.graph_attn_bias.edge_dis_encoder",
            "bias.graph": f"{top}.graph_attn_bias.graph_token_virtual_distance",
            "noise": f"{top}.quant_noise",
            "embed_norm": f"{top}.emb_layer_norm",
            "unused_norm": f"{top}.final_layer_norm",
            **{f"layers.{{i}}.attn.{p}": f"{at}.self_attn.{p}_proj" for p in "qkv"},
            "layers.{i}.attn.o": f"{at}.self_attn.out_proj",
            f"layers.{{i}}.attn.{place}": f"{at}.self_attn_layer_norm",
            "layers.{i}.ffn.up": f"{at}.fc1",
            "layers.{i}.ffn.down": f"{at}.fc2",
            f"layers.{{i}}.ffn.{place}": f"{at}.final_layer_norm",
            "dense": "lm_head_transform_weight",
            "norm": "layer_norm",
        },
        prefix="encoder",
    )


HEADS = {
    "GraphormerModel": Backbone(output=BaseModelOutputWithNoAttention),
    "GraphormerForGraphClassification": GraphClassify(
        names={"out": "classifier.classifier", "offset": "classifier.lm_output_learned_bias"}
    ),
}

family(
    "graphormer", config=Config, build=build, names=names, heads=HEADS, skeleton=GraphModel,
    public="Graphormer",
)  # fmt: skip
