"""UDOP (Tang et al. 2022, arXiv:2212.02623): a T5 that reads words where they stand on the page's image.

Public checkpoints: microsoft/udop-large, microsoft/udop-large-512.
Differs from T5 in: each word gets the vector of the patch that its box lies on, patches without words follow
the
text; tables of the edges of boxes; the encoder's biases are of distances in the text and on the page.
"""

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, BucketBias, Context, Decoder, Encoder, EncoderDecoder, Spec, StackOutput, make
from phyla.blocks.embed import Tokens
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.families import t5
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.fusion import ImageToText
from phyla.outputs import BaseModelOutputWithAttentionMask, Seq2SeqLMOutput, Seq2SeqModelOutput
from phyla.skeletons.page_to_text import PageEncoderModel, PageToTextModel

# Kinds of public relative_bias_args: which edges of a box they compare, factor and largest distance.
BIASES = {"1d": ((), 1, 128), "horizontal": ((0, 2), 100, 100), "vertical": ((1, 3), 100, 100)}


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 33201
    d_model: int = 1024
    d_kv: int = 64
    d_ff: int = 4096
    num_layers: int = 24
    num_decoder_layers: int | None = None
    num_heads: int = 16
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    relative_bias_args: list = [{"type": "1d"}, {"type": "horizontal"}, {"type": "vertical"}]
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list | None = 1
    max_2d_position_embeddings: int = 1024
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3

    ALIASES = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    }

    def finish(self) -> None:
        t5.fill_layers(self)
        self.dense_act_fn = self.feed_forward_proj.split("-")[-1]
        for entry in self.relative_bias_args:
            if entry.get("type") not in BIASES or entry.get("num_heads", self.num_heads) != self.num_heads:
                raise ConfigError(
                    f"relative_bias_args must have a type of {list(BIASES)} and {self.num_heads} heads each, "
                    f"but hold {entry!r}"
                )


class Distances(BucketBias):
    """Bias of the distances between places in the text, or between middles of boxes in hundredths of the
    page.

    prefix: pairs of a token of the prefix (whose boxes are negative) and another have two biases of their
    own;
    "grown" where files were trained without and those two are 0.1.
    """

    def __init__(
        self, heads: int, edges: tuple[int, ...], scale: float, max_distance: int, buckets: int,
        both_sides: bool, prefix: str, shaken: bool,
    ) -> None:  # fmt: skip
        super().__init__(buckets + 2 * (prefix == "own"), max_distance, heads, both_sides)
        self.buckets = buckets
        self.edges, self.scale, self.prefix, self.shaken = edges, scale, prefix, shaken

    def forward(self, boxes: Tensor | None, length: int) -> Tensor:  # type: ignore[override]
        """(B or 1, H, S, S) for boxes (B, S, 4)."""
        if boxes is None and (self.edges or self.prefix):
            raise ArgumentError("the encoder compares places on the page: pass bbox (batch, tokens, 4)")
        at = torch.arange(length, device=self.weight.device)[None]
        if self.edges and boxes is not None:
            at = boxes[..., list(self.edges)].mean(-1)
        distance = at[:, None, :] - at[:, :, None]
        if self.shaken and self.training:
            distance = distance * random.uniform(0.8, 1.25)
        table: Tensor = self.weight
        bucket = self.bucket((distance * self.scale).long())
        if self.prefix and boxes is not None:
            front = torch.arange(length, device=bucket.device) < (boxes[..., 1] < 0).sum(-1, keepdim=True)
            bucket = torch.where(front[:, :, None] & ~front[:, None], self.buckets, bucket)
            bucket = torch.where(~front[:, :, None] & front[:, None], self.buckets + 1, bucket)
            if self.prefix == "grown":
                table = torch.cat((table, torch.full_like(table[:2], 0.1)))
        return F.embedding(bucket, table).permute(0, 3, 1, 2)


class PageEncoder(Block):
    """T5's encoder on words and patches. near: the bias of places in the text, read where `reads_near`
    says.
    """

    def __init__(
        self, stack: Spec, near: Spec, far: tuple[Spec, ...], reads_near: bool, patches: tuple[int, int, int],
        width: int, places: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stack, self.near, self.far = make(stack), make(near), make(far)
        self.size, patch, channels = patches
        self.grid, self.reads_near, self.places = self.size // patch, reads_near, places
        self.projection = nn.Conv2d(channels, width, patch, patch)
        self.x, self.y, self.dropout_prob = Tokens(places, width), Tokens(places, width), dropout

    @property
    def embed(self) -> Any:
        """The token table."""
        return self.stack.embed

    @property
    def layers(self) -> Any:
        """The layers of the stack."""
        return self.stack.layers

    def patches(self, pixels: Tensor) -> Tensor:
        """Vectors (B, P, D) of pixels (B, C, Y, X)."""
        if tuple(pixels.shape[-2:]) != (self.size, self.size):
            raise ArgumentError(
                f"images must be {self.size} x {self.size} pixels, but are {tuple(pixels.shape[-2:])}; "
                "resize them"
            )
        return self.projection(pixels.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)

    def plain_boxes(self, device: torch.device) -> Tensor:
        """(P, 4): boxes of the patches on a page from 0 to 1."""
        edges = torch.arange(self.grid + 1, dtype=torch.float32, device=device) / self.grid
        upper, left = torch.meshgrid(edges[:-1], edges[:-1], indexing="ij")
        lower, right = torch.meshgrid(edges[1:], edges[1:], indexing="ij")
        return torch.stack((left, upper, right, lower), -1).view(-1, 4)

    def join(
        self, ids: Tensor | None, vectors: Tensor | None, boxes: Tensor | None, pixels: Tensor | None,
        patch_boxes: Tensor | None, ctx: Context,
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        """The stream (B, S + P, D) of words on their patches and patches without words, boxes, and mask."""
        x, real = self.stack.embed(ids, vectors, None, ctx), ctx.attention_mask
        if pixels is not None:
            if boxes is None:
                raise ArgumentError("words stand on the page's image: pass bbox (batch, tokens, 4)")
            seen = self.patches(pixels)
            middle = (boxes[..., :2] + boxes[..., 2:]) / 2.0 * self.grid
            column, row = middle.floor().long().clamp(0, self.grid - 1).unbind(-1)
            cell = row * self.grid + column  # (B, S)
            boxes = boxes.double()
            mean = boxes.mean(-1)
            nowhere = (mean == 0.0) | (mean == 1.0)
            under = seen.gather(1, cell[..., None].expand_as(x))
            x = x + under.masked_fill(nowhere[..., None], 0.0)
            covered = torch.zeros(seen.shape[:2], device=x.device).scatter(1, cell, 1.0)
            order = covered.argsort(dim=1, stable=True)  # patches without words first
            free = covered.gather(1, order) == 0
            if patch_boxes is None:
                patch_boxes = self.plain_boxes(x.device).expand(len(x), -1, -1)
            rest = seen.gather(1, order[..., None].expand_as(seen)) * free[..., None]
            corners = patch_boxes.gather(1, order[..., None].expand(-1, -1, 4)) * free[..., None]
            x, boxes = torch.cat((x, rest), 1), torch.cat((boxes, corners), 1)
            # Without a mask public results count the spare slots as real.
            real = None if real is None else torch.cat((real, free), 1)
        if boxes is not None:
            left, upper, right, lower = (boxes.clamp(0, 1) * (self.places - 1)).long().unbind(-1)
            x = x + self.x(left) + self.y(upper) + self.x(right) + self.y(lower)
        x = F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x
        return x, boxes, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if real is None else real

    def read(self, x: Tensor, boxes: Tensor | None, ctx: Context, states: bool) -> StackOutput:
        """T5's encoder on the joined stream."""
        biases = [
            table(boxes, x.shape[1]) for table in ((self.near,) if self.reads_near else ()) + tuple(self.far)
        ]
        total = sum(biases) if biases else torch.zeros((), device=x.device)
        ctx.memo["stack-bias"], ctx.memo["stack-bias-values"] = None, total.to(x.dtype)
        return self.stack.run(x, ctx, None, states)


class Kept(Block):
    """Biases that files of the decoder hold and that no layer reads."""

    def __init__(self, tables: tuple[Spec, ...]) -> None:
        super().__init__()
        self.far = make(tables)


class Udop(EncoderDecoder):
    """Encoder, decoder, and what the decoder's files hold besides."""

    def __init__(self, encoder: Spec, decoder: Spec, kept: Spec) -> None:
        super().__init__(encoder, decoder)
        self.kept = make(kept)


def distances(c: PretrainedConfig, near: bool) -> tuple[Spec, ...]:
    """The biases of the config, either those of places in the text, or those on the page."""
    found = []
    for entry in c.relative_bias_args:
        edges, scale, most = BIASES[entry["type"]]
        if bool(edges) is near:
            continue
        grown = "grown" if entry.get("expand") else "own"
        found.append(
            Distances(
                c.num_heads, edges, entry.get("scaling_factor", scale), entry.get("max_distance", most),
                entry.get("relative_attention_num_buckets", 32), entry.get("bidirectional", True),
                grown if entry.get("prefix_bucket") else "", bool(entry.get("augmentation")),
            )
        )  # fmt: skip
    return tuple(found)


def build_encoder(c: PretrainedConfig) -> Spec:
    near = distances(c, near=True)
    stack = t5.stack(c, Encoder, c.num_layers, False)
    unread = Distances(c.num_heads, (), 1, 128, c.relative_attention_num_buckets, True, "", False)
    return PageEncoder(
        # The joined stream is dropped out as a whole.
        stack.but(position=None, embed=stack.embed.but(dropout=0.0)),
        near[0] if near else unread,
        distances(c, near=False), bool(near), (c.image_size, c.patch_size, c.num_channels), c.d_model,
        c.max_2d_position_embeddings, c.dropout_rate,
    )  # fmt: skip


def build(c: PretrainedConfig) -> Spec:
    decoder = t5.stack(c, Decoder, c.num_decoder_layers, True)
    return Udop(build_encoder(c), decoder, Kept(distances(c, near=False)))


def names(c: Config) -> NameMap:
    lines: dict[str, Any] = {
        "encoder.projection": "patch_embed.proj",
        "encoder.x": "encoder.cell_2d_embedding.x_position_embeddings",
        "encoder.y": "encoder.cell_2d_embedding.y_position_embeddings",
    }
    aliases = {
        "encoder.stack.embed.tokens": ("encoder.embed_tokens", "decoder.embed_tokens"),
        "encoder.projection": ("encoder.embed_patches.proj",),
    }
    for ours, theirs in t5.names(c).lines.items():
        lines[ours.replace("encoder.", "encoder.stack.") if ours.startswith("encoder.") else ours] = theirs
    lines["encoder.near"] = lines.pop("encoder.stack.position")
    far = 0
    for index, entry in enumerate(c.relative_bias_args):
        public = f"relative_bias.biases.{index}.relative_attention_bias"
        if entry["type"] == "1d":
            aliases["encoder.near"] = (f"encoder.{public}",)
            aliases["decoder.position"] = (f"decoder.{public}",)
        else:
            lines[f"encoder.far.{far}"], lines[f"kept.far.{far}"] = f"encoder.{public}", f"decoder.{public}"
            far += 1
    return NameMap(lines, aliases=aliases)


def encoder_names(c: Config) -> NameMap:
    whole = names(c)
    own = {k.removeprefix("encoder."): v for k, v in whole.lines.items() if k.startswith("encoder.")}
    aliases = {k.removeprefix("encoder."): v for k, v in whole.aliases.items() if k.startswith("encoder.")}
    return NameMap(own, aliases=aliases, ignore=(r"decoder\..*", r"lm_head\.weight"))


HEADS: dict[str, Head] = {
    "UdopModel": Backbone(output=Seq2SeqModelOutput),
    "UdopForConditionalGeneration": ImageToText(
        names={"out": "lm_head"}, output=Seq2SeqLMOutput,
        scale=lambda c: c.d_model**-0.5 if c.tie_word_embeddings else None,
    ),
    "UdopEncoderModel": Backbone(
        build=build_encoder, table=encoder_names, skeleton=PageEncoderModel,
        output=BaseModelOutputWithAttentionMask,
    ),
}  # fmt: skip

family(
    "udop", config=Config, build=build, names=names, heads=HEADS, skeleton=PageToTextModel, public="Udop",
    width=lambda c: c.d_model,
)  # fmt: skip
