"""The head that turns states into frames of a spectrogram, and its losses."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Block, Linear, make
from phyla.blocks.conv import BatchNorm
from phyla.blocks.wave import Conv
from phyla.heads.base import Call, Head, HeadModule
from phyla.outputs import ModelOutput, Seq2SeqSpectrogramOutput

STOP_WEIGHT = 5.0  # how much one stop counts against the many frames that go on


@dataclass
class SpeechCall(Call):
    """What the caller passed; attention_mask is over the encoder's `length` states."""

    length: int = 0


class Smooth(Block):
    """dropout(act(norm(conv(x)))) of frames (B, M, T)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, last: bool, dropout: float) -> None:
        super().__init__()
        self.conv = make(Conv(inputs, outputs, kernel, padding=(kernel - 1) // 2, bias=False))
        self.norm, self.last, self.dropout_prob = make(BatchNorm(outputs)), last, dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = x if self.last else torch.tanh(x)
        return F.dropout(x, self.dropout_prob) if self.training and self.dropout_prob else x


class _Frames(HeadModule):
    """states (B, S, D) -> frames (B, S * reduction, M) and stop scores; layers repair the frames."""

    def __init__(self, config: Any, width: int, loss: bool) -> None:
        super().__init__()
        self.mels, self.reduction, self.has_loss = config.num_mel_bins, config.reduction_factor, loss
        self.guides = loss and config.use_guided_attention_loss
        self.out = Linear(width, self.mels * self.reduction)
        self.stop = Linear(width, self.reduction)
        count, units = config.speech_decoder_postnet_layers, config.speech_decoder_postnet_units
        widths = [self.mels, *[units] * (count - 1), self.mels]
        self.layers = make(
            [
                Smooth(
                    widths[i], widths[i + 1], config.speech_decoder_postnet_kernel, i == count - 1,
                    config.speech_decoder_postnet_dropout,
                )
                for i in range(count)
            ]
        )  # fmt: skip

    def frames(self, x: Tensor) -> Tensor:
        """Frames (B, S * reduction, M) of states (B, S, D)."""
        return self.out(x).view(len(x), -1, self.mels)

    def repaired(self, frames: Tensor) -> Tensor:
        """Frames (B, T, M) with what the layers add."""
        y = frames.transpose(1, 2)
        for layer in self.layers:
            y = layer(y)
        return frames + y.transpose(1, 2)

    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        raw = self.frames(out.last_hidden_state)
        fine = self.repaired(raw)
        stop = self.stop(out.last_hidden_state).view(len(raw), -1)
        loss = None
        if call.labels is not None and self.has_loss:
            loss = spectrogram_loss(raw, fine, stop, call.labels)
            if self.guides:
                loss = loss + self.guidance(out.cross_attentions, call)
        return {"loss": loss, "spectrogram": fine}

    def guidance(self, attentions: tuple[Tensor, ...], call: SpeechCall) -> Tensor:
        """How far the first heads look off the diagonal (Tachibana et al. 2017, arXiv:1710.08969)."""
        config, labels = call.config, call.labels
        assert labels is not None
        heads = torch.cat([a[:, : config.guided_attention_loss_num_heads] for a in attentions], 1)
        said = (labels != -100.0)[:, :, 0][:, self.reduction - 1 :: self.reduction]  # (B, S)
        read = call.attention_mask
        if read is None:
            read = torch.ones(len(said), call.length, device=said.device)
        read = read.bool()
        row = torch.arange(said.shape[1], device=said.device) / said.sum(1, keepdim=True)  # (B, S)
        column = torch.arange(read.shape[1], device=said.device) / read.sum(1, keepdim=True)
        distance = (column[:, None] - row[:, :, None]).square()
        off = 1.0 - torch.exp(-distance / (2 * config.guided_attention_loss_sigma**2))
        both = (said[:, :, None] & read[:, None])[:, None].expand_as(heads)
        return config.guided_attention_loss_scale * (off[:, None] * heads)[both].mean()


def spectrogram_loss(raw: Tensor, fine: Tensor, stop: Tensor, labels: Tensor) -> Tensor:
    """Distance of both versions of the frames (B, T, M) from the labels, and of the stop scores (B, T)."""
    real = labels != -100.0
    wanted = labels[real]
    distance = F.l1_loss(fine[real], wanted) + F.l1_loss(raw[real], wanted)
    frames = real[:, :, 0]
    ends = torch.cat((~frames[:, 1:], torch.ones_like(frames[:, :1])), 1).to(stop.dtype)  # next one is none
    weight = torch.tensor(STOP_WEIGHT, device=stop.device)
    return distance + F.binary_cross_entropy_with_logits(stop[frames], ends[frames], pos_weight=weight)


@dataclass(frozen=True)
class Speak(Head):
    """Frames of the speech; loss: whether labels give one."""

    task: ClassVar[str] = "text-to-spectrogram"
    output: type[ModelOutput] = Seq2SeqSpectrogramOutput
    loss: bool = True

    def make(self, config: Any, width: int) -> HeadModule:
        return _Frames(config, width, self.loss)


@dataclass(frozen=True)
class Revoice(Speak):
    """Frames of the same words in another voice."""

    task: ClassVar[str] = "speech-to-speech"
    loss: bool = False
