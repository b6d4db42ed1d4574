"""The vocabulary of parts: one concept a file, plain torch, knowing no model.

Letters in shapes: B batch, S new positions (queries), K key positions, D width of the stream, H query heads,
G key/value heads, E head width, F inner width of the feed-forward, V vocabulary, P patches, X experts.
"""

from phyla.blocks.act import activation
from phyla.blocks.attention import Attention, Heads
from phyla.blocks.context import Context
from phyla.blocks.embed import Embed
from phyla.blocks.ffn import FFN, GatedFFN
from phyla.blocks.linear import Linear
from phyla.blocks.mask import Causal, Full, Window
from phyla.blocks.moe import Experts
from phyla.blocks.norm import LayerNorm, RMSNorm
from phyla.blocks.patch import PatchEmbed
from phyla.blocks.pool import Pool
from phyla.blocks.position import Alibi, BucketBias, Learned, RelativeKeys, Rotary, StackBias
from phyla.blocks.residual import Mixer, residual
from phyla.blocks.spec import Block, Spec, make
from phyla.blocks.ssm import Mamba
from phyla.blocks.stack import (
    Decoder,
    Dual,
    DualOutput,
    Encoder,
    EncoderDecoder,
    Layer,
    Parallel,
    Stack,
    StackOutput,
    repeat,
)  # fmt: skip

__all__ = [
    "FFN", "Alibi", "Attention", "Block", "BucketBias", "Causal", "Context", "Decoder", "Dual", "DualOutput",
    "Embed", "Encoder", "EncoderDecoder", "Experts", "Full", "GatedFFN", "Heads", "Layer", "LayerNorm",
    "Learned", "Linear", "Mamba", "Mixer", "Parallel", "PatchEmbed", "Pool", "RMSNorm", "RelativeKeys",
    "Rotary", "Spec", "Stack", "StackBias", "StackOutput", "Window", "activation", "make", "repeat",
    "residual",
]  # fmt: skip
