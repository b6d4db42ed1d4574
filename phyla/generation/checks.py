"""What the fields of a generation configuration may hold; everything here runs without torch."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from phyla.errors import GenerationError


def _number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False,
            whole: bool = False) -> tuple[Callable[[Any], bool], str]:  # fmt: skip
    kind: Any = Integral if whole else Real

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
            return False
        value = int(value) if whole else float(value)
        return (value > low if open_low else value >= low) and (value < high if open_high else value <= high)

    noun = "an integer" if whole else "a finite number"
    lower = "" if low == -math.inf else f" above {low:g}" if open_low else f" at least {low:g}"
    upper = "" if high == math.inf else f" and {'below' if open_high else 'at most'} {high:g}"
    return holds, f"{noun}{lower}{upper}"


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _ids(value: Any) -> bool:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return _is_id(value) or (isinstance(value, (list, tuple)) and len(value) > 0 and all(map(_is_id, value)))


def _id_list(value: Any) -> bool:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return isinstance(value, (list, tuple)) and all(_is_id(v) and v >= 0 for v in value)


def _words(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(v and _id_list(v) for v in value)


def _strings(value: Any) -> bool:
    strings = [value] if isinstance(value, str) else value
    return (
        isinstance(strings, (list, tuple))
        and len(strings) > 0
        and all(isinstance(s, str) and s for s in strings)
    )


def _sequence_bias(value: Any) -> bool:
    pairs = value.items() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list, tuple)) or not value:
        return False
    return all(len(p) == 2 and p[0] and _id_list(p[0]) and isinstance(p[1], Real) for p in pairs)


def _decay(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and _is_id(value[0])
        and isinstance(value[1], Real)
    )


_FLAG = (lambda value: isinstance(value, bool), "True or False")
_COUNT = _number(0, whole=True)
_POSITIVE = _number(1, whole=True)
_IDS = (_ids, "a token id or a list of token ids")
_ID_LIST = (_id_list, "a list of token ids")
_FRACTION = _number(0, 1)

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_length": _COUNT, "max_new_tokens": _COUNT, "min_length": _COUNT, "min_new_tokens": _COUNT,
    "early_stopping": (lambda v: isinstance(v, bool) or v == "never", 'True, False or "never"'),
    "max_time": _number(0), "stop_strings": (_strings, "a non-empty string or a list of them"),
    "do_sample": _FLAG, "num_beams": _POSITIVE, "num_beam_groups": _POSITIVE, "penalty_alpha": _number(0),
    "use_cache": _FLAG,
    "temperature": _number(0), "top_k": _COUNT, "top_p": _FRACTION, "min_p": _FRACTION,
    "typical_p": _number(0, 1, open_low=True), "epsilon_cutoff": _number(0, 1, open_high=True),
    "eta_cutoff": _number(0, 1, open_high=True), "diversity_penalty": _number(0),
    "repetition_penalty": _number(0, open_low=True), "encoder_repetition_penalty": _number(0, open_low=True),
    "length_penalty": _number(-math.inf),
    "no_repeat_ngram_size": _COUNT, "encoder_no_repeat_ngram_size": _COUNT,
    "bad_words_ids": (_words, "a non-empty list of lists of token ids"), "renormalize_logits": _FLAG,
    "forced_bos_token_id": _COUNT, "forced_eos_token_id": _IDS, "remove_invalid_values": _FLAG,
    "exponential_decay_length_penalty": (_decay, "a pair (start, factor)"),
    "suppress_tokens": _ID_LIST, "begin_suppress_tokens": _ID_LIST,
    "sequence_bias": (_sequence_bias, "a non-empty dict {(ids): bias} or list of [[ids], bias]"),
    "guidance_scale": _number(0), "num_return_sequences": _POSITIVE,
    "output_attentions": _FLAG, "output_hidden_states": _FLAG, "output_scores": _FLAG, "output_logits": _FLAG,
    "return_dict_in_generate": _FLAG,
    "pad_token_id": _number(-math.inf, whole=True), "bos_token_id": _IDS, "eos_token_id": _IDS,
    "decoder_start_token_id": _IDS,
    "presence_penalty": _number(-math.inf), "frequency_penalty": _number(-math.inf),
    "dry_multiplier": _number(0), "dry_base": _number(1), "dry_allowed_length": _POSITIVE,
    "dry_sequence_breakers": _ID_LIST, "dry_range": _COUNT, "xtc_probability": _FRACTION,
    "xtc_threshold": _FRACTION, "top_n_sigma": _number(0, open_low=True),
    "top_h": _number(0, 1, open_low=True), "max_cache_len": _POSITIVE,
    "assistant_ensemble_weight": _number(0, 1, open_low=True, open_high=True),
    "use_mtp": _FLAG, "speculation_type": (lambda v: v == "dflash", '"dflash"'),
    "mirostat_tau": _number(0, open_low=True), "mirostat_eta": _number(0, 1, open_low=True),
    "num_assistant_tokens": _number(1), "prompt_lookup_num_tokens": _POSITIVE,
    "prefill_chunk_size": _POSITIVE, "max_matching_ngram_size": _POSITIVE, "assistant_early_exit": _POSITIVE,
    "assistant_confidence_threshold": _FRACTION, "token_healing": _FLAG, "low_memory": _FLAG,
    "num_assistant_tokens_schedule": (
        lambda v: v in ("constant", "heuristic", "heuristic_transient"),
        '"constant", "heuristic" or "heuristic_transient"',
    ),
}  # fmt: skip

_HINTS = {
    "temperature": "; for greedy decoding leave do_sample=False",
    "top_k": "; 0 switches it off",
    "top_p": "; 1.0 switches it off",
    "max_new_tokens": "; 0 returns the prompt",
}


def plain_number(value: Any) -> Any:
    """A number that came as a tensor or an array without axes, as a plain one; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_field(name: str, value: Any) -> None:
    """Raise GenerationError unless `value` (None means unset) is in the range of the field."""
    if value is None or name not in _RULES:
        return
    holds, wanted = _RULES[name]
    if not holds(value):
        raise GenerationError(f"{name} must be {wanted}, but is {value!r}{_HINTS.get(name, '')}")


# what the classes of processors and criteria take beside fields
_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "ngram_size": _POSITIVE, "encoder_ngram_size": _POSITIVE, "ngram_len": _POSITIVE,
    "prompt_length_to_skip": _COUNT, "begin_index": _COUNT, "context_history_size": _COUNT,
    "input_start_len": _COUNT, "semantic_vocab_size": _COUNT, "codebook_size": _POSITIVE,
    "sampling_table_size": _POSITIVE, "sampling_table_seed": _number(-math.inf, whole=True),
    "hashing_key": _number(-math.inf, whole=True), "context_width": _POSITIVE, "bias": _number(-math.inf),
    "greenlist_ratio": _number(0, 1, open_low=True, open_high=True), "temperature": _number(0, open_low=True),
    "typical_p": _number(0, 1, open_low=True, open_high=True), "penalty": _number(0, open_low=True),
    "epsilon_cutoff": _number(0, 1, open_low=True, open_high=True),
    "eta_cutoff": _number(0, 1, open_low=True, open_high=True), "guidance_scale": _number(1, open_low=True),
    "min_eos_p": _number(0, open_low=True), "num_beam_groups": _number(2, whole=True),
    "diversity_penalty": _number(0, open_low=True),
    "min_tokens_to_keep": _POSITIVE, "prefix_allowed_tokens_fn": (callable, "a function"),
}  # fmt: skip


def check_argument(name: str, value: Any) -> None:
    """Raise GenerationError unless the argument of a class is in its range; None is out of it."""
    holds, wanted = _ARGUMENTS[name] if name in _ARGUMENTS else _RULES[name]
    if value is None or not holds(value):
        raise GenerationError(f"{name} must be {wanted}, but is {value!r}{_HINTS.get(name, '')}")


def check_relations(config: Any) -> None:
    """Raise GenerationError when fields of a configuration contradict each other."""
    beams, groups = config.num_beams or 1, config.num_beam_groups or 1
    if config.do_sample and config.temperature is not None and not config.temperature > 0:
        raise GenerationError(
            f"temperature must be above 0 when do_sample=True, but is {config.temperature!r}; "
            "for greedy decoding leave do_sample=False"
        )
    if config.num_return_sequences is not None and config.num_return_sequences > 1:
        if beams == 1 and not config.do_sample:
            raise GenerationError(
                f"num_return_sequences must be 1 for greedy decoding, but is {config.num_return_sequences}: "
                "all would be the same; set do_sample=True or num_beams"
            )
        if 1 < beams < config.num_return_sequences:
            raise GenerationError(
                f"num_return_sequences must be at most num_beams ({beams}), but is "
                f"{config.num_return_sequences}"
            )
    if beams % groups:
        raise GenerationError(f"num_beams must be a multiple of num_beam_groups ({groups}), but is {beams}")
