"""Time Series Transformer (Hugging Face 2022; after Salinas et al. 2017, arXiv:1704.04110).

Public checkpoints: huggingface/time-series-transformer-tourism-monthly, ... Differs from BART in: what each
moment is embedded from are lagged values, static features and time features; values are scaled by those of
the context; positions are waves, the decoder's behind the encoder's; the head gives a distribution.
"""

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import (
    FFN, Attention, Block, Causal, Context, Decoder, Encoder, Full, Heads, Layer, LayerNorm, Linear, Spec,
    make, repeat, residual,
)  # fmt: skip
from phyla.blocks.series import SeriesFeatures, scaling
from phyla.blocks.sinusoid import Sinusoid
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.family import family
from phyla.heads import Backbone
from phyla.heads.series import SeriesLikelihood
from phyla.outputs.series import Seq2SeqTSModelOutput
from phyla.skeletons.forecast import ForecastModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    prediction_length: int | None = None
    context_length: int | None = None
    distribution_output: str = "student_t"
    loss: str = "nll"
    input_size: int = 1
    lags_sequence: list = [1, 2, 3, 4, 5, 6, 7]
    scaling: str | bool | None = "mean"
    num_dynamic_real_features: int = 0
    num_static_categorical_features: int = 0
    num_static_real_features: int = 0
    num_time_features: int = 0
    cardinality: list | None = None
    embedding_dimension: list | None = None
    encoder_ffn_dim: int = 32
    decoder_ffn_dim: int = 32
    encoder_attention_heads: int = 2
    decoder_attention_heads: int = 2
    encoder_layers: int = 2
    decoder_layers: int = 2
    is_encoder_decoder: bool = True
    activation_function: str = "gelu"
    d_model: int = 64
    dropout: float = 0.1
    encoder_layerdrop: float = 0.1
    decoder_layerdrop: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    num_parallel_samples: int = 100
    init_std: float = 0.02
    use_cache: bool = True

    ALIASES = {
        "hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }  # fmt: skip

    def finish(self) -> None:
        self.context_length = self.context_length or self.prediction_length
        count = self.num_static_categorical_features
        for name in ("cardinality", "embedding_dimension"):
            given = getattr(self, name)
            if given and count and len(given) != count:
                raise ConfigError(f"{name} must list {count} numbers, one a static category, but is {given}")
        self.cardinality = self.cardinality if self.cardinality and count else [0]
        if not (self.embedding_dimension and count):
            self.embedding_dimension = [min(50, (values + 1) // 2) for values in self.cardinality]
        self.feature_size = self.input_size * (len(self.lags_sequence) + 2) + (
            sum(self.embedding_dimension) + self.num_dynamic_real_features + self.num_time_features
            + self.num_static_real_features
        )  # fmt: skip


class MomentEmbed(Block):
    """Features of moments (B, S, F) -> states with positions, normed; `first` is the first position."""

    def __init__(self, features: int, width: int, positions: int, first: int, dropout: float) -> None:
        super().__init__()
        self.value = Linear(features, width, bias=False)
        self.position = make(Sinusoid(positions, width, offset=first, stored=True))
        self.norm, self.dropout_prob = make(LayerNorm(width)), dropout

    def forward(self, ids: None, vectors: Tensor, segment_ids: None, ctx: Context) -> Tensor:
        x = self.norm(self.value(vectors) + self.position(self.position.index(ctx, None)))
        return F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x


class SeriesPair(Block):
    """Features, and the encoder and decoder that read them."""

    def __init__(self, features: Spec, encoder: Spec, decoder: Spec) -> None:
        super().__init__()
        self.features, self.encoder, self.decoder = make(features), make(encoder), make(decoder)


def stack(c: PretrainedConfig, decoder: bool) -> Spec:
    """The encoder or the decoder."""
    side, norm, drop = "decoder" if decoder else "encoder", LayerNorm(c.d_model), c.dropout
    heads = Heads(getattr(c, f"{side}_attention_heads"))
    attn = Attention(c.d_model, heads, mask=Causal() if decoder else Full(), dropout=c.attention_dropout)
    ffn = FFN(
        c.d_model, getattr(c, f"{side}_ffn_dim"), act=c.activation_function, dropout=c.activation_dropout
    )
    branches = {"attn": residual(attn, post=norm, dropout=drop)}
    if decoder:
        across = Attention(c.d_model, heads, cross=True, dropout=c.attention_dropout)
        branches["cross"] = residual(across, post=norm, dropout=drop)
    branches["ffn"] = residual(ffn, post=norm, dropout=drop)
    positions, first = c.context_length + c.prediction_length, c.context_length if decoder else 0
    return (Decoder if decoder else Encoder)(
        embed=MomentEmbed(c.feature_size, c.d_model, positions, first, drop),
        layers=repeat(getattr(c, f"{side}_layers"), Layer(**branches)),
        layer_drop=getattr(c, f"{side}_layerdrop"),
    )


def build(c: PretrainedConfig) -> Spec:
    if c.prediction_length is None:
        raise ConfigError("prediction_length must be set (config key of time_series_transformer)")
    sizes = zip(c.cardinality or (), c.embedding_dimension or (), strict=True)
    categories = tuple(sizes) if c.num_static_categorical_features else ()
    features = SeriesFeatures(c.context_length, tuple(c.lags_sequence), scaling(c), categories)
    return SeriesPair(features, stack(c, False), stack(c, True))


_PARTS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj", "post_norm": "_layer_norm"}


def _side(side: str) -> dict[str, str]:
    at = f"{side}.layers.{{i}}"
    lines = {
        f"{side}.embed.value": f"{side}.value_embedding.value_projection",
        f"{side}.embed.position": f"{side}.embed_positions",
        f"{side}.embed.norm": f"{side}.layernorm_embedding",
        f"{at}.ffn.up": f"{at}.fc1",
        f"{at}.ffn.down": f"{at}.fc2",
        f"{at}.ffn.post_norm": f"{at}.final_layer_norm",
    }
    for branch, public in {"attn": "self_attn", "cross": "encoder_attn"}.items():
        for part, leaf in _PARTS.items():
            lines[f"{at}.{branch}.{part}"] = f"{at}.{public}{'' if leaf.startswith('_') else '.'}{leaf}"
    return lines


NAMES = NameMap(
    _side("encoder") | _side("decoder") | {"features.categories.{c}": "embedder.embedders.{c}"},
    prefix="model",
)

HEADS = {
    "TimeSeriesTransformerModel": Backbone(output=Seq2SeqTSModelOutput),
    "TimeSeriesTransformerForPrediction": SeriesLikelihood(
        names={"out.proj.{p}": "parameter_projection.proj.{p}"}
    ),
}

family(
    "time_series_transformer", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=ForecastModel,
    public="TimeSeriesTransformer", width=lambda c: c.d_model,
)  # fmt: skip
