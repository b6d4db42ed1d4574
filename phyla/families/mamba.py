"""Mamba (Gu & Dao 2023, arXiv:2312.00752). Public checkpoints: state-spaces/mamba-130m-hf, ...

Differs from the plain decoder in: selective state spaces in place of attention and feed-forward, no
positions, and a stream that stays in float32 whatever the dtype of the weights.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Decoder, Embed, Layer, Mamba, RMSNorm, repeat, residual
from phyla.blocks.context import Context
from phyla.blocks.ssm import FreshState
from phyla.checkpoints.names import NameMap, split
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone, CausalLM
from phyla.outputs import StateSpaceCausalLMOutput, StateSpaceModelOutput
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json. use_mambapy changes nothing in the result."""

    vocab_size: int = 50280
    hidden_size: int = 768
    state_size: int = 16
    num_hidden_layers: int = 32
    layer_norm_epsilon: float = 1e-5
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 0
    expand: int | float = 2
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    initializer_range: float = 0.1
    residual_in_fp32: bool = True
    time_step_rank: int | str = "auto"
    time_step_scale: float = 1.0
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_init_scheme: str = "random"
    time_step_floor: float = 1e-4
    rescale_prenorm_residual: bool = False
    use_cache: bool = True
    use_mambapy: bool = False

    def finish(self) -> None:
        self.intermediate_size = int(self.expand * self.hidden_size)
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        if not isinstance(self.time_step_rank, int):
            raise ConfigError(f'time_step_rank must be an integer or "auto", but is {self.time_step_rank!r}')
        scheme = self.time_step_init_scheme
        if scheme not in ("random", "constant"):
            raise ConfigError(f'time_step_init_scheme must be "random" or "constant", but is {scheme!r}')


class WideEmbed(Embed):
    """An embedding whose stream is float32 in models of any dtype."""

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, segment_ids: Tensor | None, ctx: Context
    ) -> Tensor:
        return super().forward(ids, vectors, segment_ids, ctx).float()


class WideNorm(RMSNorm):
    """RMS norm of a float32 stream that gives back the dtype of the model."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (self.width,), self.weight.float(), self.eps).to(self.weight.dtype)


def build(c: Config) -> Decoder:
    wide = c.residual_in_fp32
    norm = (WideNorm if wide else RMSNorm)(c.hidden_size, eps=c.layer_norm_epsilon)
    fresh = FreshState(
        c.time_step_min, c.time_step_max, c.time_step_floor, c.time_step_scale, c.time_step_init_scheme,
        out_gain=c.num_hidden_layers**-0.5 if c.rescale_prenorm_residual else 1.0,
    )  # fmt: skip
    ssm = Mamba(
        c.hidden_size, c.intermediate_size, c.state_size, c.conv_kernel, int(c.time_step_rank),
        act=c.hidden_act, bias=c.use_bias, conv_bias=c.use_conv_bias, fresh=fresh,
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
        "layers.{i}.ssm.in_x|in_gate": split("layers.{i}.mixer.in_proj"),
        "layers.{i}.ssm.conv": "layers.{i}.mixer.conv1d",
        "layers.{i}.ssm.select": "layers.{i}.mixer.x_proj",
        "layers.{i}.ssm.step": "layers.{i}.mixer.dt_proj",
        "layers.{i}.ssm.A_log": "layers.{i}.mixer.A_log",
        "layers.{i}.ssm.D": "layers.{i}.mixer.D",
        "layers.{i}.ssm.out": "layers.{i}.mixer.out_proj",
        "norm": "norm_f",
    },
    prefix="backbone",
    aliases={"embed.tokens": ("embedding",)},
)

HEADS = {
    "MambaModel": Backbone(output=StateSpaceModelOutput),
    "MambaForCausalLM": CausalLM(names={"out": "lm_head"}, output=StateSpaceCausalLMOutput),
}

family("mamba", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel, public="Mamba")
