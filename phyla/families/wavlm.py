"""WavLM (Chen et al. 2021, arXiv:2110.13900).

Public checkpoints: microsoft/wavlm-base-plus, microsoft/wavlm-large, microsoft/wavlm-base-plus-sv, ...
Differs from wav2vec2 in: a bucketed bias of distances that all layers share, gated by the query.
"""

import torch
from torch import Tensor, nn

from phyla.blocks import Attention, BucketBias, Context, Heads, Linear, Spec, StackBias
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import wav2vec2
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.audio import FrameClassify, SoundClassify, XVector
from phyla.heads.ctc import CTC
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
    num_buckets: int = 320
    max_bucket_distance: int = 800
    do_stable_layer_norm: bool = False
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    num_codevectors_per_group: int = 320
    num_codevector_groups: int = 2
    contrastive_logits_temperature: float = 0.1
    num_negatives: int = 100
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    diversity_loss_weight: float = 0.1
    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    tdnn_dim: list = [512, 512, 512, 512, 1500]
    tdnn_kernel: list = [5, 3, 3, 1, 1]
    tdnn_dilation: list = [1, 2, 3, 1, 1]
    xvector_output_dim: int = 512
    num_ctc_classes: int = 80
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list | None = 2
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 3
    output_hidden_size: int | None = None

    def finish(self) -> None:
        wav2vec2.fill_sizes(self)


class GatedBias(StackBias):
    """The stack's bias of distances times a gate of each query and head (section 3.1, eq. 4-6).

    The gate reads what stands in the attention's input in place of the head, before any projection.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.gate = Linear(width, 8)
        self.base = nn.Parameter(torch.empty(1, heads, 1, 1))

    def bias(self, q: Tensor, k: Tensor, first: int, scale: float, ctx: Context) -> Tensor:
        scores = self.gate(ctx.memo["attention-input"]).unflatten(-1, (2, 4)).sum(-1)  # (B, H, S, 2)
        update, reset = scores.sigmoid().chunk(2, -1)
        return (update * (reset * self.base - 1) + 2) * super().bias(q, k, first, scale, ctx)

    def reset(self, std: float) -> bool:
        nn.init.ones_(self.base)
        return True


class GatedAttention(Attention):
    """Attention that leaves its input, cut into heads, for its position to read."""

    def mix(self, x: Tensor, ctx: Context) -> Tensor:
        ctx.memo["attention-input"] = self._split(x, self.num_heads)
        return super().mix(x, ctx)


def build(c: Config) -> Spec:
    heads = Heads(c.num_attention_heads)
    position = GatedBias(c.num_attention_heads, heads.resolve(c.hidden_size)[2])
    return wav2vec2.build(
        c,
        attn=GatedAttention(c.hidden_size, heads, position=position, dropout=c.attention_dropout),
        position=BucketBias(c.num_buckets, c.max_bucket_distance, c.num_attention_heads, both_sides=True),
    )


def names(c: Config) -> NameMap:
    at, to = "layers.{i}.attn.position", "encoder.layers.{i}.attention"
    extra = {
        f"{at}.base": f"{to}.gru_rel_pos_const",
        f"{at}.gate": f"{to}.gru_rel_pos_linear",
        "position": "encoder.layers.0.attention.rel_attn_embed",
    }
    return NameMap(wav2vec2.lines(c) | extra, prefix="wavlm", aliases=wav2vec2.OLD)


HEADS: dict[str, Head] = {
    "WavLMModel": Backbone(output=Wav2Vec2BaseModelOutput),
    "WavLMForCTC": CTC(names=wav2vec2.NAMES_OF["ctc"]),
    "WavLMForSequenceClassification": SoundClassify(names=wav2vec2.NAMES_OF["sound"]),
    "WavLMForAudioFrameClassification": FrameClassify(names=wav2vec2.NAMES_OF["frame"]),
    "WavLMForXVector": XVector(names=wav2vec2.NAMES_OF["speaker"]),
}

family(
    "wavlm", config=Config, build=build, names=names, heads=HEADS, skeleton=AudioModel, public="WavLM",
    width=wav2vec2.width,
)  # fmt: skip
