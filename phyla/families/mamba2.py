"""Mamba-2 (Dao & Gu 2024, arXiv:2405.21060). Public checkpoints: AntonV/mamba2-130m-hf, ...

Differs from Mamba in: heads that decay by one number each, groups of heads that share B and C, a norm gated
inside the mixer.
"""

import math

from phyla.blocks import Decoder, Embed, Heads, Layer, RMSNorm, repeat, residual
from phyla.blocks.ssd import SSD
from phyla.blocks.ssm import FreshState
from phyla.checkpoints.names import NameMap, split
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families.mamba import WideEmbed, WideNorm
from phyla.family import family
from phyla.heads import Backbone, CausalLM
from phyla.outputs import StateSpaceCausalLMOutput, StateSpaceModelOutput
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. rms_norm and time_step_rank change no result."""

    num_heads: int = 128
    head_dim: int = 64
    vocab_size: int = 32768
    hidden_size: int = 4096
    state_size: int = 128
    num_hidden_layers: int = 64
    layer_norm_epsilon: float = 1e-5
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    expand: int | float = 2
    conv_kernel: int = 4
    n_groups: int = 8
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    initializer_range: float = 0.1
    residual_in_fp32: bool = True
    time_step_rank: int | str = "auto"
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    time_step_limit: list = [0.0, math.inf]
    rescale_prenorm_residual: bool = False
    use_cache: bool = True
    rms_norm: bool = True
    chunk_size: int = 256
    tie_word_embeddings: bool = False

    def finish(self) -> None:
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        inner = int(self.expand * self.hidden_size)
        if self.num_heads * self.head_dim != inner:
            raise ConfigError(
                f"num_heads * head_dim must be expand * hidden_size ({inner}), "
                f"but is {self.num_heads} * {self.head_dim}"
            )


def build(c: Config) -> Decoder:
    wide = c.residual_in_fp32
    norm = (WideNorm if wide else RMSNorm)(c.hidden_size, eps=c.layer_norm_epsilon)
    fresh = FreshState(
        c.time_step_min, c.time_step_max, c.time_step_floor,
        out_gain=c.num_hidden_layers**-0.5 if c.rescale_prenorm_residual else 1.0,
    )  # fmt: skip
    ssm = SSD(
        c.hidden_size, Heads(c.num_heads, kv=c.n_groups, width=c.head_dim), c.state_size, c.conv_kernel,
        act=c.hidden_act, bias=c.use_bias, conv_bias=c.use_conv_bias, eps=c.layer_norm_epsilon,
        chunk=c.chunk_size, limits=tuple(c.time_step_limit), fresh=fresh,
    )  # fmt: skip
    return Decoder(
        embed=(WideEmbed if wide else Embed)(c.vocab_size, c.hidden_size),
        layers=repeat(c.num_hidden_layers, Layer(ssm=residual(ssm, pre=norm))),
        norm=norm,
        record="layers",
    )


NAMES = NameMap(
    {
        "embed.tokens": "embeddings",
        "layers.{i}.ssm.pre_norm": "layers.{i}.norm",
        "layers.{i}.ssm.in_gate|in_x|in_step": split("layers.{i}.mixer.in_proj"),
        "layers.{i}.ssm.conv": "layers.{i}.mixer.conv1d",
        "layers.{i}.ssm.step_bias": "layers.{i}.mixer.dt_bias",
        "layers.{i}.ssm.A_log": "layers.{i}.mixer.A_log",
        "layers.{i}.ssm.D": "layers.{i}.mixer.D",
        "layers.{i}.ssm.norm": "layers.{i}.mixer.norm",
        "layers.{i}.ssm.out": "layers.{i}.mixer.out_proj",
        "norm": "norm_f",
    },
    prefix="backbone",
    aliases={"embed.tokens": ("embedding",)},
)

HEADS = {
    "Mamba2Model": Backbone(output=StateSpaceModelOutput),
    "Mamba2ForCausalLM": CausalLM(names={"out": "lm_head"}, output=StateSpaceCausalLMOutput),
}

family("mamba2", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Mamba2")
