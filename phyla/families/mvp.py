"""MVP (Tang et al. 2022, arXiv:2206.12131): BART with learned prompts in every layer.

Public checkpoints: RUCAIBox/mvp, RUCAIBox/mtl-summarization, ...
Differs from BART in: with `use_prompt`, keys and values of a prompt stand before those of each attention.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Decoder, Encoder, EncoderDecoder, LayerNorm, Linear, Spec
from phyla.blocks.embed import Tokens
from phyla.blocks.spec import Block, make
from phyla.config import PretrainedConfig
from phyla.families import bart
from phyla.family import family
from phyla.skeletons import EncoderDecoderModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50267
    max_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    activation_function: str = "gelu"
    d_model: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    classifier_dropout: float = 0.0
    scale_embedding: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    is_encoder_decoder: bool = True
    decoder_start_token_id: int | None = 2
    forced_eos_token_id: int | list | None = 2
    use_prompt: bool = False
    prompt_length: int = 100
    prompt_mid_dim: int = 800

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    DEFAULTS = {"num_hidden_layers": None}

    finish = bart.count_layers


class Prompts(Block):
    """Keys and values of a prompt for every layer: embed (P, D), then up and down, (P, layers * 2 * D)."""

    def __init__(
        self, length: int, width: int, inner: int, layers: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.width, self.heads, self.prompt_dropout = width, heads, dropout
        self.up = Linear(width, inner)
        self.embed = Tokens(length, width)
        self.down = Linear(inner, layers * 2 * width)

    def pair(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (H, P, E) of one layer."""
        rows = slice(2 * layer * self.width, 2 * (layer + 1) * self.width)
        h = F.gelu(self.up(self.embed.weight))  # (P, F)
        both = F.linear(h, self.down.weight[rows], self.down.bias[rows])  # (P, 2 D)
        if self.training and self.prompt_dropout:
            both = F.dropout(both, self.prompt_dropout)
        k, v = both.unflatten(-1, (2, self.heads, -1)).permute(1, 2, 0, 3)
        return k, v


class Before(nn.Module):
    """Puts a layer's prompt before the keys and values of its attention."""

    def __init__(self, prompts: nn.Module, layer: int) -> None:
        super().__init__()
        # In a list, for the stack owns it.
        self.source: list[Any] = [prompts]
        self.layer = layer

    def forward(
        self, k: Tensor, v: Tensor, mask: Tensor | None, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """k, v (B, H, K, E) with P more positions, which the mask leaves visible, whatever x."""
        own = self.source[0].pair(self.layer)
        k, v = (
            torch.cat((p.to(t.dtype).expand(t.shape[0], -1, -1, -1), t), 2)
            for p, t in zip(own, (k, v), strict=True)
        )
        if mask is not None:
            seen = mask.new_full((), True) if mask.dtype == torch.bool else mask.new_zeros(())
            mask = torch.cat((seen.expand(*mask.shape[:-1], own[0].shape[1]), mask), -1)
        return k, v, mask


class PromptedEncoder(Encoder):
    """An encoder whose self-attention has prompts."""

    def __init__(self, prompts: Spec, **stack: Any) -> None:
        super().__init__(**stack)
        self.prompt = make(prompts)
        for index, layer in enumerate(self.layers):
            layer.attn.kv_site = Before(self.prompt, index)


class PromptedDecoder(Decoder):
    """A decoder whose self- and cross-attention have prompts of their own."""

    def __init__(self, prompts: Spec, **stack: Any) -> None:
        super().__init__(**stack)
        self.prompt, self.cross_prompt = make(prompts), make(prompts)
        for index, layer in enumerate(self.layers):
            layer.attn.kv_site = Before(self.prompt, index)
            layer.cross.kv_site = Before(self.cross_prompt, index)


def build(c: PretrainedConfig) -> EncoderDecoder:
    if not c.use_prompt:
        return bart.build(c)
    sides: list[Spec] = []
    for kind, side in ((PromptedEncoder, "encoder"), (PromptedDecoder, "decoder")):
        prompts = Prompts(
            c.prompt_length, c.d_model, c.prompt_mid_dim, getattr(c, f"{side}_layers"),
            getattr(c, f"{side}_attention_heads"), c.dropout,
        )  # fmt: skip
        made: Any = partial(kind, prompts)
        sides.append(bart.stack(c, made, side == "decoder", norm=LayerNorm(c.d_model)))
    return EncoderDecoder(sides[0], sides[1])


_PARTS = {"embed": "prompt_embedding", "up": "prompt_trans.0", "down": "prompt_trans.2"}
_PROMPTS = {
    "encoder.prompt": "encoder.self_attn_prompt",
    "decoder.prompt": "decoder.self_attn_prompt",
    "decoder.cross_prompt": "decoder.cross_attn_prompt",
}
PROMPTS = {f"{ours}.{p}": f"{to}.{public}" for ours, to in _PROMPTS.items() for p, public in _PARTS.items()}
NAMES = bart.NAMES.but(lines={**bart.NAMES.lines, **PROMPTS})
HEADS = bart.language_heads("Mvp", bart.build_decoder, bart.decoder_names()) | bart.classifier_heads("Mvp")

family(
    "mvp", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=EncoderDecoderModel, public="Mvp",
    width=lambda c: c.d_model, shifts_inputs=True,
)  # fmt: skip
