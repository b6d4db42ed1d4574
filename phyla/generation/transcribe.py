"""Transcription of sounds of any length, window by window (Radford et al. 2022, sections 3.8 and 4.5)."""

import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.alignment import token_times
from phyla.generation.config import GenerationConfig
from phyla.generation.logits import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor
from phyla.generation.loop import generate
from phyla.generation.plan import merge_config
from phyla.generation.segments import Clock, cut, earlier, joined, row_of, with_times
from phyla.generation.speech import WhisperNoSpeechDetection, WhisperTimeStampLogitsProcessor
from phyla.generation.spoken import input_stride, opening, spoken_settings, window_frames

_PLACES = ("first-segment", "all-segments")


def transcribe(
    model: Any,
    input_features: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: list | None = None,
    stopping_criteria: list | None = None,
    prefix_allowed_tokens_fn: Any = None,
    synced_gpus: bool | None = None,
    return_timestamps: bool | None = None,
    task: str | None = None,
    language: str | list[str] | None = None,
    is_multilingual: bool | None = None,
    prompt_ids: Tensor | None = None,
    prompt_condition_type: str | None = None,
    condition_on_prev_tokens: bool | None = None,
    temperature: float | tuple[float, ...] | None = None,
    compression_ratio_threshold: float | None = None,
    logprob_threshold: float | None = None,
    no_speech_threshold: float | None = None,
    num_segment_frames: int | None = None,
    attention_mask: Tensor | None = None,
    time_precision: float = 0.02,
    time_precision_features: float = 0.01,
    return_token_timestamps: bool | None = None,
    return_segments: bool = False,
    return_dict_in_generate: bool | None = None,
    force_unique_generate_call: bool | None = None,
    **settings: Any,
) -> Any:
    """Token ids (rows, length) of what is said in log-mel frames input_features (rows, M, T), T of any size.

    Start tokens and end token are left out. Sounds longer than a window (30 s) need time stamps, which drive
    where the next window begins; rows of different lengths need an attention_mask (rows, T). temperature:
    where it is several, the next one is tried when a window fails the thresholds of compression or mean log
    probability; no_speech_threshold skips windows without speech. prompt_ids (n): text that precedes.
    return_segments adds `segments`, return_token_timestamps `token_timestamps` in seconds; the result is then
    a dictionary. return_dict_in_generate gives the output object of a single window, else each segment's
    `result`. force_unique_generate_call: one window, with its start and end tokens.

    `settings` as for any `generate`. Raises ArgumentError and GenerationError.
    """
    if "inputs" in settings:
        input_features = settings.pop("inputs")
    config = merge_config(model, generation_config, None)
    asked = {k: v for k, v in settings.items() if k in _config_names(config)}
    config.update(**asked)
    inputs = {k: v for k, v in settings.items() if k not in asked and v is not None}
    window, stride = window_frames(model), input_stride(model)
    heard = _heard(input_features, inputs)
    states = next(iter(heard.values()))
    states = states if isinstance(states, Tensor) else states[0]
    rows = len(states)
    frames = states.shape[-1] if input_features is not None else states.shape[1] * stride
    short = frames <= window
    stamps = return_timestamps
    if stamps is None:
        stamps = getattr(config, "return_timestamps", None)
    if return_timestamps is False and not short:
        raise ArgumentError(
            "return_timestamps must not be False for sounds longer than a window: time stamps say where the "
            "next window begins; leave it out, or cut the sound"
        )
    clock = _clock(model, config, stamps, short, time_precision, time_precision_features, stride)
    config.return_timestamps = bool(stamps) or not short
    spoken_settings(config, language, task, is_multilingual)
    wanted = config.return_dict_in_generate if return_dict_in_generate is None else return_dict_in_generate
    rules = Rules(
        _either(compression_ratio_threshold, config, "compression_ratio_threshold"),
        _either(logprob_threshold, config, "logprob_threshold"),
        _either(no_speech_threshold, config, "no_speech_threshold"),
        model.config.vocab_size,
    )
    condition = condition_on_prev_tokens
    if condition is None:
        condition = bool(getattr(config, "condition_on_prev_tokens", False))
    place = prompt_condition_type or _PLACES[0]
    if place not in _PLACES or (place == _PLACES[1] and not condition):
        raise ArgumentError(
            f"prompt_condition_type must be one of {_PLACES}, the second with condition_on_prev_tokens=True, "
            f"but is {place!r}"
        )
    frame_counts = inputs.pop("num_frames", None)
    if return_token_timestamps and not hasattr(config, "alignment_heads"):
        raise ArgumentError("return_token_timestamps needs alignment_heads in generation_config.json")
    config.return_dict_in_generate = bool(wanted or return_token_timestamps or rules.logprob is not None)
    config.output_scores = bool(config.output_scores or return_token_timestamps or rules.logprob is not None)
    config.output_attentions = bool(config.output_attentions or return_token_timestamps)
    first = opening(model, config, rows, heard)
    if rows > 1 and not short and attention_mask is None:
        raise ArgumentError("rows of a long sound need an attention_mask, which says how long each is")
    lengths = [frames] * rows
    if rows > 1 and not short and attention_mask is not None:
        lengths = attention_mask.sum(-1).tolist()
    copies = config.num_return_sequences or 1
    if copies > 1:
        first = first.repeat_interleave(copies, 0)
        heard = {k: _repeated(v, copies) for k, v in heard.items()}
        lengths = [n for n in lengths for _ in range(copies)]
        config.num_return_sequences = 1
    suppressed = config.suppress_tokens
    processors = _processors(model, config, rules, first.shape[1], logits_processor)
    config.suppress_tokens = config.begin_suppress_tokens = config.forced_decoder_ids = None
    temperatures = list(temperature) if isinstance(temperature, (list, tuple)) else [temperature]
    if force_unique_generate_call is None:
        force_unique_generate_call = bool(getattr(config, "force_unique_generate_call", False))
    speaker = Speaker(
        model, config, processors, clock, rules, temperatures, heard, first,
        extra={"stopping_criteria": stopping_criteria, "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
               "synced_gpus": synced_gpus, **inputs},
        condition=bool(condition), prompt=prompt_ids, place=place, window=window, long=not short,
        align=(config.alignment_heads, frame_counts) if return_token_timestamps else None,
        previous=_previous_token(config, suppressed),
    )  # fmt: skip
    speaker.run(lengths, once=bool(force_unique_generate_call))
    prompted = prompt_ids is not None and place == _PLACES[0]
    segments = [row[1:] if prompted else row for row in speaker.segments]
    single = force_unique_generate_call or (short and not return_timestamps)
    if wanted and single:
        output = speaker.last_output()
        for name in ("encoder_attentions", "encoder_hidden_states") if copies > 1 else ():
            if output.get(name) is not None:  # one row a sound
                output[name] = tuple(x[::copies] for x in output[name])
        return output
    if force_unique_generate_call:
        ids = torch.stack([_sequence(row[0]["result"]) for row in segments])
        times = torch.stack([r[0]["result"]["token_timestamps"] for r in segments]) if speaker.align else None
    else:
        ids, times = joined(segments, config.pad_token_id, model.device, bool(return_token_timestamps))
    if not (wanted or return_segments or return_token_timestamps):
        return ids
    result: dict[str, Any] = {"sequences": ids}
    if times is not None:
        result["token_timestamps"] = times
    if wanted or return_segments:
        result["segments"] = segments
    return result


@dataclass(frozen=True)
class Rules:
    """Thresholds that a window's text must pass; None: any text does."""

    compression: float | None
    logprob: float | None
    silence: float | None
    vocabulary: int

    def judge(
        self, ids: Tensor, result: Any, no_speech: float, temperature: float | None
    ) -> tuple[bool, bool]:
        """Whether to try again at the next temperature, and whether there is nothing to write down."""
        again, mean = False, 0.0
        if self.compression is not None:
            again = compression_ratio(ids, self.vocabulary) > self.compression
        if self.logprob is not None:
            mean = mean_logprob(result["scores"], ids, temperature or 1.0)
            again = again or mean < self.logprob
        if self.silence is not None:
            if self.logprob is None:
                raise ArgumentError("no_speech_threshold needs a logprob_threshold beside it")
            if mean < self.logprob and no_speech > self.silence:
                return False, True
        return again, False


def compression_ratio(ids: Tensor, vocabulary: int) -> float:
    """How much shorter zlib makes the ids: repetitive text has a high ratio."""
    size = int(math.log2(vocabulary) / 8) + 1
    raw = b"".join(token.to_bytes(size, "little") for token in ids.tolist())
    return len(raw) / len(zlib.compress(raw))


def mean_logprob(scores: list[Tensor], ids: Tensor, temperature: float) -> float:
    """Mean log probability of the ids under the scores (V) of each step, the temperature taken back."""
    steps = torch.stack(scores).to(ids.device)
    steps, ids = (steps[: len(ids)], ids) if len(steps) > len(ids) else (steps, ids[-len(steps) :])
    logp = (steps * temperature).float().log_softmax(-1)
    return float(logp.gather(1, ids[:, None]).sum() / len(ids))


@dataclass
class Speaker:
    """Decodes all rows window by window; `segments` is what was said in each row so far."""

    model: Any
    config: GenerationConfig
    processors: list
    clock: Clock
    rules: Rules
    temperatures: list
    heard: dict[str, Any]
    first: Tensor
    extra: dict[str, Any]
    condition: bool
    prompt: Tensor | None
    place: str
    window: int
    long: bool
    align: tuple[Any, Any] | None
    previous: int | None
    segments: list[list[dict[str, Any]]] = field(default_factory=list)

    def run(self, lengths: list[int], once: bool) -> None:
        """Transcribe rows of so many frames; once: their first window alone."""
        rows = len(lengths)
        opened = []
        if self.prompt is not None and self.place == _PLACES[0]:
            previous = getattr(self.config, "prev_sot_token_id", None)
            before = self.prompt[1:] if int(self.prompt[0]) == previous else self.prompt
            opened = [{"tokens": before}]
        self.segments = [list(opened) for _ in range(rows)]
        self.conditioned = [self.condition] * rows
        self.outputs: list[tuple[Any, int]] = [(None, 0)] * rows
        seek = [0] * rows
        while any(at < end for at, end in zip(seek, lengths, strict=True)):
            active = [i for i in range(rows) if seek[i] < lengths[i]]
            frames = {i: min(lengths[i] - seek[i], self.window) for i in active}
            ids, mask = self._start(active)
            for processor in self.processors:
                if hasattr(processor, "set_begin_index"):
                    processor.set_begin_index(ids.shape[1])
            said = self._decode(active, seek, frames, ids, mask)
            for i in active:
                text, result, skipped = said[i]
                if skipped:
                    seek[i] += frames[i]
                    continue
                times = result["token_timestamps"] if self.align else None
                found, moved = cut(text, self.clock, seek[i], frames[i], ids.shape[1], result, times)
                self.segments[i] += found
                seek[i] += moved if moved > 0 else frames[i]  # stamps at 0 alone would be heard for ever
            if once:
                return

    def _start(self, active: list[int]) -> tuple[Tensor, Tensor | None]:
        """Decoder ids (rows, n) of a window, and their mask where some are padding."""
        given = self.extra.pop("decoder_input_ids", None)
        if given is not None:
            return given.repeat_interleave(max(1, len(self.first) // len(given)), 0)[active], None
        first, pad = self.first[active], self.config.pad_token_id
        if any(self.conditioned) and self.segments[0]:
            opener = first.new_empty(0) if self.previous is None else first.new_tensor([self.previous])
            if self.prompt is not None and self.place == _PLACES[1]:
                opener = self.prompt.to(first)
            limit = self.model.config.max_target_positions // 2 - 1
            texts = [
                earlier(self.segments[i] if self.conditioned[i] else [], self.clock, limit, opener)
                for i in active
            ]
            longest = max(map(len, texts))
            before = torch.stack([F.pad(t, (longest - len(t), 0), value=pad) for t in texts])
            ids = torch.cat((before, first), 1)
            return ids, (ids != pad).long()
        if self.prompt is not None:
            return torch.cat((self.prompt.to(first)[None].expand(len(active), -1), first), 1), None
        return first, None

    def _inputs(self, rows: list[int], seek: list[int], frames: dict[int, int]) -> dict[str, Any]:
        """The model's inputs for a window of these rows."""
        if "input_features" not in self.heard:
            return {k: _rows(v, rows) for k, v in self.heard.items()}
        cuts = [self.heard["input_features"][i, :, seek[i] : seek[i] + frames[i]] for i in rows]
        return {"input_features": torch.stack([F.pad(c, (0, self.window - c.shape[-1])) for c in cuts])}

    def _decode(
        self, active: list[int], seek: list[int], frames: dict[int, int], ids: Tensor, mask: Tensor | None
    ) -> dict[int, tuple[Tensor, Any, bool]]:
        """Text, result and whether to skip it for each row, tried at one temperature after the other."""
        said: dict[int, tuple[Tensor, Any, bool]] = {}
        waiting = list(range(len(active)))  # places in `active` that have no good text yet
        for temperature in self.temperatures:
            sampled = temperature is not None and temperature > 0
            self.config.update(do_sample=sampled, temperature=float(temperature) if sampled else 1.0)
            if sampled:
                self.config.num_beams = 1
            rows = [active[k] for k in waiting]
            call = self._inputs(rows, seek, frames) | {"decoder_input_ids": ids[waiting]}
            if mask is not None:
                call["decoder_attention_mask"] = mask[waiting]
            detector = self._silence()
            if detector is not None:
                detector.set_inputs(call)
            output = generate(
                self.model, generation_config=self.config, logits_processor=list(self.processors), **call,
                **self.extra,
            )  # fmt: skip
            if self.align:
                heads, counts = self.align
                output = with_times(output, token_times(
                    output, heads, self.model.config.median_filter_width,
                    _counts(counts, rows, len(self.first)),
                    ids.shape[1], self.clock.step,
                ))  # fmt: skip
            again = []
            for k, place in enumerate(waiting):
                row, result = active[place], row_of(output, k, self.long)
                self.outputs[row] = (output, k)
                text = self._trimmed(_sequence(result)[ids.shape[1] :])
                repeat, skip = self.rules.judge(
                    text, result, self._no_speech(detector, k, len(rows)), temperature
                )
                if len(text) and int(text[-1]) == self._end:
                    text = text[:-1]
                said[row] = (text, result, skip)
                self.conditioned[row] = self.condition and (temperature is None or temperature < 0.5)
                if repeat:
                    again.append(place)
            waiting = again
            if not waiting:
                break
        return said

    @property
    def _end(self) -> int | None:
        end = self.config.eos_token_id
        return end[0] if isinstance(end, list) else end

    def _trimmed(self, text: Tensor) -> Tensor:
        """The text without padding; an end token that is also the padding stays once."""
        pad = self.config.pad_token_id
        if not len(text) or int(text[-1]) != pad:
            return text
        extra = int((text == pad).sum()) - (pad == self._end)
        return text[: len(text) - extra]

    def _silence(self) -> WhisperNoSpeechDetection | None:
        return next((p for p in self.processors if isinstance(p, WhisperNoSpeechDetection)), None)

    def _no_speech(self, detector: WhisperNoSpeechDetection | None, row: int, rows: int) -> float:
        if detector is None:
            return 0.0
        chances = detector.no_speech_prob
        return float(chances[row * (len(chances) // rows)])

    def last_output(self) -> Any:
        """What the one window's call gave; rows of several calls are put side by side, ids alone."""
        output = self.outputs[0][0]
        if all(other is output for other, _ in self.outputs):
            return output
        found = [(o if isinstance(o, Tensor) else o["sequences"])[k] for o, k in self.outputs]
        ids = torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=self.config.pad_token_id)
        kind = next(type(o) for o, _ in self.outputs if not isinstance(o, Tensor))
        return kind(sequences=ids)


def _either(value: Any, config: GenerationConfig, name: str) -> Any:
    """The caller's value, or the configuration's."""
    return getattr(config, name, None) if value is None else value


def _config_names(config: GenerationConfig) -> set[str]:
    return set(config.__dict__) - {"_given"}


def _heard(features: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
    if features is not None:
        return {"input_features": features}
    if "encoder_outputs" not in inputs:
        raise ArgumentError("pass input_features (rows, mels, frames), or encoder_outputs")
    given = inputs.pop("encoder_outputs")
    if isinstance(given, Tensor):
        from phyla.outputs import BaseModelOutput

        given = BaseModelOutput(given)
    return {"encoder_outputs": given}


def _rows(value: Any, rows: list[int]) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    from phyla.outputs import BaseModelOutput

    return BaseModelOutput(value[0][rows])


def _repeated(value: Any, times: int) -> Any:
    if isinstance(value, Tensor):
        return value.repeat_interleave(times, 0)
    from phyla.outputs import BaseModelOutput

    return BaseModelOutput(value[0].repeat_interleave(times, 0))


def _sequence(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result["sequences"]


def _counts(counts: Any, rows: list[int], total: int) -> Any:
    """The frame counts of these of all rows."""
    if counts is None or isinstance(counts, int):
        return counts
    values = counts.tolist() if hasattr(counts, "tolist") else list(counts)
    return [values[row * len(values) // total] for row in rows]


def _clock(model: Any, config: GenerationConfig, stamps: Any, short: bool, step: float, frame: float,
           stride: int) -> Clock:  # fmt: skip
    silent = getattr(config, "no_timestamps_token_id", None)
    if silent is None and (stamps or not short):
        raise GenerationError(
            "time stamps need no_timestamps_token_id in generation_config.json, which this model's file lacks"
        )
    return Clock(model.config.vocab_size + 1 if silent is None else silent + 1, step, stride, frame)


def _processors(model: Any, config: GenerationConfig, rules: Rules, begin: int, custom: list | None) -> list:
    steps: list[Any] = []
    if rules.silence is not None:
        silent = config.no_timestamps_token_id - 1
        detector = WhisperNoSpeechDetection(silent, begin, scores_is_logprobs=(config.num_beams or 1) > 1)
        detector.set_model(model)
        steps.append(detector)
    if config.begin_suppress_tokens is not None:
        steps.append(SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin))
    if config.suppress_tokens is not None:
        steps.append(SuppressTokensLogitsProcessor(config.suppress_tokens))
    if config.return_timestamps:
        steps.append(WhisperTimeStampLogitsProcessor(config, begin_index=begin))
    return steps + list(custom or [])


def _previous_token(config: GenerationConfig, suppressed: list[int] | None) -> int | None:
    """The token that opens the text before."""
    token = getattr(config, "prev_sot_token_id", None)
    return suppressed[-2] if token is None and suppressed and len(suppressed) >= 2 else token
