"""wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477), XLS-R (arXiv:2111.09296), MMS (arXiv:2305.13516).

Public checkpoints: facebook/wav2vec2-base-960h, facebook/wav2vec2-xls-r-300m, facebook/mms-1b-all, ...
Differs from the plain encoder in: convolutions over the samples in place of a token table, a grouped
convolution for positions, norms after (or, `do_stable_layer_norm`, before) each branch, and with
adapter_attn_dim a small branch at the end of each layer that languages bring along.
"""

from collections.abc import Sequence
from typing import Any

from phyla.blocks import FFN, Attention, Encoder, Full, Heads, Layer, LayerNorm, Spec, make, repeat, residual
from phyla.blocks.wave import ConvPosition, Hidden, Shrink, WaveEmbed, WaveFeatures
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.audio import FrameClassify, SoundClassify, XVector
from phyla.heads.ctc import CTC, FrameTokens
from phyla.heads.quantise import ContrastivePretraining
from phyla.outputs import Wav2Vec2BaseModelOutput
from phyla.skeletons.audio import AudioModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    feat_quantizer_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: list = [512] * 7
    conv_stride: list = [5, 2, 2, 2, 2, 2, 2]
    conv_kernel: list = [10, 3, 3, 3, 3, 2, 2]
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    num_codevectors_per_group: int = 320
    num_codevector_groups: int = 2
    contrastive_logits_temperature: float = 0.1
    num_negatives: int = 100
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    diversity_loss_weight: float = 0.1
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    tdnn_dim: list = [512, 512, 512, 512, 1500]
    tdnn_kernel: list = [5, 3, 3, 1, 1]
    tdnn_dilation: list = [1, 2, 3, 1, 1]
    xvector_output_dim: int = 512
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 3
    output_hidden_size: int | None = None
    adapter_attn_dim: int | None = None

    def finish(self) -> None:
        fill_sizes(self)


def fill_sizes(c: PretrainedConfig) -> None:
    """Sizes that follow from other keys."""
    c.num_feat_extract_layers = len(c.conv_dim)
    if c.output_hidden_size is None:
        c.output_hidden_size = c.hidden_size


class WaveEncoder(Encoder):
    """An encoder whose embedding reads samples, with an optional `Shrink` behind it."""

    def __init__(
        self,
        embed: Spec,
        layers: Sequence[Spec],
        norm: Spec | None = None,
        position: Spec | None = None,
        layer_drop: float = 0.0,
        shrink: Spec | None = None,
    ) -> None:
        super().__init__(embed, layers, norm, position=position, layer_drop=layer_drop)
        self.shrink = make(shrink)


def embed(c: PretrainedConfig) -> Spec:
    """From samples to the stream."""
    time = (c.mask_time_prob, c.mask_time_length, c.mask_time_min_masks)
    channel = (c.mask_feature_prob, c.mask_feature_length, getattr(c, "mask_feature_min_masks", 0))
    act = c.feat_extract_activation
    return WaveEmbed(
        WaveFeatures(c.conv_dim, c.conv_kernel, c.conv_stride, c.feat_extract_norm, act, c.conv_bias),
        c.conv_dim[-1], c.hidden_size, c.layer_norm_eps,
        hidden=Hidden(c.hidden_size, time, channel, c.apply_spec_augment),
        position=ConvPosition(
            c.hidden_size, c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups, act
        ),
        norm=None if c.do_stable_layer_norm else LayerNorm(c.hidden_size, c.layer_norm_eps),
        dropouts=(c.feat_proj_dropout, c.hidden_dropout),
    )  # fmt: skip


def build(c: PretrainedConfig, attn: Spec | None = None, position: Spec | None = None) -> Spec:
    """wav2vec2's encoder; relatives pass their attention and what all layers share."""
    norm, drop = LayerNorm(c.hidden_size, c.layer_norm_eps), c.hidden_dropout
    attn = attn or Attention(
        c.hidden_size, Heads(c.num_attention_heads), mask=Full(), dropout=c.attention_dropout
    )
    ffn = FFN(c.hidden_size, c.intermediate_size, act=c.hidden_act, dropout=c.activation_dropout)
    stable, languages = c.do_stable_layer_norm, getattr(c, "adapter_attn_dim", None)
    norms: dict[str, Any] = {"pre": norm} if stable else {"post": norm}
    branches = {
        "attn": residual(attn, dropout=drop, **norms),
        "ffn": residual(ffn, dropout=drop, **norms),
    }
    if stable and languages is not None:
        branches["adapter"] = residual(
            FFN(c.hidden_size, languages, act="relu"), pre=LayerNorm(c.hidden_size)
        )
    shrink = Shrink(
        c.hidden_size, c.output_hidden_size, c.adapter_kernel_size, c.adapter_stride, c.num_adapter_layers,
        c.layerdrop,
    )  # fmt: skip
    return WaveEncoder(
        embed(c), repeat(c.num_hidden_layers, Layer(**branches), c.pruned_heads),
        norm=norm if stable else None, position=position, layer_drop=c.layerdrop,
        shrink=shrink if c.add_adapter else None,
    )  # fmt: skip


def lines(c: PretrainedConfig) -> dict[str, str]:
    """Public names of the encoder and what stands around it."""
    kind = "pre" if c.do_stable_layer_norm else "post"
    at, to = "layers.{i}", "encoder.layers.{i}"
    position = "encoder.pos_conv_embed.conv"
    return {
        "embed.features.layers.{i}.conv": "feature_extractor.conv_layers.{i}.conv",
        "embed.features.layers.{i}.norm": "feature_extractor.conv_layers.{i}.layer_norm",
        "embed.features.layers.{i}.norm.norm": "feature_extractor.conv_layers.{i}.layer_norm",
        "embed.features_norm": "feature_projection.layer_norm",
        "embed.project": "feature_projection.projection",
        "embed.hidden.vector": "masked_spec_embed",
        "embed.position.conv": position,
        "embed.position.conv.gain": f"{position}.parametrizations.weight.original0",
        "embed.position.conv.direction": f"{position}.parametrizations.weight.original1",
        "norm" if c.do_stable_layer_norm else "embed.norm": "encoder.layer_norm",
        **{f"{at}.attn.{p}": f"{to}.attention.{n}_proj" for p, n in zip("qkv", "qkv", strict=True)},
        f"{at}.attn.o": f"{to}.attention.out_proj",
        f"{at}.attn.{kind}_norm": f"{to}.layer_norm",
        f"{at}.ffn.up": f"{to}.feed_forward.intermediate_dense",
        f"{at}.ffn.down": f"{to}.feed_forward.output_dense",
        f"{at}.ffn.{kind}_norm": f"{to}.final_layer_norm",
        f"{at}.adapter.pre_norm": f"{to}.adapter_layer.norm",
        f"{at}.adapter.up": f"{to}.adapter_layer.linear_1",
        f"{at}.adapter.down": f"{to}.adapter_layer.linear_2",
        "shrink.project": "adapter.proj",
        "shrink.norm": "adapter.proj_layer_norm",
        "shrink.layers.{i}": "adapter.layers.{i}.conv",
    }


# The older spelling of weight norm's two tensors.
OLD = {
    "embed.position.conv.gain": ("encoder.pos_conv_embed.conv.weight_g",),
    "embed.position.conv.direction": ("encoder.pos_conv_embed.conv.weight_v",),
}


def names(c: PretrainedConfig) -> NameMap:
    return NameMap(lines(c), prefix="wav2vec2", aliases=OLD)


def head_names() -> dict[str, dict[str, str]]:
    """Public names of the heads, by kind."""
    mixed = {"mix.weight": "layer_weights"}
    return {
        "ctc": {"out": "lm_head"},
        "sound": {**mixed, "project": "projector", "out": "classifier"},
        "frame": {**mixed, "out": "classifier"},
        "speaker": {
            **mixed,
            "project": "projector",
            "layers.{i}.out": "tdnn.{i}.kernel",
            "vector": "feature_extractor",
            "out": "classifier",
            "classes.weight": "objective.weight",
        },
        "pretraining": {
            "quantiser.score": "quantizer.weight_proj",
            "quantiser.codevectors": "quantizer.codevectors",
            "state": "project_hid",
            "code": "project_q",
        },
    }


NAMES_OF = head_names()

HEADS: dict[str, Head] = {
    "Wav2Vec2Model": Backbone(output=Wav2Vec2BaseModelOutput),
    "Wav2Vec2ForPreTraining": ContrastivePretraining(names=NAMES_OF["pretraining"]),
    "Wav2Vec2ForMaskedLM": FrameTokens(names=NAMES_OF["ctc"]),
    "Wav2Vec2ForCTC": CTC(names=NAMES_OF["ctc"]),
    "Wav2Vec2ForSequenceClassification": SoundClassify(names=NAMES_OF["sound"]),
    "Wav2Vec2ForAudioFrameClassification": FrameClassify(names=NAMES_OF["frame"]),
    "Wav2Vec2ForXVector": XVector(names=NAMES_OF["speaker"]),
}


def width(c: PretrainedConfig) -> int:
    """Elements of a state behind the optional strided convolutions."""
    return c.output_hidden_size if c.add_adapter else c.hidden_size


family(
    "wav2vec2", config=Config, build=build, names=names, heads=HEADS, skeleton=AudioModel, public="Wav2Vec2",
    width=width,
)  # fmt: skip
