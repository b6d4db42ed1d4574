"""ViLT (Kim et al. 2021, arXiv:2102.03334): words and patches in one encoder.

Public checkpoints: dandelin/vilt-b32-mlm, dandelin/vilt-b32-finetuned-vqa, dandelin/vilt-b32-finetuned-nlvr2.
Differs from ViT in: words, embedded as BERT does, stand in front; images of any size, padded to one, whose
position table is stretched over the real part; only so many patches as the fullest image has are read.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Embed, Encoder, LayerNorm, Learned, Pool, Spec, make
from phyla.blocks.embed import Tokens
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError
from phyla.families.vit import layer_names, layers
from phyla.family import family
from phyla.heads import Backbone, Head, Transform
from phyla.heads.page import Answers, Rank, SeveralImages, WordClassify, WordMaskedLM
from phyla.outputs import BaseModelOutputWithPooling, ViltForImagesAndTextClassificationOutput
from phyla.skeletons.joint import JointImagesModel, JointModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 30522
    type_vocab_size: int = 2
    modality_type_vocab_size: int = 2
    max_position_embeddings: int = 40
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int = 384
    patch_size: int = 32
    num_channels: int = 3
    qkv_bias: bool = True
    max_image_length: int | None = -1
    tie_word_embeddings: bool = False
    num_images: Any = -1


class PaddedPatches(Block):
    """Pixels (B, C, Y, X) and their mask to vectors (B, 1 + P, D), the class vector first, and mask (B, 1 +
    P).

    side: patches of a side of the position table. most: patches of an image that are read at most (0: all);
    training draws them by chance, otherwise they are evenly spread.
    """

    def __init__(self, side: int, patch: int, channels: int, width: int, dropout: float, most: int) -> None:
        super().__init__()
        self.side, self.most, self.dropout_prob = side, most, dropout
        self.projection = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(side * side + 1, width))

    def places(self, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
        """(B, height * width, D): the table stretched over the first rows (B) and columns (B), bilinearly."""
        device, last = rows.device, self.side - 1
        table = self.position[1:].unflatten(0, (self.side, self.side))
        low, high, part = [], [], []
        for real, size in ((rows, height), (columns, width)):
            at = torch.arange(size, device=device) * (last / (real - 1).clamp(min=1))[:, None]
            at = at.clamp(max=last)  # (B, size)
            low.append(at.long())
            high.append((at.long() + 1).clamp(max=last))
            part.append((at - at.floor()).to(table.dtype))
        (top, left), (bottom, right) = ((y[:, :, None], x[:, None]) for y, x in (low, high))
        down, across = part[0][:, :, None, None], part[1][:, None, :, None]
        above = table[top, left] * (1 - across) + table[top, right] * across
        below = table[bottom, left] * (1 - across) + table[bottom, right] * across
        return (above * (1 - down) + below * down).flatten(1, 2)

    def forward(
        self, pixels: Tensor | None, mask: Tensor | None, ready: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor]:
        if pixels is None:
            if ready is None:
                raise ArgumentError("pass pixel_values or image_embeds")
            real = mask.flatten(1).bool() if mask is not None else ready.new_ones(ready.shape[:2]).bool()
            return ready, real
        x = self.projection(pixels.to(self.projection.weight.dtype))  # (B, D, rows, columns)
        height, width = x.shape[-2:]
        if mask is None:
            real = torch.ones(len(x), height, width, dtype=torch.bool, device=x.device)
        else:
            real = F.interpolate(mask[:, None].float(), size=(height, width))[:, 0] >= 1
        rows, columns = real[:, :, 0].sum(1), real[:, 0].sum(1)
        x = x.flatten(2).transpose(1, 2) + self.places(rows, columns, height, width)
        real = real.flatten(1)
        if mask is not None or self.most:
            x, real = self.chosen(x, real, rows * columns, training)
        front = (self.class_token + self.position[0]).expand(len(x), 1, -1)
        x = torch.cat((front, x), 1)
        x = F.dropout(x, self.dropout_prob) if training and self.dropout_prob else x
        return x, torch.cat((real.new_ones(len(x), 1), real), 1)

    def chosen(self, x: Tensor, real: Tensor, sizes: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """The real patches in front, so many as the fullest image has, `most` at most."""
        count = x.shape[1] if torch.compiler.is_compiling() else int(sizes.max())
        keep = min(count, self.most) if self.most else count
        rank = torch.rand(real.shape, device=x.device) if training else self._spread(real, keep)
        rank = torch.where(real, rank, 2.0)
        order = rank.argsort(dim=1, stable=True)[:, :keep].sort(1).values
        order = order.gather(1, torch.where(real.gather(1, order), 0, 1).argsort(dim=1, stable=True))
        return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1])), real.gather(1, order)

    @staticmethod
    def _spread(real: Tensor, keep: int) -> Tensor:
        """(B, P) from 0 to 1: low for `keep` real patches at even distances."""
        index = real.long().cumsum(1) - 1
        total = real.sum(1, keepdim=True).clamp(min=1)
        step = (index * keep) // total
        return torch.where(F.pad(step, (1, 0), value=-1)[:, :-1] == step, 1.0, 0.0)


class Joint(Block):
    """Words and patches, each with a vector of their kind, for one encoder."""

    def __init__(self, text: Spec, image: Spec, kinds: int, width: int, stack: Spec) -> None:
        super().__init__()
        self.embed, self.image, self.stack = make(text), make(image), make(stack)
        self.kind = Tokens(kinds, width)

    def marked(self, words: Tensor, patches: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Words with the vector of texts, patches with that of image `number`, counted from 1."""
        return words + self.kind.weight[0], patches + self.kind.weight[number]


def build(c: Config) -> Joint:
    width, norm, drop = c.hidden_size, LayerNorm(c.hidden_size, eps=c.layer_norm_eps), c.hidden_dropout_prob
    text = Embed(
        c.vocab_size, width, position=Learned(c.max_position_embeddings, width), segments=c.type_vocab_size,
        norm=norm, dropout=drop, padding=c.pad_token_id,
    )  # fmt: skip
    most = c.max_image_length if c.max_image_length and c.max_image_length > 0 else 0
    image = PaddedPatches(c.image_size // c.patch_size, c.patch_size, c.num_channels, width, drop, most)
    stack = Encoder(layers=layers(c), norm=norm, pool=Pool(width), record="raw")
    return Joint(text, image, c.modality_type_vocab_size, width, stack)


def build_without_pool(c: Config) -> Spec:
    spec = build(c)
    return spec.but(stack=spec.stack.but(pool=None))


def names(c: Config) -> NameMap:
    text = "embeddings.text_embeddings"
    return NameMap(
        {
            "embed.tokens": f"{text}.word_embeddings",
            "embed.position": f"{text}.position_embeddings",
            "embed.segment": f"{text}.token_type_embeddings",
            "embed.norm": f"{text}.LayerNorm",
            "image.class_token": To("embeddings.cls_token", Reshape((1, 1, -1))),
            "image.projection": "embeddings.patch_embeddings.projection",
            "image.position": To("embeddings.position_embeddings", Reshape((1, -1, c.hidden_size))),
            "kind": "embeddings.token_type_embeddings",
            **layer_names("stack.layers.{i}", "encoder.layer.{i}"),
            "stack.norm": "layernorm",
            "stack.pool.dense": "pooler.dense",
        },
        prefix="vilt",
        ignore=(r"(vilt\.)?embeddings\.text_embeddings\.(position_ids|token_type_ids)",),
    )


MLM = NameMap(
    {
        "dense": "mlm_score.transform.dense",
        "norm": "mlm_score.transform.LayerNorm",
        "out.weight": "mlm_score.decoder.weight",
        "out.bias": "mlm_score.bias",
    },
    aliases={"out.bias": ("mlm_score.decoder.bias",)},
)
ANSWERS = {"dense": "classifier.0", "norm": "classifier.1", "out": "classifier.3"}

HEADS: dict[str, Head] = {
    "ViltModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "ViltForMaskedLM": WordMaskedLM(
        names=MLM, pool=True, bias=True, transform=lambda c: Transform(c.hidden_act, c.layer_norm_eps)
    ),
    "ViltForQuestionAnswering": Answers(names=ANSWERS),
    "ViltForImageAndTextRetrieval": Rank(names={"out": "rank_output"}),
    "ViltForImagesAndTextClassification": SeveralImages(
        names=ANSWERS, images=lambda c: c.num_images, skeleton=JointImagesModel,
        output=ViltForImagesAndTextClassificationOutput,
    ),
    "ViltForTokenClassification": WordClassify(
        names={"out": "classifier"}, dropout=("hidden_dropout_prob",), build=build_without_pool
    ),
}  # fmt: skip

family("vilt", config=Config, build=build, names=names, heads=HEADS, skeleton=JointModel, public="Vilt")
