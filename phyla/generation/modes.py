"""Which strategy a configuration asks for, and which of them there are."""

from enum import Enum
from typing import Any

from phyla.errors import GenerationError
from phyla.generation.caches import IMPLEMENTATIONS
from phyla.generation.config import GenerationConfig


class GenerationMode(str, Enum):
    """The strategies, under their public names."""

    CONTRASTIVE_SEARCH = "contrastive_search"
    GREEDY_SEARCH = "greedy_search"
    SAMPLE = "sample"
    ASSISTED_GENERATION = "assisted_generation"
    DOLA_GENERATION = "dola_generation"
    BEAM_SEARCH = "beam_search"
    BEAM_SAMPLE = "beam_sample"
    CONSTRAINED_BEAM_SEARCH = "constrained_beam_search"
    GROUP_BEAM_SEARCH = "group_beam_search"


_BEAMS = (
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.GROUP_BEAM_SEARCH,
    GenerationMode.CONSTRAINED_BEAM_SEARCH,
)


def generation_mode(config: GenerationConfig, assistant_model: Any = None) -> GenerationMode:
    """The strategy that the fields of `config` select."""
    contrastive = config.penalty_alpha and config.penalty_alpha > 0 and config.top_k and config.top_k > 1
    if config.constraints is not None or config.force_words_ids is not None:
        mode = GenerationMode.CONSTRAINED_BEAM_SEARCH
    elif (config.num_beams or 1) > 1:
        sampled = GenerationMode.BEAM_SAMPLE if config.do_sample else GenerationMode.BEAM_SEARCH
        mode = GenerationMode.GROUP_BEAM_SEARCH if (config.num_beam_groups or 1) > 1 else sampled
    elif config.do_sample:
        mode = GenerationMode.SAMPLE
    else:
        mode = GenerationMode.CONTRASTIVE_SEARCH if contrastive else GenerationMode.GREEDY_SEARCH
    drafts = (assistant_model, config.prompt_lookup_num_tokens, config.assistant_early_exit)
    if any(d is not None for d in drafts) or config.use_mtp:
        why = "a draft (assistant_model, prompt lookup, early exit, use_mtp)"
        return _extended(mode, GenerationMode.ASSISTED_GENERATION, why)
    if config.dola_layers is not None:
        return _extended(mode, GenerationMode.DOLA_GENERATION, "dola_layers")
    return mode


def _extended(mode: GenerationMode, extended: GenerationMode, why: str) -> GenerationMode:
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise GenerationError(
            f"{why} goes with greedy decoding or sampling, but the settings ask for {mode.value}"
        )
    return extended


def check_supported(config: GenerationConfig, mode: GenerationMode) -> None:
    """Raise GenerationError for settings that do not go together."""
    if config.cache_implementation not in (None, *IMPLEMENTATIONS):
        raise GenerationError(
            f"cache_implementation must be one of {IMPLEMENTATIONS}, but is {config.cache_implementation!r}"
        )
    if mode == GenerationMode.CONSTRAINED_BEAM_SEARCH:
        plain = (config.num_beams or 1) > 1 and not config.do_sample and (config.num_beam_groups or 1) == 1
        if not plain:
            raise GenerationError(
                "constraints and force_words_ids need num_beams above 1, do_sample=False and "
                "num_beam_groups=1, but "
                f"num_beams is {config.num_beams}, do_sample {config.do_sample} and num_beam_groups "
                f"{config.num_beam_groups}"
            )
    if mode == GenerationMode.GROUP_BEAM_SEARCH:
        if config.do_sample:
            raise GenerationError("num_beam_groups above 1 works with do_sample=False alone")
        if not config.diversity_penalty:
            raise GenerationError(
                "num_beam_groups above 1 needs a diversity_penalty above 0: without it all groups are "
                "the same"
            )


def has_beams(mode: GenerationMode) -> bool:
    """Whether a strategy follows several beams a row."""
    return mode in _BEAMS
