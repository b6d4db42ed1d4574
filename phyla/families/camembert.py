"""CamemBERT (Martin et al. 2019, arXiv:1911.03894).

Public checkpoints: almanach/camembert-base and every `model_type: camembert`.
Differs from RoBERTa in: the size of the vocabulary.
"""

from phyla.config import PretrainedConfig
from phyla.families import bert, roberta
from phyla.family import family
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None

    def finish(self) -> None:
        bert.check_positions(self)


NAMES = roberta.NAMES

HEADS = roberta.roberta_heads("Camembert")

family(
    "camembert", config=Config, build=roberta.build, names=NAMES, heads=HEADS,
    skeleton=TextModel, public="Camembert",
)  # fmt: skip
