"""Heads that label sounds, their frames and their speakers."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Linear, make
from phyla.blocks.wave import frame_mask
from phyla.errors import ConfigError
from phyla.heads.base import Head, HeadModule
from phyla.heads.loss import cross_entropy
from phyla.outputs import ModelOutput, SequenceClassifierOutput, TokenClassifierOutput, XVectorOutput


class LayerMix(Block):
    """A learned mean of the states of layers (arXiv:1802.05365, eq. 1): L times (B, S, D) -> (B, S, D)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count))

    def forward(self, states: tuple[Tensor, ...]) -> Tensor:
        return torch.einsum("l,lbsd->bsd", self.weight.softmax(-1), torch.stack(states))

    def reset(self, std: float) -> bool:
        nn.init.constant_(self.weight, 1 / len(self.weight))
        return True


class MixedHead(HeadModule):
    """Reads the last states, or a learned mixture of all where config.use_weighted_layer_sum says so."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        mixes = config.use_weighted_layer_sum
        self.mix = make(LayerMix(config.num_hidden_layers + 1)) if mixes else None

    def states(self, out: Any) -> Tensor:
        """(B, S, D)."""
        return out.last_hidden_state if self.mix is None else self.mix(out.hidden_states)


class _SoundLabels(MixedHead):
    """mean(project(states)) -> labels."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config)
        self.project = Linear(width, config.classifier_proj_size)
        self.out = Linear(config.classifier_proj_size, config.num_labels)

    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        x = self.project(self.states(out))
        if call.lengths is None:
            x = x.mean(1)
        else:
            real = frame_mask(call.lengths, x.shape[1])
            x = x.masked_fill(~real[..., None], 0).sum(1) / real.sum(1)[:, None]
        logits = self.out(x)
        loss = None if call.labels is None else cross_entropy(logits, call.labels.view(-1))
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class SoundClassify(Head):
    """Labels of a sound, by the mean of its projected states."""

    task: ClassVar[str] = "audio-classification"
    output: type[ModelOutput] = SequenceClassifierOutput

    def make(self, config: Any, width: int) -> HeadModule:
        refuse_shrinking(config, self.task)
        return _SoundLabels(config, width)


class _FrameLabels(MixedHead):
    """Each frame's state -> labels."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config)
        self.out = Linear(width, config.num_labels)

    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        logits = self.out(self.states(out))
        loss = None
        if call.labels is not None:  # (B, S, labels), one of them marked
            loss = cross_entropy(logits.flatten(0, 1), call.labels.reshape(-1, logits.shape[-1]).argmax(1))
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class FrameClassify(Head):
    """Labels of every frame (who speaks when)."""

    task: ClassVar[str] = "audio-frame-classification"
    output: type[ModelOutput] = TokenClassifierOutput

    def make(self, config: Any, width: int) -> HeadModule:
        refuse_shrinking(config, self.task)
        return _FrameLabels(config, width)


def refuse_shrinking(config: Any, task: str) -> None:
    """ConfigError where states no longer stand for the frames that the head counts."""
    if getattr(config, "add_adapter", False):
        raise ConfigError(f"add_adapter must be false for {task}: the head reads states of single frames")


class Dilated(Block):
    """relu of a dilated convolution stored as a matrix, (B, S, in) -> (B, S', out) (Snyder et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.kernel, self.dilation, self.inputs = kernel, dilation, inputs
        self.out = Linear(inputs * kernel, outputs)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.out.weight.unflatten(1, (self.kernel, self.inputs)).transpose(1, 2)
        return F.relu(F.conv1d(x.transpose(1, 2), weight, self.out.bias, dilation=self.dilation)).transpose(
            1, 2
        )


class _Speaker(MixedHead):
    """Dilated convolutions, mean and spread over time, the speaker's vector (Snyder et al. 2018, table 1)."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config)
        self.project = Linear(width, config.tdnn_dim[0])
        ahead = (config.tdnn_dim[0], *config.tdnn_dim)
        shapes = zip(ahead, config.tdnn_dim, config.tdnn_kernel, config.tdnn_dilation, strict=False)
        self.layers = make([Dilated(*shape) for shape in shapes])
        self.vector = Linear(2 * config.tdnn_dim[-1], config.xvector_output_dim)
        self.out = Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.classes = make(MarginClasses(config.xvector_output_dim, config.num_labels))

    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        x = self.project(self.states(out))
        for layer in self.layers:
            x = layer(x)
        if call.lengths is None:
            mean, spread = x.mean(1), x.std(1)
        else:
            # Lengths are counted without the dilation, as in public results.
            real = (call.lengths - sum(layer.kernel - 1 for layer in self.layers)).clamp(max=x.shape[1])
            keep = (torch.arange(x.shape[1], device=x.device)[None] < real[:, None])[..., None]
            mean = x.masked_fill(~keep, 0).sum(1) / real[:, None]
            off = (x - mean[:, None]).masked_fill(~keep, 0)
            spread = (off.square().sum(1) / (real[:, None] - 1)).sqrt()
        vector = self.vector(torch.cat((mean, spread), -1))
        logits = self.out(vector)
        loss = None if call.labels is None else self.classes(logits, call.labels.flatten())
        return {"loss": loss, "logits": logits, "embeddings": vector}


class MarginClasses(Block):
    """Softmax loss on cosines, the right one less a margin (Wang et al. 2018, arXiv:1801.05599, eq. 6)."""

    def __init__(self, width: int, classes: int, scale: float = 30.0, margin: float = 0.4) -> None:
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.empty(width, classes))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        cosines = F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)
        right = F.one_hot(labels, self.weight.shape[1])
        return F.cross_entropy(self.scale * (cosines - self.margin * right), labels)

    def reset(self, std: float) -> bool:
        nn.init.normal_(self.weight)
        return True


@dataclass(frozen=True)
class XVector(Head):
    """The vector of a sound's speaker."""

    task: ClassVar[str] = "audio-xvector"
    output: type[ModelOutput] = XVectorOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Speaker(config, width)
