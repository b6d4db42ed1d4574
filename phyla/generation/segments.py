"""Windows of a long sound cut into segments at their time stamps, and put together again."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phyla.outputs import ModelOutput


@dataclass(frozen=True)
class Clock:
    """first: the id of the time stamp 0.0; step: seconds of a stamp; stride: input frames of a stamp; frame:
    seconds of an input frame.
    """

    first: int
    step: float
    stride: int
    frame: float

    def seconds(self, token: Tensor) -> Tensor:
        """What a stamp says."""
        return (token - self.first).double() * self.step


def cut(ids: Tensor, clock: Clock, seek: int, frames: int, prompt: int, result: Any,
        times: Tensor | None) -> tuple[list[dict[str, Any]], int]:  # fmt: skip
    """Segments of one window's ids (length), and by how many frames to move on.

    Two stamps side by side close a segment and open the next. What follows the last such pair is thrown away
    and heard again, unless a single stamp ends the window: then no speech follows it. prompt: ids before
    these in `result`; times: seconds of its tokens.
    """
    offset = torch.tensor(seek, dtype=torch.float64) * clock.step / clock.stride
    stamps = ids >= clock.first
    ends = (torch.where(stamps[:-1] & stamps[1:])[0] + 1).tolist()
    single = stamps[-2:].tolist() == [False, True]
    segments: list[dict[str, Any]] = []

    def add(start: Tensor, end: Tensor, first: int, last: int) -> None:
        segment = {"start": offset + start, "end": offset + end, "tokens": ids[first:last],
                   "idxs": (prompt + first, prompt + last), "result": result}  # fmt: skip
        if times is not None:
            segment["token_timestamps"] = times[prompt + first : prompt + last] + offset
        segments.append(segment)

    if not ends:
        length = torch.tensor(int(frames * clock.frame / clock.step) * clock.step, dtype=torch.float64)
        said = ids[stamps]
        if len(said) and int(said[-1]) != clock.first:
            length = clock.seconds(said[-1])
        add(torch.zeros((), dtype=torch.float64), length, 0, len(ids))
        return segments, frames
    if single:
        ends.append(len(ids))
    else:
        ends[-1] += 1  # the opening stamp of what is cut off shows that it was
    first = 0
    for last in ends:
        closing = ids[last - 2] if last == ends[-1] and not single else ids[last - 1]
        add(clock.seconds(ids[first]), clock.seconds(closing), first, last)
        first = last
    if single:
        return segments, frames
    return segments, (int(ids[first - 2]) - clock.first) * clock.stride


def joined(
    segments: list[list[dict[str, Any]]], pad: int, device: torch.device, times: bool
) -> tuple[Tensor, Tensor | None]:
    """Tokens of all segments of each row, (rows, length), padded on the right; and their seconds."""
    rows = [
        torch.cat([s["tokens"] for s in row]) if row else torch.empty(0, dtype=torch.long) for row in segments
    ]
    rows = [row.to(device) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    if not times:
        return ids, None
    seconds = torch.zeros(ids.shape)
    for i, row in enumerate(segments):
        parts = [s["result"]["token_timestamps"][slice(*s["idxs"])] for s in row if "result" in s]
        said = torch.cat(parts) if parts else torch.zeros(0)
        seconds[i, : len(said)] = said
        seconds[i, len(said) :] = said[-1] if len(said) else 0.0
    return ids, seconds.to(device)


def earlier(row: list[dict[str, Any]], clock: Clock, limit: int, opener: Tensor) -> Tensor:
    """What was said before, at most `limit` ids behind those of `opener`, to condition the next window."""
    kept = []
    for segment in row:
        tokens = segment["tokens"]
        if len(tokens) > 2 and tokens[-2] >= clock.first:
            # Two stamps at the end: the second belongs to what was cut off.
            tokens = segment["tokens"] = tokens[:-1]
        kept.append(tokens)
    said = torch.cat(kept)[-limit:] if kept else opener.new_empty(0)
    return torch.cat((opener, said.to(opener)))


_STEPS = ("scores", "logits", "encoder_attentions", "encoder_hidden_states")
_LAYERS = ("decoder_attentions", "decoder_hidden_states", "cross_attentions")


def row_of(output: Any, row: int, long: bool) -> Any:
    """One row of what generate returned; the cache is left out of long sounds, as it is large."""
    if isinstance(output, Tensor):
        return output[row]
    beams = output.get("beam_indices")
    result: dict[str, Any] = {}
    for name, value in output.items():
        if name == "past_key_values":
            result[name] = None if long else value
        elif name == "scores" and beams is not None:
            path = beams[row][: len(value)].tolist()
            result[name] = [step[beam].cpu() for step, beam in zip(value, path, strict=False)]
        elif name in _STEPS:
            result[name] = [step[row].cpu() for step in value]
        elif name in _LAYERS:
            result[name] = tuple(tuple(part[row][None].cpu() for part in step) for step in value)
        else:
            result[name] = value[row].cpu()
    return result


def with_times(output: ModelOutput, times: Tensor) -> dict[str, Any]:
    """The output as a mapping that also has the seconds of its tokens."""
    return {**output, "token_timestamps": times}
