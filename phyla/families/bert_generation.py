"""BERT for writing (Rothe et al. 2019, arXiv:1907.12461).

Public checkpoints: google/bert_for_seq_generation_L-24_bbc_encoder, google/roberta2roberta_L-24_bbc, ...
Differs from BERT in: no segments and no pooled token; positions are added to the embeddings whatever the
attention knows of them; the head is the output matrix alone.
"""

from phyla.blocks import Decoder, Embed, Encoder, LayerNorm, Learned, Spec
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import bert
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Head
from phyla.outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 50358
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list | None = 1
    position_embedding_type: str = "absolute"
    use_cache: bool = True

    def finish(self) -> None:
        bert.check_positions(self)


def build(c: Config) -> Spec:
    stack = Decoder if c.is_decoder else Encoder
    return stack(
        embed=Embed(
            c.vocab_size, c.hidden_size, position=Learned(c.max_position_embeddings, c.hidden_size),
            norm=LayerNorm(c.hidden_size, eps=c.layer_norm_eps), dropout=c.hidden_dropout_prob,
            padding=c.pad_token_id,
        ),
        layers=bert.layers(c, bert.relative_keys(c)),
    )  # fmt: skip


_ELSEWHERE = ("embed.segment", "pool.dense")
NAMES = bert.NAMES.but(lines={k: v for k, v in bert.NAMES.lines.items() if k not in _ELSEWHERE})

HEADS: dict[str, Head] = {
    "BertGenerationEncoder": Backbone(output=BaseModelOutputWithPastAndCrossAttentions),
    "BertGenerationDecoder": CausalLM(
        names=NameMap(
            {"out.weight": "lm_head.decoder.weight", "out.bias": "lm_head.bias"},
            aliases={"out.bias": ("lm_head.decoder.bias",)},
        ),
        bias=True,
        output=CausalLMOutputWithCrossAttentions,
    ),
}

family(
    "bert-generation", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel,
    public="BertGeneration",
)  # fmt: skip
