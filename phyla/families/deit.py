"""DeiT (Touvron et al. 2020, arXiv:2012.12877): ViT taught by a convolutional network.

Public checkpoints: facebook/deit-base-distilled-patch16-224 and every `model_type: deit`.
Differs from ViT in: a second vector in front, which answers as the teacher did.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from phyla.blocks import Linear
from phyla.blocks.spec import Spec
from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.config import PretrainedConfig
from phyla.families import vit
from phyla.family import family
from phyla.heads import Backbone, Call, Head, HeadModule, ImageClassify, MaskedImage
from phyla.outputs import BaseModelOutputWithPooling, DeiTForImageClassificationWithTeacherOutput, ModelOutput
from phyla.skeletons import VisionModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list = 224
    patch_size: int | list = 16
    num_channels: int = 3
    qkv_bias: bool = True
    encoder_stride: int = 16
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"

    def finish(self) -> None:
        if self.pooler_output_size is None:
            self.pooler_output_size = self.hidden_size


def build(c: Config, mask_token: bool = False) -> Spec:
    """DeiT's stack; the option `use_mask_token` of from_pretrained gives the bare backbone a mask token."""
    plain = vit.build(c, mask_token)
    return plain.but(embed=plain.embed.but(teacher_token=True))


def names(c: Config) -> NameMap:
    """ViT's names and the teacher's vector."""
    plain = vit.names(c)
    teacher = To("embeddings.distillation_token", Reshape((1, 1, c.hidden_size)))
    return plain.but(lines={**plain.lines, "embed.teacher_token": teacher}, prefix="deit")


class _Both(HeadModule):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.own, self.teacher = Linear(width, config.num_labels), Linear(width, config.num_labels)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        own, teacher = self.own(x[:, 0]), self.teacher(x[:, 1])
        return {"logits": (own + teacher) / 2, "cls_logits": own, "distillation_logits": teacher}


@dataclass(frozen=True)
class WithTeacher(Head):
    """The mean of the labels' scores by the class vector and by the teacher's (inference alone)."""

    task: ClassVar[str] = "image-classification"
    output: type[ModelOutput] = DeiTForImageClassificationWithTeacherOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Both(config, width)


HEADS: dict[str, Head] = {
    "DeiTModel": Backbone(output=BaseModelOutputWithPooling, pool=True),
    "DeiTForImageClassification": ImageClassify(names={"out": "classifier"}),
    "DeiTForImageClassificationWithTeacher": WithTeacher(
        names={"own": "cls_classifier", "teacher": "distillation_classifier"}
    ),
    "DeiTForMaskedImageModeling": MaskedImage(
        names={"out": "decoder.0"}, back=1, build=partial(build, mask_token=True)
    ),
}

family("deit", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel, public="DeiT")
