"""BLIP-2 (Li et al. 2023, arXiv:2301.12597): learned queries between a frozen tower and a language model.

Public checkpoints: Salesforce/blip2-opt-2.7b, Salesforce/blip2-flan-t5-xl, Salesforce/blip2-itm-vit-g.
The parts are the families blip_2_vision_model and blip_2_qformer and a decoder (OPT) or encoder-decoder (T5).
Differs from LLaVA in: however large, an image is the few vectors that the queries found.
"""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks import Block, Embed, Learned, Linear, Spec, make
from phyla.blocks.context import Context
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.family import Part, family, part
from phyla.heads import Head
from phyla.heads.query import QueryBackbone, QueryImage, QueryMatch, QueryText, QueryTextLM
from phyla.registry import row
from phyla.skeletons.query import QueryMatchModel, QueryReaderModel, QueryTextModel, QueryTowerModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vision_config: Any = None
    qformer_config: Any = None
    text_config: Any = None
    num_query_tokens: int = 32
    image_text_hidden_size: int = 256
    image_token_index: int | None = None
    initializer_factor: float = 1.0
    initializer_range: float = 0.02

    PARTS = {
        "vision_config": "blip_2_vision_model", "qformer_config": "blip_2_qformer", "text_config": "opt",
    }  # fmt: skip

    def finish(self) -> None:
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        self.use_decoder_only_language_model = (
            "causal-lm" in row(self.text_config.model_type).classes.values()
        )
        self.is_encoder_decoder = not self.use_decoder_only_language_model

    @classmethod
    def from_vision_qformer_text_configs(
        cls, vision_config: PretrainedConfig, qformer_config: PretrainedConfig,
        text_config: PretrainedConfig | None = None, **keys: Any,
    ) -> "Config":  # fmt: skip
        """A configuration from those of the parts."""
        text = None if text_config is None else text_config.to_dict()
        return cls(
            vision_config=vision_config.to_dict(),
            qformer_config=qformer_config.to_dict(),
            text_config=text,
            **keys,
        )


class Looking(Block):
    """A tower, learned queries, their stack, and what else a class has: a language model or embeddings."""

    def __init__(
        self, queries: tuple[int, int], qformer: Spec, vision: Spec | None = None,
        projector: Spec | None = None,
        text: Spec | None = None, embed: Spec | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries))
        self.vision, self.qformer = make(vision), make(qformer)
        self.projector, self.text, self.embed = make(projector), make(text), make(embed)

    def reset(self, std: float) -> bool:
        nn.init.zeros_(self.query)
        return True


class Words(Block):
    """Vectors (B, S, D) of words and their positions, before any norm."""

    def __init__(self, vocabulary: int, width: int, positions: int, padding: int | None) -> None:
        super().__init__()
        self.tokens = make(Embed(vocabulary, width, padding=padding)).tokens
        self.position = make(Learned(positions, width))

    def forward(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        ctx = Context(positions, ids.shape[1], counted=False)
        return self.tokens(ids) + self.position(self.position.index(ctx, ids))


class Project(Block):
    """The linear map into the width of the language model."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def text_part(c: PretrainedConfig) -> tuple[Part, str]:
    """The language model and the task of its class."""
    return part(c.text_config), "causal-lm" if c.use_decoder_only_language_model else "seq2seq-lm"


def build_without_text(c: PretrainedConfig, parts: tuple[str, ...] = ("vision", "embed")) -> Spec:
    q = c.qformer_config
    words = Words(q.vocab_size, q.hidden_size, q.max_position_embeddings, q.pad_token_id)
    return Looking(
        (c.num_query_tokens, q.hidden_size), part(q).spec,
        vision=part(c.vision_config).spec if "vision" in parts else None,
        embed=words if "embed" in parts else None,
    )  # fmt: skip


def build(c: PretrainedConfig) -> Spec:
    text = text_part(c)[0]
    spec = build_without_text(c, ("vision",))
    return spec.but(
        projector=Project(c.qformer_config.hidden_size, c.text_config.hidden_size), text=text.spec
    )


def names(c: PretrainedConfig) -> NameMap:
    text, task = text_part(c)
    common = names_without_text(c)
    lines = dict(common.lines) | {"projector.linear": "language_projection"}
    return NameMap(lines, parts=dict(common.parts) | {"text": ("language_model.", text.names(task))})


def names_without_text(c: PretrainedConfig) -> NameMap:
    return NameMap(
        {
            "query": To("query_tokens", Reshape((1, -1, c.qformer_config.hidden_size))),
            "embed.tokens": "embeddings.word_embeddings",
            "embed.position": "embeddings.position_embeddings",
        },
        parts={
            "vision": ("vision_model.", part(c.vision_config).bare.but(ignore=())),
            "qformer": ("qformer.", part(c.qformer_config).bare.but(ignore=())),
        },
        ignore=(r"embeddings\.position_ids",),
    )


def text_head(c: PretrainedConfig) -> Head:
    text, task = text_part(c)
    return text.head(task)


def head_names(c: PretrainedConfig) -> NameMap:
    inner = text_head(c).names
    inner = inner(c.text_config) if callable(inner) else inner
    return NameMap(
        {}, parts={"text": ("language_model.", inner if isinstance(inner, NameMap) else NameMap(inner))}
    )


MATCH = {"text": "text_projection", "image": "vision_projection", "match": "itm_head"}

HEADS: dict[str, Head] = {
    "Blip2Model": QueryBackbone(text=text_head, names=head_names),
    "Blip2ForConditionalGeneration": QueryTextLM(text=text_head, names=head_names),
    "Blip2ForImageTextRetrieval": QueryMatch(
        names=MATCH, build=build_without_text, table=names_without_text, skeleton=QueryMatchModel
    ),
    "Blip2TextModelWithProjection": QueryText(
        names={"text": MATCH["text"]}, build=lambda c: build_without_text(c, ("embed",)),
        table=names_without_text, skeleton=QueryReaderModel,
    ),
    "Blip2VisionModelWithProjection": QueryImage(
        names={"image": MATCH["image"]}, build=lambda c: build_without_text(c, ("vision",)),
        table=names_without_text, skeleton=QueryTowerModel,
    ),
}  # fmt: skip

family(
    "blip-2", config=Config, build=build, names=names, heads=HEADS, skeleton=QueryTextModel, public="Blip2",
    width=lambda c: c.text_config.hidden_size,
)  # fmt: skip
