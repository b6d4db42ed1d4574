"""From settings to what the decoding loop runs with: lengths, logits processors, stopping criteria."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError, GenerationError
from phyla.generation import penalties, warpers
from phyla.generation.config import DEFAULTS, SPECIAL_IDS, GenerationConfig
from phyla.generation.logits import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    ForceTokensLogitsProcessor,
    HammingDiversityLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    id_list,
)
from phyla.generation.prompt import Prompt
from phyla.generation.rows import row_configs, row_processors
from phyla.generation.stopping import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from phyla.generation.watermark import read_watermark


def merge_config(
    model: nn.Module, config: GenerationConfig | None, use_model_defaults: bool | None
) -> GenerationConfig:
    """A copy of `config` with what it leaves open taken from the model's own generation configuration.

    As in the reference, models saved before its release 4.50 lend only their special ids to a given
    configuration.
    """
    own = getattr(model, "generation_config", None)
    if own is None:
        own = GenerationConfig.from_model_config(model.config)
    if config is None:
        return own.copy()
    if not isinstance(config, GenerationConfig):
        raise ArgumentError(f"generation_config must be a GenerationConfig, but is a {type(config).__name__}")
    merged = config.copy()
    if use_model_defaults is None:
        use_model_defaults = _release(getattr(own, "transformers_version", None)) >= (4, 50)
    for name in DEFAULTS if use_model_defaults else SPECIAL_IDS:
        if not config.given(name) and getattr(own, name) != DEFAULTS[name]:
            setattr(merged, name, getattr(own, name))
    return merged


def _release(version: Any) -> tuple[float, ...]:
    parts = str(version or "").split(".")[:2]
    return (
        tuple(int(p) for p in parts) if len(parts) == 2 and all(p.isdigit() for p in parts) else (math.inf,)
    )


def context_length(config: Any) -> int | None:
    """The most positions that the model's decoder has, or None where nothing bounds them."""
    get_text_config = getattr(config, "get_text_config", None)
    text = get_text_config(decoder=True) if get_text_config is not None else config
    scaling = getattr(text, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    if kind == "dynamic" or getattr(text, "alibi", False):
        return None
    for name in ("max_target_positions", "max_position_embeddings"):
        size = getattr(text, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return None


def new_token_limit(config: GenerationConfig, prompt: Prompt, context: int | None, given: bool) -> int:
    """How many tokens may be generated at most; `given` says that the call itself set the length.

    Raises GenerationError if that is less than one (but for max_new_tokens=0) or, with `given`, if it does
    not fit the context. The public default, max_length=20, counts new tokens only and gives way to the
    context.
    """
    length = prompt.positions
    if config.max_new_tokens is not None:
        limit, name = config.max_new_tokens, f"max_new_tokens={config.max_new_tokens}"
    elif config.max_length is None:
        if context is None:
            raise GenerationError(
                "max_new_tokens or max_length must be set: nothing else bounds this model's output"
            )
        limit, name, given = context - length, "max_length=None", False
    elif config.max_length == DEFAULTS["max_length"] and not given:
        limit, name = config.max_length, "max_length=20 (the default)"
    else:
        limit, name = config.max_length - length, f"max_length={config.max_length}"
        if limit <= 0:
            raise GenerationError(
                f"{name} must be more than the length of the prompt, which has {length} tokens; to set the "
                "number of new tokens, pass max_new_tokens"
            )
    if context is None or length + limit <= context or limit == 0:
        return limit
    if given or length >= context:
        raise GenerationError(
            f"prompt and new tokens must fit the context of {context} positions, but {length} + {limit} "
            f"({name}) do not: shorten the prompt (truncate='left' keeps its end) or ask for fewer new tokens"
        )
    return context - length


def build_processors(model: nn.Module, config: GenerationConfig, prompt: Prompt, max_length: int,
                     custom: list[LogitsProcessor], prefix_allowed_tokens_fn: Callable | None,
                     guidance: LogitsProcessor | None,
                     generators: list[torch.Generator] | None = None) -> LogitsProcessorList:  # fmt: skip
    """The processors that the settings ask for, in the order of the reference; one of `custom` replaces its
    like.
    """
    length, eos = prompt.ids.shape[1], config.eos_token_id
    mask = prompt.mask if prompt.positions == length else None
    steps: list[LogitsProcessor] = [] if guidance is None else [guidance]
    if config.sequence_bias is not None:
        steps.append(SequenceBiasLogitsProcessor(config.sequence_bias))
    if _set(config.diversity_penalty, 0.0) and (config.num_beam_groups or 1) > 1:
        steps.append(
            HammingDiversityLogitsProcessor(
                config.diversity_penalty, config.num_beams, config.num_beam_groups
            )
        )
    source = _source(prompt, "encoder_repetition_penalty", config, 1.0)
    if source is not None:
        steps.append(EncoderRepetitionPenaltyLogitsProcessor(config.encoder_repetition_penalty, *source))
    if _set(config.repetition_penalty, 1.0):
        steps.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty, mask))
    steps += _added_penalties(config, length, mask)
    if _set(config.no_repeat_ngram_size, 0):
        steps.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size, mask))
    source = _source(prompt, "encoder_no_repeat_ngram_size", config, 0)
    if source is not None:
        steps.append(EncoderNoRepeatNGramLogitsProcessor(config.encoder_no_repeat_ngram_size, *source))
    if config.bad_words_ids is not None:
        steps.append(NoBadWordsLogitsProcessor(config.bad_words_ids, eos))
    if eos is not None and _set(config.min_new_tokens, 0):
        steps.append(MinNewTokensLengthLogitsProcessor(length, config.min_new_tokens, eos))
    elif eos is not None and _set(config.min_length, 0):
        hidden = prompt.positions - length
        steps.append(MinLengthLogitsProcessor(max(config.min_length - hidden, 0), eos))
    if prefix_allowed_tokens_fn is not None:
        group = (config.num_beams or 1) // (config.num_beam_groups or 1)
        steps.append(PrefixConstrainedLogitsProcessor(prefix_allowed_tokens_fn, group))
    if config.forced_bos_token_id is not None:
        steps.append(ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id))
    if config.forced_eos_token_id is not None:
        steps.append(ForcedEOSTokenLogitsProcessor(max_length, config.forced_eos_token_id))
    if config.remove_invalid_values:
        steps.append(InfNanRemoveLogitsProcessor())
    if config.exponential_decay_length_penalty is not None:
        if eos is None:
            raise GenerationError("exponential_decay_length_penalty needs an eos_token_id, but none is set")
        steps.append(ExponentialDecayLengthPenalty(config.exponential_decay_length_penalty, eos, length))
    if config.suppress_tokens is not None:
        steps.append(SuppressTokensLogitsProcessor(config.suppress_tokens))
    if config.begin_suppress_tokens is not None:
        forced = length <= 1 and config.forced_bos_token_id is not None
        steps.append(SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, length + forced))
    if config.forced_decoder_ids is not None:
        steps.append(ForceTokensLogitsProcessor(config.forced_decoder_ids))
    steps = _with_custom(steps, custom)
    if config.do_sample:
        beams = (config.num_beams or 1) > 1
        steps += build_warpers(config, 1 + (len(id_list(eos)) if eos is not None else 1) if beams else 1)
        steps += _added_filters(config, generators)
    watermark = read_watermark(config.watermarking_config)
    if watermark is not None:
        steps.append(watermark.construct_processor(_vocabulary(model), prompt.ids.device))
    if config.renormalize_logits:
        steps.append(LogitNormalization())
    return LogitsProcessorList(steps)


def build_warpers(config: GenerationConfig, keep: int) -> list[LogitsProcessor]:
    """The filters of sampling; at least `keep` tokens survive each."""
    steps: list[LogitsProcessor] = []
    if _set(config.temperature, 1.0):
        steps.append(warpers.TemperatureLogitsWarper(config.temperature))
    if config.top_h is not None:
        steps.append(warpers.TopHLogitsWarper(config.top_h))
    if _set(config.top_k, 0):
        steps.append(warpers.TopKLogitsWarper(config.top_k, min_tokens_to_keep=keep))
    if _set(config.top_p, 1.0):
        steps.append(warpers.TopPLogitsWarper(config.top_p, min_tokens_to_keep=keep))
    if config.min_p is not None:
        steps.append(warpers.MinPLogitsWarper(config.min_p, min_tokens_to_keep=keep))
    if _set(config.typical_p, 1.0):
        steps.append(warpers.TypicalLogitsWarper(config.typical_p, min_tokens_to_keep=keep))
    if _set(config.epsilon_cutoff, 0.0):
        steps.append(warpers.EpsilonLogitsWarper(config.epsilon_cutoff, min_tokens_to_keep=keep))
    if _set(config.eta_cutoff, 0.0):
        steps.append(warpers.EtaLogitsWarper(config.eta_cutoff, min_tokens_to_keep=keep))
    return steps


def _added_penalties(config: GenerationConfig, length: int, mask: Tensor | None) -> list[LogitsProcessor]:
    steps: list[LogitsProcessor] = []
    presence, frequency = config.presence_penalty or 0.0, config.frequency_penalty or 0.0
    if presence or frequency:
        steps.append(penalties.PresenceFrequencyLogitsProcessor(presence, frequency, length))
    if _set(config.dry_multiplier, 0.0):
        steps.append(
            penalties.DRYLogitsProcessor(
                config.dry_multiplier,
                config.dry_base,
                config.dry_allowed_length,
                config.dry_sequence_breakers,
                config.dry_range or 0,
                mask,
            )
        )
    return steps


def _added_filters(
    config: GenerationConfig, generators: list[torch.Generator] | None
) -> list[LogitsProcessor]:
    steps: list[LogitsProcessor] = []
    if config.top_n_sigma is not None:
        steps.append(penalties.TopNSigmaLogitsWarper(config.top_n_sigma))
    if _set(config.xtc_probability, 0.0):
        ends = [] if config.eos_token_id is None else id_list(config.eos_token_id)
        steps.append(
            penalties.XTCLogitsWarper(config.xtc_probability, config.xtc_threshold, ends, generators)
        )
    if config.mirostat_tau is not None:
        steps.append(penalties.MirostatLogitsWarper(config.mirostat_tau, config.mirostat_eta))
    return steps


def set_rows(model: nn.Module, config: GenerationConfig, prompt: Prompt, max_length: int,
             custom: list[LogitsProcessor], prefix_allowed_tokens_fn: Callable | None,
             guidance: LogitsProcessor | None, task: Any, settings: Sequence[dict]) -> None:  # fmt: skip
    """Give the rows of a task processors of their own, by the dicts of `settings`."""
    if (config.num_beams or 1) > 1 or guidance is not None or prefix_allowed_tokens_fn is not None:
        raise GenerationError(
            "row_settings work without num_beams, guidance_scale and prefix_allowed_tokens_fn"
        )
    configs = row_configs(config, settings, prompt.rows)

    def build(own: GenerationConfig, rows: Tensor) -> LogitsProcessorList:
        part = replace(
            prompt, ids=prompt.ids[rows],
            mask=None if prompt.mask is None else prompt.mask[rows],
            source_ids=None if prompt.source_ids is None else prompt.source_ids[rows],
            source_mask=None if prompt.source_mask is None else prompt.source_mask[rows],
        )  # fmt: skip
        wide = (rows[:, None] * task.repeats + torch.arange(task.repeats, device=rows.device)).flatten()
        many = len(task.generators) > 1
        generators = [task.generators[i] for i in wide.tolist()] if many else task.generators
        return build_processors(model, own, part, max_length, custom, None, None, generators)

    task.processors = row_processors(configs, task.repeats, build, prompt.ids.device)
    task.do_sample = any(own.do_sample for own in configs)


def steps_of(name: str, given: Any) -> list:
    """The caller's own processors or criteria, as a list."""
    if given is None:
        return []
    if not isinstance(given, (list, tuple)) or not all(map(callable, given)):
        raise ArgumentError(f"{name} must be a list of functions of ids and scores, but is {given!r}")
    return list(given)


def told_limit(custom: list, limit: int, prompt: Prompt, context: int | None) -> int:
    """How many tokens may come at most: a MaxLengthCriteria of the caller's own goes before `limit`."""
    told = next((c.max_length for c in custom if type(c) is MaxLengthCriteria), None)
    if told is None:
        return limit
    asked = GenerationConfig(max_new_tokens=max(1, told - prompt.ids.shape[1]))
    return new_token_limit(asked, prompt, context, given=True)


def told_ends(custom: list) -> bool:
    """Whether the caller's own criteria say which tokens end a text."""
    return any(type(c) is EosTokenCriteria for c in custom)


def build_criteria(config: GenerationConfig, custom: list, tokenizer: Any) -> StoppingCriteriaList:
    """The criteria beside length and end tokens, which the loop itself watches."""
    custom = [c for c in custom if type(c) is not MaxLengthCriteria]
    criteria: list = []
    if config.max_time is not None:
        criteria.append(MaxTimeCriteria(config.max_time))
    if config.stop_strings is not None:
        if tokenizer is None:
            raise GenerationError("stop_strings need the model's tokenizer: pass tokenizer=... to generate")
        criteria.append(StopStringCriteria(tokenizer, config.stop_strings))
    return StoppingCriteriaList(_with_custom(criteria, custom))


def pad_token(config: GenerationConfig) -> int:
    """What fills finished rows: the padding token, else the first end token, else 0."""
    if config.pad_token_id is not None:
        return config.pad_token_id
    return id_list(config.eos_token_id)[0] if config.eos_token_id is not None else 0


def end_tokens(config: GenerationConfig, device: torch.device) -> Tensor | None:
    """The end tokens as a tensor (count,), or None."""
    return None if config.eos_token_id is None else torch.tensor(id_list(config.eos_token_id), device=device)


def _set(value: Any, off: float) -> bool:
    return value is not None and value != off


def _vocabulary(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return config.vocab_size


def _source(
    prompt: Prompt, name: str, config: GenerationConfig, off: float
) -> tuple[Tensor, Tensor | None] | None:
    """What a setting that is not `off` looks at: the ids that were read, and which are real."""
    if not _set(getattr(config, name), off):
        return None
    if prompt.source_ids is None:
        warnings.warn(f"{name} has no effect: the prompt has no token ids", stacklevel=2)
        return None
    return prompt.source_ids, prompt.source_mask


def _with_custom(default: list, custom: list) -> list:
    kinds = {type(c): c for c in custom}
    merged = [kinds.get(type(d), d) for d in default]
    return merged + [c for c in custom if not any(c is m for m in merged)]
