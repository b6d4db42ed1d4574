"""Speech frame by frame, until the model says stop; a vocoder turns the frames into sound."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from phyla.blocks.cache import Cache
from phyla.errors import ArgumentError
from phyla.skeletons.base import context_for


def speak_text(
    model: Any,
    input_ids: Tensor,
    speaker_embeddings: Tensor | None = None,
    attention_mask: Tensor | None = None,
    threshold: float = 0.5,
    minlenratio: float = 0.0,
    maxlenratio: float = 20.0,
    vocoder: Any = None,
    output_cross_attentions: bool = False,
    return_output_lengths: bool = False,
) -> Any:
    """Speech for token ids input_ids (B, S); see `speak`."""
    if attention_mask is None:
        attention_mask = (input_ids != model.config.pad_token_id).int()
    return speak(
        model, input_ids, speaker_embeddings, attention_mask, threshold, minlenratio, maxlenratio, vocoder,
        output_cross_attentions, return_output_lengths,
    )  # fmt: skip


@torch.no_grad()
def speak(
    model: Any,
    input_values: Tensor,
    speaker_embeddings: Tensor | None = None,
    attention_mask: Tensor | None = None,
    threshold: float = 0.5,
    minlenratio: float = 0.0,
    maxlenratio: float = 20.0,
    vocoder: Any = None,
    output_cross_attentions: bool = False,
    return_output_lengths: bool = False,
) -> Any:
    """Frames (T, M), or (B, T, M) for several rows, or with a vocoder their sound, in the voice of
    speaker_embeddings (1 or B, V).

    A row ends when its stop chance reaches `threshold`, not before minlenratio and not after maxlenratio
    times the encoder's states. return_output_lengths gives (speech, lengths); output_cross_attentions adds
    the weights (B, layers, H, frames, S) behind.
    """
    if speaker_embeddings is None:
        raise ArgumentError("pass speaker_embeddings (1 or batch, width), the voice to speak in")
    rows = len(input_values)
    if len(speaker_embeddings) not in (1, rows):
        raise ArgumentError(
            f"speaker_embeddings must have 1 or {rows} rows, but have {len(speaker_embeddings)}"
        )
    voice = speaker_embeddings.expand(rows, -1)
    if attention_mask is None:
        attention_mask = (input_values != model.config.pad_token_id).int()
    config, decoder, head = model.config, model.backbone.decoder, model.head
    memory = model.encode(input_values, attention_mask).last_hidden_state
    real = model.backbone.encoder.embed.real(attention_mask, memory.shape[1])
    size = memory.shape[1]
    most, least = (int(size * r / config.reduction_factor) for r in (maxlenratio, minlenratio))
    cache: Cache = model.new_cache(rows, max(most, 1))
    so_far = memory.new_zeros(rows, 1, config.num_mel_bins)
    spectra: list[Tensor] = []
    attentions: list[Tensor] = []
    done: dict[int, Tensor] = {}
    step = 0
    while len(done) < rows:
        step += 1
        ctx = context_for(model, (rows, 1), memory.device, None, None, cache, output_cross_attentions, True)
        ctx.memory, ctx.memory_mask = memory, real.bool()
        # All frames go through the embedding at each step, as its dropout is drawn anew.
        x = decoder.embed(
            so_far, voice, context_for(model, so_far.shape[:2], memory.device, None, None, None, False, False)
        )
        out = decoder.run(x[:, -1:], ctx)
        if output_cross_attentions:
            attentions.append(torch.stack(out.cross_attentions, 1))  # (B, layers, H, 1, S)
        frames = head.frames(out.last_hidden_state)
        spectra.append(frames)
        so_far = torch.cat((so_far, frames[:, -1:]), 1)
        if step < least:
            continue
        stop = head.stop(out.last_hidden_state[:, 0]).sigmoid().sum(-1) >= threshold
        ended = stop.tolist() if step < most else [True] * rows
        new = [i for i in range(rows) if ended[i] and i not in done]
        if new:
            fine = head.repaired(torch.cat(spectra, 1))
            done |= {i: fine[i] for i in new}
    speech = [done[i] for i in range(rows)]
    return _given(speech, attentions, vocoder, return_output_lengths, output_cross_attentions)


def _given(speech: list[Tensor], attentions: list[Tensor], vocoder: Any, lengths: bool, weights: bool) -> Any:
    """The frames or their sound in the form that was asked for."""
    several = lengths or len(speech) > 1
    frames = pad_sequence(speech, batch_first=True) if several else speech[0]
    given = frames if vocoder is None else vocoder(frames)
    result: tuple[Any, ...] = (given,)
    if lengths:
        sizes = [len(row) for row in speech]
        if vocoder is not None:
            sizes = [given.shape[1] // max(sizes) * size for size in sizes]
        result = (given, sizes)
    if weights:
        seen = torch.cat(attentions, 3)  # (B, layers, H, frames, S)
        result = (*result, seen if several else seen.flatten(0, 1))
    return result if len(result) > 1 else given
