"""The text tower of CLAP (Wu et al. 2022, arXiv:2211.06687): RoBERTa with one kind of segment.

Public checkpoints: the text encoders of laion/clap-htsat-unfused and its like. Differs from RoBERTa in: its
public names and its projection of two layers.
"""

import torch

from phyla.blocks import Learned, Spec
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import bert
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.agree import TextSide
from phyla.outputs import BaseModelOutputWithPoolingAndCrossAttentions
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
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    initializer_factor: float = 1.0
    layer_norm_eps: float = 1e-12
    projection_dim: int = 512
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    projection_hidden_act: str = "relu"

    def finish(self) -> None:
        bert.check_positions(self)


class Counted(Learned):
    """RoBERTa's position table, beside which files hold the numbers of positions and of segments."""

    computed = ("position_ids", "token_type_ids")

    def __init__(self, positions: int, width: int, padding: int | None) -> None:
        super().__init__(positions, width, count="tokens", padding=padding)
        for name in self.computed:
            self.register_buffer(name, torch.empty(1, positions, dtype=torch.long))

    def reset(self, std: float) -> bool:
        torch.nn.init.normal_(self.weight, std=std)
        self.position_ids.copy_(torch.arange(self.position_ids.shape[1])[None])
        self.token_type_ids.zero_()
        return True


def build(c: Config) -> Spec:
    return bert.build(c, table=Counted(c.max_position_embeddings, c.hidden_size, c.pad_token_id))


_EMBED = "embed.position"
TOWER = NameMap(
    {
        **{k: v for k, v in bert.NAMES.lines.items() if k != _EMBED},
        f"{_EMBED}.weight": "embeddings.position_embeddings.weight",
        f"{_EMBED}.position_ids": "embeddings.position_ids",
        f"{_EMBED}.token_type_ids": "embeddings.token_type_ids",
    },
    prefix="text_model",
)
# Files of the whole model hold the other tower too.
NAMES = TOWER.but(
    ignore=(*TOWER.ignore, r"(audio_model|audio_projection|text_projection)\..*", "logit_scale_[at]")
)

HEADS: dict[str, Head] = {
    "ClapTextModel": Backbone(output=BaseModelOutputWithPoolingAndCrossAttentions, pool=True),
    "ClapTextModelWithProjection": TextSide(
        names={"out.up": "text_projection.linear1", "out.down": "text_projection.linear2"}
    ),
}

family(
    "clap_text_model", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel,
    public="ClapText", bases=("ClapPreTrainedModel",),
)  # fmt: skip
