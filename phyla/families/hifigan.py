"""HiFi-GAN as SpeechT5's vocoder (Kong et al. 2020, arXiv:2010.05646): log-mel frames to sound.

Public checkpoints: microsoft/speecht5_hifigan. Differs from the plain vocoder in: frames are normed first.
"""

import torch
from torch import Tensor

from phyla.blocks import Block, Spec, make
from phyla.blocks.vocoder import Vocoder, vocoder_names
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.skeletons.speaking import VocoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    model_in_dim: int = 80
    sampling_rate: int = 16000
    upsample_initial_channel: int = 512
    upsample_rates: list = [4, 4, 4, 4]
    upsample_kernel_sizes: list = [8, 8, 8, 8]
    resblock_kernel_sizes: list = [3, 7, 11]
    resblock_dilation_sizes: list = [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    initializer_range: float = 0.01
    leaky_relu_slope: float = 0.1
    normalize_before: bool = True


class Normed(Block):
    """A vocoder behind (x - mean) / scale of its frames (B, S, M)."""

    def __init__(self, vocoder: Spec, mels: int, on: bool) -> None:
        super().__init__()
        self.vocoder, self.on = make(vocoder), on
        self.register_buffer("mean", torch.empty(mels))
        self.register_buffer("scale", torch.empty(mels))

    def forward(self, x: Tensor) -> Tensor:
        if self.on:
            x = (x - self.mean) / self.scale
        return self.vocoder(x.transpose(1, 2))

    def reset(self, std: float) -> bool:
        self.mean.zero_()
        self.scale.fill_(1)
        return True


def build(c: Config) -> Normed:
    vocoder = Vocoder(
        c.model_in_dim, c.upsample_initial_channel, c.upsample_rates, c.upsample_kernel_sizes,
        c.resblock_kernel_sizes, c.resblock_dilation_sizes, c.leaky_relu_slope,
    )  # fmt: skip
    return Normed(vocoder, c.model_in_dim, c.normalize_before)


NAMES = NameMap({**vocoder_names("vocoder.", ""), "mean": "mean", "scale": "scale"})

HEADS: dict[str, Head] = {"SpeechT5HifiGan": Backbone()}

family(
    "hifigan", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=VocoderModel,
    public="SpeechT5HifiGan", width=lambda c: c.model_in_dim,
)  # fmt: skip
