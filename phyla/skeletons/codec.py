"""The call of neural audio codecs: waveforms to codes and back, in chunks where the configuration says so."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError
from phyla.model import PreTrainedModel
from phyla.outputs import EncodecDecoderOutput, EncodecEncoderOutput, EncodecOutput
from phyla.skeletons.base import flag


class CodecModel(PreTrainedModel):
    """Sound to codes of residual codebooks, and back; the backbone answers `encode` and `decode`."""

    main_input_name = "input_values"

    def get_encoder(self) -> torch.nn.Module:
        """The part that turns sound into states."""
        return self.backbone.encoder

    def get_decoder(self) -> torch.nn.Module:
        """The part that turns states into sound."""
        return self.backbone.decoder

    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Codes (chunks, B, codebooks, S) of sound (B, C, T), at `bandwidth` kbit/s, one of the
        configuration's.

        padding_mask (B, T) or (B, C, T) keeps padding out of the measured loudness. With chunks, T must be
        padded to whole chunks.
        """
        config = self.config
        if bandwidth is None:
            bandwidth = config.target_bandwidths[0]
        if bandwidth not in config.target_bandwidths:
            raise ArgumentError(f"bandwidth must be one of {config.target_bandwidths}, but is {bandwidth}")
        if input_values.dim() != 3 or input_values.shape[1] not in (1, 2):
            raise ArgumentError(
                f"input_values must be (batch, 1 or 2 channels, samples), but are {tuple(input_values.shape)}"
            )
        length = input_values.shape[-1]
        size = config.chunk_length or length
        stride = (config.chunk_stride or size) if config.chunk_length else length
        step = size - stride
        if length % stride != step % stride or length < size:
            raise ArgumentError(
                f"input_values must be padded to {size} samples and steps of {stride} more, but have {length}"
            )
        codes, scales = [], []
        for start in range(0, length - step, stride):
            chunk = input_values[..., start : start + size]
            mask = None if padding_mask is None else padding_mask[..., start : start + size]
            scale = None
            if config.normalize:
                chunk, scale = loudness(chunk, mask)
            codes.append(self.backbone.encode(chunk, bandwidth))
            scales.append(scale)
        stacked = torch.stack(codes)
        if not flag(return_dict, config.return_dict):
            return stacked, scales
        return EncodecEncoderOutput(stacked, scales)

    def decode(
        self,
        audio_codes: Tensor,
        audio_scales: Any = None,
        padding_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Sound (B, C, T) of codes (chunks, B, codebooks, S), cut to the length of padding_mask."""
        config = self.config
        scales = [None] * len(audio_codes) if audio_scales is None else audio_scales
        chunks = []
        for codes, scale in zip(audio_codes, scales, strict=True):
            sound = self.backbone.decode(codes)
            chunks.append(sound if scale is None else sound * scale.view(-1, 1, 1))
        if config.chunk_length is None:
            if len(chunks) != 1:
                raise ArgumentError(f"audio_codes must hold one chunk, but hold {len(chunks)}")
            sound = chunks[0]
        else:
            sound = faded(chunks, config.chunk_stride or config.chunk_length)
        if padding_mask is not None and padding_mask.shape[-1] < sound.shape[-1]:
            sound = sound[..., : padding_mask.shape[-1]]
        return EncodecDecoderOutput(sound) if flag(return_dict, config.return_dict) else (sound,)

    def forward(
        self,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        audio_codes: Tensor | None = None,
        audio_scales: Any = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Codes of sound input_values (B, C, T), and the sound made of them or of the codes given."""
        if (audio_codes is None) != (audio_scales is None):
            raise ArgumentError("pass audio_codes and audio_scales together, or neither")
        if audio_codes is None:
            if input_values is None:
                raise ArgumentError("pass input_values (batch, channels, samples), or audio_codes")
            audio_codes, audio_scales = self.encode(input_values, padding_mask, bandwidth, False)
        length = padding_mask if padding_mask is not None else input_values
        sound = self.decode(audio_codes, audio_scales, length, return_dict=False)[0]
        if not flag(return_dict, self.config.return_dict):
            return audio_codes, sound
        return EncodecOutput(audio_codes, sound)


def loudness(chunk: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The chunk (B, C, T) at loudness 1, and its loudness (B, 1, 1): root mean square of the mean channel."""
    if mask is not None:
        chunk = chunk * (mask[:, None] if mask.dim() == 2 else mask)
    scale = chunk.mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt() + 1e-8
    return chunk / scale, scale


def faded(chunks: list[Tensor], stride: int) -> Tensor:
    """Chunks (B, C, T) that begin every `stride` samples, blended where they overlap by linear ramps."""
    size = chunks[0].shape[-1]
    time = torch.linspace(0, 1, size + 2, device=chunks[0].device, dtype=chunks[0].dtype)[1:-1]
    ramp = 0.5 - (time - 0.5).abs()
    total = stride * (len(chunks) - 1) + chunks[-1].shape[-1]
    sound = chunks[0].new_zeros(*chunks[0].shape[:-1], total)
    weight = chunks[0].new_zeros(total)
    for i, chunk in enumerate(chunks):
        place = slice(i * stride, i * stride + chunk.shape[-1])
        sound[..., place] += ramp[: chunk.shape[-1]] * chunk
        weight[place] += ramp[: chunk.shape[-1]]
    return sound / weight
