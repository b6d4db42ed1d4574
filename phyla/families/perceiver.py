"""Perceiver IO (Jaegle et al. 2021, arXiv:2107.14795; Perceiver: arXiv:2103.03206).

Public checkpoints: deepmind/language-perceiver, deepmind/vision-perceiver-learned,
deepmind/optical-flow-perceiver, deepmind/multimodal-perceiver and every `model_type: perceiver`. Differs from
the plain encoder in: a fixed number of latent vectors that look at any input once, the same layers several
times over, and queries that look at the latents.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from phyla.blocks import FFN, Block, Layer, LayerNorm, Spec, residual
from phyla.blocks.embed import Tokens
from phyla.blocks.fourier import FourierPositions, TrainedPositions
from phyla.blocks.latent import LatentAttention, LatentDecoder, Latents
from phyla.blocks.modality import (
    Downsampled, FramePatches, Modalities, ModalityQueries, OneVector, PixelVectors, Placed, Queries,
    SoundPatches,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.latent import DecodedImageLabels, DecodedLabels, DecodedLM, Flow, Rebuilt
from phyla.outputs import PerceiverModelOutput
from phyla.skeletons import LatentModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    num_latents: int = 256
    d_latents: int = 1280
    d_model: int = 768
    num_blocks: int = 1
    num_self_attends_per_block: int = 26
    num_self_attention_heads: int = 8
    num_cross_attention_heads: int = 8
    qk_channels: int | None = None
    v_channels: int | None = None
    cross_attention_shape_for_attention: str = "kv"
    self_attention_widening_factor: int = 1
    cross_attention_widening_factor: int = 1
    hidden_act: str = "gelu"
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    use_query_residual: bool = True
    vocab_size: int = 262
    max_position_embeddings: int = 2048
    image_size: int = 56
    train_size: list = [368, 496]
    num_frames: int = 16
    audio_samples_per_frame: int = 1920
    samples_per_patch: int = 16
    output_shape: list = [1, 16, 224, 224]
    output_num_channels: int = 512
    _label_trainable_num_channels: int = 1024

    ALIASES = {"hidden_size": "d_latents"}

    def finish(self) -> None:
        shape = self.cross_attention_shape_for_attention
        if shape not in ("q", "kv"):
            raise ConfigError(f'cross_attention_shape_for_attention must be "q" or "kv", but is {shape!r}')


class Text(Block):
    """Tokens and their positions: ids (B, S) -> (B, S, D)."""

    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.tokens, self.places = Tokens(vocabulary, width), Tokens(positions, width)

    def forward(self, ids: Tensor, interpolate: bool) -> Tensor:
        if ids.dim() != 2 or ids.shape[1] > len(self.places.weight):
            raise ArgumentError(
                f"token ids must be (batch, at most {len(self.places.weight)}), but are {tuple(ids.shape)}"
            )
        return self.tokens(ids) + self.places.weight[: ids.shape[1]]


def layer(
    c: Config, heads: int, width: int, qk: int, v: int, wide: int, source: int | None, skip: bool
) -> Spec:
    """Attention and feed-forward on a stream of `width`."""
    norm = LayerNorm(width)
    attn = LatentAttention(width, heads, qk, v, source, c.attention_probs_dropout_prob, skip)
    ffn = FFN(width, wide * width, act=c.hidden_act)
    return Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))


def looking(
    c: Config, heads: int, width: int, source: int, qk: int | None, v: int | None, wide: int, skip: bool
) -> Spec:
    """A layer that looks at a stream of `source`; without qk the config says how wide scores are."""
    qk = qk or {"q": width, "kv": source}[c.cross_attention_shape_for_attention]
    return layer(c, heads, width, qk, v or qk, wide, source, skip)


def decoder(c: Config, queries: Spec | None, width: int, out: int, skip: bool) -> LatentDecoder:
    """The usual decoder: one head, queries of `width`, a projection to `out`."""
    return LatentDecoder(queries, looking(c, 1, width, c.d_latents, None, None, 1, skip), (width, out))


def fourier(bands: int, resolution: Sequence[int]) -> tuple[Spec, int]:
    """Fourier positions and their width."""
    return FourierPositions(bands, tuple(resolution)), len(resolution) * (2 * bands + 1)


def build(
    c: Config, embed: Spec | None = None, width: int | None = None, decode: Spec | None = None
) -> Latents:
    """The latents on inputs of `width`, with what embeds those and what decodes the latents."""
    qk = c.qk_channels or c.d_latents
    own = layer(
        c, c.num_self_attention_heads, c.d_latents, qk, c.v_channels or qk, c.self_attention_widening_factor,
        None, True,
    )  # fmt: skip
    look = looking(
        c, c.num_cross_attention_heads, c.d_latents, width or c.d_model, c.qk_channels, c.v_channels,
        c.cross_attention_widening_factor, c.use_query_residual,
    )  # fmt: skip
    layers = [own] * c.num_self_attends_per_block
    return Latents(embed, (c.num_latents, c.d_latents), look, layers, c.num_blocks, decode)


def text(c: Config, labels: bool) -> Latents:
    """Text, to labels or to the tokens at all positions."""
    embed = Text(c.vocab_size, c.max_position_embeddings, c.d_model)
    if labels:
        return build(c, embed, c.d_model, classifier(c))
    look = looking(c, 8, c.d_model, c.d_latents, 256, c.d_model, 1, skip=False)
    return build(
        c, embed, c.d_model, LatentDecoder(Queries(c.max_position_embeddings, c.d_model), look, None)
    )


def classifier(c: Config) -> LatentDecoder:
    """One learned query for the labels."""
    return decoder(c, Queries(1, c.d_latents), c.d_latents, c.num_labels, skip=True)


def image(c: Config, kind: str) -> Latents:
    """An image by its pixels, by a convolution or by vectors with learned positions, to labels."""
    if kind == "learned":
        embed = Placed(PixelVectors(256), TrainedPositions(c.image_size**2, 256, 256))
        return build(c, embed, 256 + 256, classifier(c))
    position, places = fourier(64, (56, 56) if kind == "conv" else (224, 224))
    if kind == "conv":
        return build(c, Placed(Downsampled(64), position), 64 + places, classifier(c))
    return build(c, Placed(PixelVectors(), position), 3 + places, classifier(c))


def flow(c: Config) -> Latents:
    """Two frames with the neighbourhood of each pixel as channels, to the motion of each pixel."""
    position, places = fourier(64, c.train_size)
    embed, width = Placed(FramePatches(2, 1, lift=(54, 64)), position), 64 + places
    return build(c, embed, width, decoder(c, None, width, 2, skip=False))


def modalities(c: Config) -> Latents:
    """Frames, sound and a label, to themselves."""
    samples, space = c.num_frames * c.audio_samples_per_frame, (c.num_frames, c.image_size, c.image_size)
    (audio, audio_places), (frames, places) = fourier(192, (samples,)), fourier(32, space)
    widths = {"audio": c.samples_per_patch + audio_places, "image": 48 + places, "label": c.num_labels}
    parts = {
        "audio": Placed(SoundPatches(c.samples_per_patch), audio),
        "image": Placed(FramePatches(1, 4), frames),
        "label": OneVector(),
    }
    width = max(widths.values()) + 4
    label = c._label_trainable_num_channels
    asked = {"audio": audio_places, "image": places, "label": label}
    grids = {"audio": (samples // c.samples_per_patch,), "image": tuple(c.output_shape[1:]), "label": (1,)}
    query = max(asked.values()) + 2
    queries = ModalityQueries(audio, frames, TrainedPositions(1, label), grids, asked, query)
    decode = decoder(c, queries, query, c.output_num_channels, skip=False)
    return build(c, Modalities(parts, widths, width, hidden="label"), width, decode)


MODALITIES = ("audio", "image", "label")


def layer_names(ours: str, theirs: str) -> dict[str, str]:
    """Lines of one layer."""
    attn = {"pre_norm": "layernorm1", "memory_norm": "layernorm2", "q": "query", "k": "key", "v": "value"}
    return {
        **{f"{ours}.attn.{part}": f"{theirs}.attention.self.{name}" for part, name in attn.items()},
        f"{ours}.attn.o": f"{theirs}.attention.output.dense",
        f"{ours}.ffn.pre_norm": f"{theirs}.layernorm",
        f"{ours}.ffn.up": f"{theirs}.mlp.dense1",
        f"{ours}.ffn.down": f"{theirs}.mlp.dense2",
    }


def names(decode: str) -> NameMap:
    """Public names; `decode` is where the decoder's layer stands."""
    inputs, places = "input_preprocessor", "output_position_encodings.position_embeddings"
    return NameMap(
        {
            "latents": "embeddings.latents",
            **layer_names("look", "encoder.cross_attention"),
            **layer_names("layers.{i}", "encoder.self_attends.{i}"),
            **layer_names("decode.look", f"{decode}.decoding_cross_attention"),
            "decode.out": f"{decode}.final_layer",
            "decode.queries.weight": f"{decode}.{places}",
            "embed.tokens": f"{inputs}.embeddings",
            "embed.places": f"{inputs}.position_embeddings",
            "embed.position.weight": f"{inputs}.position_embeddings.position_embeddings",
            "embed.position.project": f"{inputs}.positions_projection",
            "embed.vectors.conv": f"{inputs}.convnet_1x1",
            "embed.vectors.down.conv": f"{inputs}.convnet.conv",
            "embed.vectors.down.norm": f"{inputs}.convnet.batchnorm",
            "embed.vectors.lift": f"{inputs}.conv_after_patches",
            **{
                f"embed.{part}.{m}": f"{inputs}.{part}.{m}"
                for part in ("padding", "mask")
                for m in MODALITIES
            },
            **{f"decode.queries.padding.{m}": f"decoder.padding.{m}" for m in MODALITIES},
            "decode.queries.parts.label.weight": f"decoder.modalities.label.decoder.{places}",
        },
        prefix="perceiver",
    )


NAMES = names("decoder.decoder")

HEADS: dict[str, Head] = {
    "PerceiverModel": Backbone(output=PerceiverModelOutput),
    "PerceiverForMaskedLM": DecodedLM(
        names={"out.bias": "embedding_decoder.bias"}, table=names("decoder"), bias=True, tied=lambda c: True,
        width=lambda c: c.d_model, build=partial(text, labels=False),
    ),
    "PerceiverForSequenceClassification": DecodedLabels(build=partial(text, labels=True)),
    "PerceiverForImageClassificationLearned": DecodedImageLabels(build=partial(image, kind="learned")),
    "PerceiverForImageClassificationFourier": DecodedImageLabels(build=partial(image, kind="fourier")),
    "PerceiverForImageClassificationConvProcessing": DecodedImageLabels(build=partial(image, kind="conv")),
    "PerceiverForOpticalFlow": Flow(build=flow),
    "PerceiverForMultimodalAutoencoding": Rebuilt(
        names={f"parts.{m}": f"perceiver.output_postprocessor.modalities.{m}.classifier" for m in MODALITIES},
        build=modalities,
    ),
}  # fmt: skip

family(
    "perceiver", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=LatentModel,
    public="Perceiver", width=lambda c: c.d_latents,
)  # fmt: skip
