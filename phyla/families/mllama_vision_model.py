"""The vision tower of Llama 3.2 Vision (Llama Team 2024, arXiv:2407.21783, section 7).

Public checkpoints: the image encoder of meta-llama/Llama-3.2-11B-Vision-Instruct.
Differs from ViT in: an image comes in tiles that attend to each other; tables say where a tile stands in each
arrangement, and learned gates let them in; a second, gated stack; states of some layers stand beside the
last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import (
    FFN, Attention, Block, Context, Encoder, Heads, Layer, LayerNorm, Spec, StackOutput, make, repeat,
    residual,
)  # fmt: skip
from phyla.blocks.embed import Tokens
from phyla.blocks.mask import additive
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.skeletons.cross_text import TiledVisionModel

RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 1280
    hidden_act: str = "gelu"
    num_hidden_layers: int = 32
    num_global_layers: int = 8
    attention_heads: int = 16
    num_channels: int = 3
    intermediate_size: int = 5120
    vision_output_dim: int = 7680
    image_size: int = 448
    patch_size: int = 14
    norm_eps: float = 1e-5
    max_num_tiles: int = 4
    intermediate_layers_indices: list | None = None
    supported_aspect_ratios: list | None = None
    initializer_range: float = 0.02

    ALIASES = {"num_attention_heads": "attention_heads"}

    def finish(self) -> None:
        if self.supported_aspect_ratios is None:
            if self.max_num_tiles != 4:
                raise ConfigError(
                    "supported_aspect_ratios must be given where max_num_tiles is not 4, "
                    f"but it is {self.max_num_tiles}"
                )
            self.supported_aspect_ratios = RATIOS
        if self.intermediate_layers_indices is None:
            self.intermediate_layers_indices = [3, 7, 15, 23, 30]


class Gate(Block):
    """y tanh(g) with one learned number g that starts at 0 (Alayrac et al. 2022, arXiv:2204.14198)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(1))

    def forward(self, y: Tensor) -> Tensor:
        return y * self.gate.tanh()

    def reset(self, std: float) -> bool:
        nn.init.zeros_(self.gate)
        return True


class Places(Block):
    """A gated vector, or a table of `rows` vectors, for each tile of each arrangement."""

    def __init__(self, arrangements: int, tiles: int, width: int, rows: int = 1) -> None:
        super().__init__()
        self.tiles, self.rows = tiles, rows
        self.table = Tokens(arrangements + 1, tiles * rows * width)
        self.gate = make(Gate())

    def forward(self, ids: Tensor) -> Tensor:
        """(N, tiles, rows, D) for arrangements ids (N)."""
        return self.gate(self.table(ids).view(len(ids), self.tiles, self.rows, -1))


class Tower(Block):
    """Pixels (B, images, tiles, C, Y, X) to states (B, images, tiles, P, D (1 + chosen layers))."""

    def __init__(
        self, image: int, patch: int, channels: int, width: int, arrangements: int, tiles: int,
        local: Spec, whole: Spec, chosen: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__()
        self.length, self.tiles, self.chosen = (image // patch) ** 2 + 1, tiles, chosen
        self.patch = nn.Conv2d(channels, width, patch, patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(self.length, width))
        self.places = make(Places(arrangements, tiles, width, self.length))
        self.before, self.after = (make(Places(arrangements, tiles, width)) for _ in range(2))
        self.pre_norm, self.post_norm = make(LayerNorm(width)), make(LayerNorm(width))
        self.local, self.whole = make(local), make(whole)

    def forward(
        self, pixels: Tensor, ids: Tensor, mask: Tensor, ctx: Context, record_states: bool
    ) -> StackOutput:
        shape, ids = pixels.shape[:3], ids.flatten()
        x = self.patch(pixels.flatten(0, 2).to(self.patch.weight.dtype)).flatten(2).transpose(1, 2)
        x = (x.unflatten(0, (-1, shape[2])) + self.before(ids)).flatten(0, 1)
        x = torch.cat((self.class_token.expand(len(x), 1, -1), x), 1)
        x = x + (1 - self.places.gate.gate.tanh()) * self.position
        x = self.pre_norm(x.unflatten(0, (-1, shape[2])) + self.places(ids))  # (N, tiles, P, D)
        spare = -self.length % 8  # public results have rows of a multiple of 8, and the spare ones are read
        x = F.pad(x, (0, 0, 0, spare))
        size = x.shape[1:]
        idle = mask.reshape(-1, shape[2], 1).expand(-1, -1, size[1]) == 0
        idle = (idle | (torch.arange(size[1], device=x.device) >= self.length)).flatten(1)
        # Only pairs of idle rows are hidden from each other: the model was trained so.
        ctx.attention_mask = additive(~(idle[:, None, :, None] & idle[:, None, None, :]), x.dtype)
        ctx.length = size[0] * size[1]
        out = self.local.run(x.flatten(1, 2), ctx, None, True)
        y = self.post_norm(out.last_hidden_state).unflatten(1, size[:2]) + self.after(ids)
        last = self.whole.run(y.flatten(1, 2), ctx, None, record_states)
        states = [out.hidden_states[i] for i in self.chosen]
        x = torch.cat((last.last_hidden_state, torch.stack(states, -1).flatten(2)), -1)
        x = x.unflatten(1, size[:2])[:, :, : self.length].unflatten(0, shape[:2])
        recorded = tuple(states) + last.hidden_states if last.hidden_states is not None else None
        return StackOutput(x, hidden_states=recorded, attentions=last.attentions)


def build(c: PretrainedConfig) -> Tower:
    width, norm = c.hidden_size, LayerNorm(c.hidden_size, eps=c.norm_eps)
    attn = Attention(width, Heads(c.attention_heads), bias=False)
    ffn = FFN(width, c.intermediate_size, act=c.hidden_act)
    local = Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))
    gated = Layer(attn=residual(attn, pre=norm, scale=Gate()), ffn=residual(ffn, pre=norm, scale=Gate()))
    return Tower(
        c.image_size, c.patch_size, c.num_channels, width, len(c.supported_aspect_ratios), c.max_num_tiles,
        Encoder(layers=repeat(c.num_hidden_layers, local)),
        Encoder(layers=repeat(c.num_global_layers, gated)), tuple(c.intermediate_layers_indices),
    )  # fmt: skip


def _layer_names(ours: str, theirs: str) -> dict[str, str]:
    mine, at = f"{ours}.layers.{{i}}", f"{theirs}.layers.{{i}}"
    return {
        f"{mine}.attn.pre_norm": f"{at}.input_layernorm",
        **{f"{mine}.attn.{part}": f"{at}.self_attn.{part}_proj" for part in "qkvo"},
        f"{mine}.attn.layer_scale.gate": f"{at}.gate_attn",
        f"{mine}.ffn.pre_norm": f"{at}.post_attention_layernorm",
        f"{mine}.ffn.up": f"{at}.mlp.fc1",
        f"{mine}.ffn.down": f"{at}.mlp.fc2",
        f"{mine}.ffn.layer_scale.gate": f"{at}.gate_ffn",
    }


NAMES = NameMap(
    {
        "patch": "patch_embedding",
        "class_token": "class_embedding",
        "position": "gated_positional_embedding.embedding",
        "places.table": "gated_positional_embedding.tile_embedding",
        "places.gate.gate": "gated_positional_embedding.gate",
        "before.table": "pre_tile_positional_embedding.embedding",
        "before.gate.gate": "pre_tile_positional_embedding.gate",
        "after.table": "post_tile_positional_embedding.embedding",
        "after.gate.gate": "post_tile_positional_embedding.gate",
        "pre_norm": "layernorm_pre",
        "post_norm": "layernorm_post",
        **_layer_names("local", "transformer"),
        **_layer_names("whole", "global_transformer"),
    },
    prefix="vision_model",
    ignore=(r"(language_model|multi_modal_projector)\..*",),
)

HEADS: dict[str, Head] = {"MllamaVisionModel": Backbone()}

family(
    "mllama_vision_model", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TiledVisionModel,
    public="MllamaVision", width=lambda c: c.vision_output_dim, inside="vision_model",
    bases=("MllamaPreTrainedModel",),
)  # fmt: skip
