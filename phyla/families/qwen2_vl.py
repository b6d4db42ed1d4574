"""Qwen2-VL (Wang et al. 2024, arXiv:2409.12191): images and videos of any size in the text of a Qwen2.

Public checkpoints: Qwen/Qwen2-VL-2B-Instruct, Qwen/Qwen2-VL-7B-Instruct, Qwen/QVQ-72B-Preview.
Differs from LLaVA in: patches of all images in one row, each frame attending to itself, turned by its row and
column; four neighbours become one vector of the text; the text's rotary angles follow time, height and width
in three sections of each head.
"""

from typing import Any

import torch
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Block, Context, Decoder, Encoder, Heads, Layer, LayerNorm, Linear, Rotary, Spec, make,
    repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap, To, split
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.families import llama, qwen2
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Head
from phyla.heads.fusion import ImageTextLM
from phyla.outputs import BaseModelOutputWithPast, Qwen2VLCausalLMOutputWithPast
from phyla.skeletons import GridTextModel, TextModel


class Qwen2VLVisionConfig(PretrainedConfig):
    """Keys and defaults of the public vision_config."""

    depth: int = 32
    embed_dim: int = 1280
    hidden_size: int = 3584
    hidden_act: str = "quick_gelu"
    mlp_ratio: int | float = 4
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2


Qwen2VLVisionConfig.model_type = "qwen2_vl"


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int | None = 8
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_theta: float = 1000000.0
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 80
    attention_dropout: float = 0.0
    vision_config: Any = None
    rope_scaling: dict | None = None
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653

    PARTS = {"vision_config": "qwen2_vl"}

    def _part(self, name: str, value: Any, model_type: str) -> PretrainedConfig:
        return value if isinstance(value, PretrainedConfig) else Qwen2VLVisionConfig(**(value or {}))

    def finish(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        scaling = self.rope_scaling
        if scaling is not None and "type" in scaling:
            scaling["type"] = "default" if scaling["type"] == "mrope" else scaling["type"]
            scaling["rope_type"] = scaling["type"]


class Sections(Rotary):
    """Rotary angles that follow several positions of a token, (A, B, S), each in its section of the head.

    sections: pairs of elements that each axis turns. restart: every section has the plain frequencies of a
    head of its own size (images) in place of its share of the whole head's (texts).
    """

    def __init__(
        self, width: int, base: float, scaling: Any, max_positions: int, sections: tuple[int, ...],
        restart: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(width, base, scaling, max_positions)
        self.sections, self.restart = sections, restart

    def fill_buffers(self) -> None:
        super().fill_buffers()
        if self.restart:
            shares = [1.0 / 10000.0 ** (torch.arange(size).float() / size) for size in self.sections]
            self.frequencies.copy_(torch.cat(shares))

    def angles(self, ctx: Context, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if ctx.positions.dim() == 2:
            return super().angles(ctx, dtype)
        frequencies = self.frequencies
        if self.table.depends_on_length:
            frequencies = self.table.frequencies(ctx.start + ctx.length).to(frequencies.device)
        shares = frequencies.float().split(self.sections)
        angles = torch.cat([p[..., None].float() * f for p, f in zip(ctx.positions, shares, strict=True)], -1)
        angles = torch.cat((angles, angles), -1)  # (B, S, width)
        factor = self.table.factor
        cos, sin = angles.cos() * factor, angles.sin() * (self.signs.float() * factor)
        return cos[:, None].to(dtype), sin[:, None].to(dtype)


class Tower(Block):
    """Patches (N, F) of images and frames to vectors (N / merge^2, D): each frame attends to itself."""

    def __init__(self, patch: int, width: int, merge: int, layer: Spec, count: int, out: int) -> None:
        super().__init__()
        self.merge = merge
        self.embed = Linear(patch, width, bias=False)
        self.stack = make(Encoder(layers=repeat(count, layer)))
        self.norm = make(LayerNorm(width, eps=1e-6))
        self.merger = make(FFN(width * merge**2, width * merge**2, out=out))

    def forward(self, patches: Tensor, grids: Tensor, implementation: str) -> Tensor:
        x = self.embed(patches.to(self.embed.weight.dtype))
        frames = 1
        positions, frame = self.places(len(x), grids)
        mask = None
        if torch.compiler.is_compiling():
            mask = (frame[:, None] == frame)[None, None]
        else:
            sizes = {h * w for _, h, w in grids.tolist()}
            if len(sizes) == 1 and len(x) % min(sizes) == 0:
                frames = len(x) // sizes.pop()  # frames of one size are rows of a batch
            else:
                mask = (frame[:, None] == frame)[None, None]
        ctx = Context(
            positions=positions.unflatten(1, (frames, -1)), length=len(x) // frames, attention_mask=mask,
            implementation=implementation,
        )  # fmt: skip
        y = self.stack.run(x.unflatten(0, (frames, -1)), ctx).last_hidden_state.flatten(0, 1)
        y = self.norm(y).view(-1, y.shape[-1] * self.merge**2)
        return self.merger.mix(y[None], ctx)[0]

    def places(self, count: int, grids: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column (2, N) of each patch, and (N) the number of its frame; patches to merge are
        neighbours.
        """
        time, height, width = grids.unbind(-1)
        ends = (time * height * width).cumsum(0)
        index = torch.arange(count, device=grids.device)
        image = torch.searchsorted(ends, index, right=True).clamp(max=len(grids) - 1)
        area, columns = (height * width)[image], width[image] // self.merge
        within = index - (ends - time * height * width)[image]
        frame = within // area + (time.cumsum(0) - time)[image]
        block, inner = (within % area) // self.merge**2, within % self.merge**2
        row = block // columns * self.merge + inner // self.merge
        column = block % columns * self.merge + inner % self.merge
        return torch.stack((row, column)), frame


class Lag:
    """How far the positions of each row (B, 1) lag behind its count of tokens, kept from step to step."""

    def __init__(self) -> None:
        self.deltas: Tensor | None = None

    def reorder(self, index: Tensor) -> None:
        if self.deltas is not None:
            self.deltas = self.deltas.index_select(0, index)

    def truncate(self, length: int) -> None:
        """Nothing: what is cut off is text, whose positions do not lag."""


class Reader(Block):
    """A tower, a text decoder, and where the tokens of a text with images stand."""

    caches = True
    paged = False  # positions lag behind the count of tokens
    slot = -1

    def __init__(self, vision: Spec, text: Spec, image_token: int, video_token: int, merge: int) -> None:
        super().__init__()
        self.vision, self.text = make(vision), make(text)
        self.image_token, self.video_token, self.merge = image_token, video_token, merge

    def new_cache(self, batch: int, length: int) -> Lag:
        return Lag()

    def places(
        self, ids: Tensor, real: Tensor | None, grids: tuple[Tensor | None, Tensor | None],
        ctx: Context | None, deltas: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Positions (3, B, S) in time, height and width, and the lag (B, 1).

        A text token stands behind everything before it; an image's vectors stand on a grid, and what follows
        stands behind its longest side. ids (B, S) new tokens; real: bool (B, S), or None for all.
        """
        kept = None if ctx is None else ctx.slot(self.slot)
        start = 0 if ctx is None else ctx.start
        if deltas is None and kept is not None and start:
            deltas = kept.deltas
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real.to(ids.device)
        step = lead = real.long()  # how far a token moves what follows, and what it does not count itself
        offset = torch.zeros(3, *ids.shape, dtype=torch.long, device=ids.device)
        for token, grid in zip((self.image_token, self.video_token), grids, strict=True):
            if grid is None:
                continue
            time, height, width = grid.to(ids.device).unbind(-1)
            height, width = height // self.merge, width // self.merge
            marked = (ids == token) & real
            ends = (time * height * width).cumsum(0)
            order = (marked.flatten().long().cumsum(0) - 1).clamp(min=0).view_as(ids)
            which = torch.searchsorted(ends, order, right=True).clamp(max=len(grid) - 1)
            within = order - (ends - time * height * width)[which]
            h, w = height[which], width[which]
            span = torch.stack((time, height, width)).amax(0)[which]
            offset = torch.where(
                marked, torch.stack((within // (h * w), within // w % h, within % w)), offset
            )
            step = torch.where(marked, torch.where(within == 0, span, 0), step)
            lead = torch.where(marked, span, lead)
        total = step.cumsum(1)
        before = start if deltas is None else start + deltas.to(ids.device)
        positions = torch.where(real, total - lead + offset + before, 1)
        lag = total[:, -1:] - ids.shape[1] + (0 if deltas is None else deltas.to(ids.device))
        if kept is not None:
            kept.deltas = lag
        return positions, lag


def build_text(c: Config) -> Decoder:
    width = c.hidden_size // c.num_attention_heads
    sections = tuple((c.rope_scaling or {}).get("mrope_section") or (width // 2, 0, 0))
    return qwen2.build(
        c, position=Sections(width, c.rope_theta, c.rope_scaling, c.max_position_embeddings, sections)
    )


def build(c: Config) -> Spec:
    v = c.vision_config
    norm, head = LayerNorm(v.embed_dim, eps=1e-6), v.embed_dim // v.num_heads
    position = Sections(head, 10000.0, None, 2048, (head // 4, head // 4), restart=True)
    layer = Layer(
        attn=residual(Attention(v.embed_dim, Heads(v.num_heads), position=position), pre=norm),
        ffn=residual(FFN(v.embed_dim, int(v.embed_dim * v.mlp_ratio), act=v.hidden_act), pre=norm),
    )
    patch = v.in_channels * v.temporal_patch_size * v.patch_size**2
    tower = Tower(patch, v.embed_dim, v.spatial_merge_size, layer, v.depth, v.hidden_size)
    return Reader(tower, build_text(c), c.image_token_id, c.video_token_id, v.spatial_merge_size)


def names(c: Config) -> NameMap:
    v = c.vision_config
    patch = (v.embed_dim, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    tower: dict[str, Any] = {
        "embed": To("patch_embed.proj", Reshape(patch)),
        "stack.layers.{i}.attn.pre_norm": "blocks.{i}.norm1",
        "stack.layers.{i}.attn.q|k|v": split("blocks.{i}.attn.qkv"),
        "stack.layers.{i}.attn.o": "blocks.{i}.attn.proj",
        "stack.layers.{i}.ffn.pre_norm": "blocks.{i}.norm2",
        "stack.layers.{i}.ffn.up": "blocks.{i}.mlp.fc1",
        "stack.layers.{i}.ffn.down": "blocks.{i}.mlp.fc2",
        "norm": "merger.ln_q",
        "merger.up": "merger.mlp.0",
        "merger.down": "merger.mlp.2",
    }
    return NameMap({}, parts={"vision": ("visual.", NameMap(tower)), "text": ("", llama.NAMES)})


HEADS: dict[str, Head] = {
    "Qwen2VLModel": Backbone(
        output=BaseModelOutputWithPast, build=build_text, skeleton=TextModel,
        table=llama.NAMES.but(ignore=(*llama.NAMES.ignore, r"visual\..*", r"lm_head\.weight")),
    ),
    "Qwen2VLForConditionalGeneration": ImageTextLM(
        text=lambda c: CausalLM(), names={"text.out": "lm_head"}, real_only=False,
        output=Qwen2VLCausalLMOutputWithPast,
    ),
}  # fmt: skip

family(
    "qwen2_vl", config=Config, build=build, names=names, heads=HEADS, skeleton=GridTextModel, public="Qwen2VL"
)
