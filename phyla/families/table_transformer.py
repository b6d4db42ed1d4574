"""Table Transformer (Smock et al. 2021, arXiv:2110.00061): DETR for tables on pages and for their parts.

Public checkpoints: microsoft/table-transformer-detection and every `model_type: table-transformer`.
Differs from DETR in: norms before the mixers, and one behind the encoder.
"""

from functools import partial
from typing import Any

from phyla.config import PretrainedConfig
from phyla.families import detr
from phyla.family import family
from phyla.heads import Backbone, Head
from phyla.heads.detect import Detect
from phyla.outputs import TableTransformerModelOutput, TableTransformerObjectDetectionOutput
from phyla.skeletons.detection import DetectionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    use_timm_backbone: bool = True
    backbone_config: Any = None
    num_channels: int = 3
    num_queries: int = 100
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: int = 256
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    auxiliary_loss: bool = False
    position_embedding_type: str = "sine"
    backbone: str | None = "resnet50"
    use_pretrained_backbone: bool = True
    backbone_kwargs: dict | None = None
    dilation: bool | None = False
    class_cost: int | float = 1
    bbox_cost: int | float = 5
    giou_cost: int | float = 2
    mask_loss_coefficient: int | float = 1
    dice_loss_coefficient: int | float = 1
    bbox_loss_coefficient: int | float = 5
    giou_loss_coefficient: int | float = 2
    eos_coefficient: float = 0.1

    ALIASES = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}

    def finish(self) -> None:
        detr.take_old_backbone(self, [1, 2, 3, 4])
        self.__dict__.setdefault("num_hidden_layers", self.encoder_layers)


HEADS: dict[str, Head] = {
    "TableTransformerModel": Backbone(output=TableTransformerModelOutput),
    "TableTransformerForObjectDetection": Detect(
        names=detr.SCORES, output=TableTransformerObjectDetectionOutput
    ),
}

family(
    "table-transformer", config=Config, build=partial(detr.build, before=True),
    names=partial(detr.names, before=True), heads=HEADS, skeleton=DetectionModel, public="TableTransformer",
    width=lambda c: c.d_model,
)  # fmt: skip
