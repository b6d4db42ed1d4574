"""DeBERTa, first generation (He et al. 2020, arXiv:2006.03654).

Public checkpoints: microsoft/deberta-base, microsoft/deberta-large, ...
Differs from the second in: q, k and v of each head stored together, of which k has no bias; plain distances.
"""

from typing import Any

from phyla.blocks import Spec
from phyla.checkpoints.names import NameMap, split
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import deberta_v2
from phyla.family import family
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    relative_attention: bool = False
    max_relative_positions: Any = -1
    pad_token_id: int | None = 0
    position_biased_input: bool = True
    pos_att_type: Any = None
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    pooler_hidden_size: int | None = None
    cls_dropout: float | None = None
    legacy: bool = True

    def finish(self) -> None:
        deberta_v2.settle(self)
        if self.__dict__.get("talking_head"):
            raise ConfigError("talking_head must be false: no published DeBERTa mixes its heads")


def build(c: Config) -> Spec:
    return deberta_v2.build(c, first=True)


def names(c: Config) -> NameMap:
    at = "encoder.layer.{i}.attention.self"
    return deberta_v2.NAMES.but(
        lines=deberta_v2.LINES
        | {
            "layers.{i}.attn.q|k|v": split(f"{at}.in_proj", c.num_attention_heads),
            "layers.{i}.attn.q.bias": f"{at}.q_bias",
            "layers.{i}.attn.v.bias": f"{at}.v_bias",
            "layers.{i}.attn.position.q": f"{at}.pos_q_proj",
            "layers.{i}.attn.position.k": f"{at}.pos_proj",
        }
    )


HEADS = {k: v for k, v in deberta_v2.deberta_heads("Deberta").items() if k != "DebertaForMultipleChoice"}

family(
    "deberta", config=Config, build=build, names=names, heads=HEADS, skeleton=TextModel, public="Deberta",
    segments_required=False,
)  # fmt: skip
