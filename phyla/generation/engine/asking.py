"""From what `submit` is given to a request: its prompt, its draft, the rows that it needs beside its text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.fusion import ImageText
from phyla.errors import ArgumentError, GenerationError
from phyla.generation.config import GenerationConfig
from phyla.generation.drafts import check_assistant, early_exit, explicit
from phyla.generation.engine.guesses import Draft, Lookup, Retold, Shadows, Told
from phyla.generation.engine.picking import ELSEWHERE
from phyla.generation.engine.request import Row
from phyla.generation.engine.setups import Apart, check_paged, with_setup
from phyla.generation.forward import Forward
from phyla.generation.healing import healed_inputs
from phyla.generation.prompt import (
    ALONG_ROWS,
    Prompt,
    main_input,
    read_prompt,
    split_inputs,
    truncated,
    vocabulary_size,
)

# inputs of the first step that a single text needs none of
_IDLE = ("attention_mask", "decoder_attention_mask")


@dataclass
class Asked:
    """What `submit` was given. settings: fields of GenerationConfig; named: inputs of the model; config: both
    configurations and the settings in one.
    """

    prompt: Any
    generation_config: GenerationConfig | None
    settings: dict[str, Any]
    named: dict[str, Any]
    config: GenerationConfig
    seed: int
    logits_processor: list | None
    stopping_criteria: list | None
    allowed: Any
    tokenizer: Any
    grammar: Any
    adapter_names: Any
    assistant_model: Any
    assistant_tokenizer: Any
    assistant_adapter: str | None
    candidate_generator: Any
    negative_prompt_ids: Any
    truncate: str | None
    use_model_defaults: bool | None

    @property
    def given(self) -> set[str]:
        """The settings that the caller named."""
        own = self.generation_config
        return {*self.settings, *(own._given if own is not None else ())}

    @property
    def drafted(self) -> bool:
        """Whether a draft is named."""
        drafts = (self.assistant_model, self.assistant_adapter, self.candidate_generator)
        return any(draft is not None for draft in drafts)

    @property
    def guided(self) -> bool:
        """Whether the text is pushed away from another."""
        return self.config.guidance_scale not in (None, 1)

    def has_length(self) -> bool:
        """Whether the request itself says how long its text may get."""
        own = self.generation_config
        return any(self.settings.get(n) is not None for n in ("max_new_tokens", "max_length")) or (
            own is not None and own.max_new_tokens is not None
        )

    def for_generate(self) -> dict[str, Any]:
        """The arguments of `generate` beside the prompt and other inputs of the model."""
        config, seed, negative = self.config, None, self.negative_prompt_ids
        if config.do_sample:  # as the texts of a request in pages have them
            count = config.num_return_sequences or 1
            seed = self.seed if (config.num_beams or 1) > 1 else [self.seed + i for i in range(count)]
        wanted = bool(config.output_scores or config.output_logits)
        kept = {
            "return_dict_in_generate": wanted, "output_scores": wanted, "output_logits": wanted,
            "output_attentions": False, "output_hidden_states": False,
        }  # fmt: skip
        return {
            **self.settings, **kept, "generation_config": self.generation_config,
            "logits_processor": self.logits_processor, "stopping_criteria": self.stopping_criteria,
            "prefix_allowed_tokens_fn": self.allowed, "assistant_model": self.assistant_model,
            "negative_prompt_ids": None if negative is None else _one_text(negative, None),
            "use_model_defaults": self.use_model_defaults, "tokenizer": self.tokenizer,
            "assistant_tokenizer": self.assistant_tokenizer, "assistant_adapter": self.assistant_adapter,
            "seed": seed, "truncate": self.truncate, "grammar": self.grammar,
            "candidate_generator": self.candidate_generator,
        }  # fmt: skip


def parted(
    model: Any, config: GenerationConfig, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of the request, inputs of the model) in what a caller names.

    Raises GenerationError for what `generate` alone can do, UnknownArgumentError for names nobody knows.
    """
    for name, value in settings.items():
        if name in ELSEWHERE and value is not None:
            raise GenerationError(f"the engine has no {name}: {ELSEWHERE[name]}")
    fields = {n: v for n, v in settings.items() if config.knows(n)}
    rest = {n: v for n, v in settings.items() if n not in fields and n not in ELSEWHERE}
    return fields, split_inputs(model, rest)


def one_prompt(model: Any, prompt: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the main input of one text, its others): ids have shape (1, length) and no padding."""
    named = dict(named)
    if isinstance(prompt, Mapping):
        raise ArgumentError("a prompt must be token ids, but is a mapping; write submit(**inputs)")
    main = main_input(model)
    if prompt is None:
        prompt = named.pop(main, None)
    if prompt is not None and main == "input_ids":
        prompt = _one_text(prompt, named.get("attention_mask"))
        named["attention_mask"] = torch.ones_like(prompt)  # one text has no padding, whatever its ids
    if prompt is None and main == "input_ids" and named.get("inputs_embeds") is None and len(named) == 0:
        raise ArgumentError("a prompt must be one list of token ids, but there is none")
    return prompt, named


def read_request(model: Any, asked: Asked, context: int | None) -> Prompt:
    """The prompt of one text that is to stand in pages. Raises Apart where it cannot."""
    prompt, named = one_prompt(model, asked.prompt, asked.named)
    for name in (*ALONG_ROWS, "past_key_values", "lang_ids"):
        if named.get(name) is not None:
            raise Apart(f"requests in pages have no {name} of their own")
    if asked.config.token_healing:
        prompt, named = healed_inputs(model, prompt, named, asked.tokenizer)
        prompt, named = one_prompt(model, prompt, named)
    with torch.no_grad():
        read = read_prompt(model, prompt, named, asked.config)
    if read.rows != 1:
        raise ArgumentError(f"a request must be one text, but its inputs have {read.rows} rows")
    masks = (read.mask, read.steady.get("attention_mask"))
    if any(mask is not None and not bool(mask.all()) for mask in masks):
        raise Apart("a request in pages has no padding")
    return read if asked.truncate is None else truncated(read, asked.truncate, asked.config, context)


def _one_text(prompt: Any, mask: Any) -> Tensor:
    """The ids (1, length) of one text without its padding."""
    try:
        ids = prompt if isinstance(prompt, Tensor) else torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"a prompt must be one list of token ids, but is a {type(prompt).__name__}: {error}"
        ) from None
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or len(ids) != 1:
        raise ArgumentError(f"a prompt must be one list of token ids, but has shape {tuple(ids.shape)}")
    if ids.shape[1] == 0:
        raise ArgumentError("a prompt must hold at least one token id, but is empty")
    if mask is None:
        return ids
    kept = torch.as_tensor(mask).reshape(-1).to(ids.device) != 0
    if kept.shape[0] != ids.shape[1]:
        raise ArgumentError(f"attention_mask must have {ids.shape[1]} entries, but has {kept.shape[0]}")
    return ids[:, kept]


def is_whole(read: Prompt) -> bool:
    """Whether a prompt holds more than ids, and so is read as a whole (images, vectors)."""
    return bool({n for n, v in read.first.items() if v is not None} - set(_IDLE)) or (
        read.positions != read.ids.shape[1]
    )


def read_whole(model: Any, row: Row, cache: Any, text: Any) -> Tensor:
    """Scores (1, V) behind a prompt that is no list of ids, whose memory goes to the pages of `text`."""
    forward = Forward(model, row.given, row.fixed + 1, True, pad_id=0)
    out = forward(row.given.ids)
    left = {n: v for n, v in forward.first.items() if v is not None}
    types = left.get("token_type_ids")
    if types is not None and not bool(types.any()):  # as without any
        del left["token_type_ids"]
    places = left.pop(f"{forward.prefix}position_ids", None)
    if isinstance(model.backbone, ImageText):
        left.pop("token_type_ids", None)  # they told images from text, and both are read
    if left or (places is not None and tuple(places.shape) != (1, 1)):
        raise Apart(f"{type(model).__name__} needs more than a token and its position at each step")
    row.shift = 0 if places is None else int(places) - row.fixed
    cache.adopt(text, forward.cache, row.fixed)
    return forward.logits(out)


def draft_of(engine: Any, asked: Asked) -> Draft | None:
    """Where a request's candidates come from: its text, a model, the model's first layers, or the caller.

    Raises Apart for those that need a call of their own.
    """
    config, assistant, adapter = asked.config, asked.assistant_model, asked.assistant_adapter
    if asked.candidate_generator is not None:
        return Told(asked.candidate_generator, _words(engine.model))
    if config.assistant_ensemble_weight is not None:
        raise Apart("a draft in pages changes nothing")
    if config.prompt_lookup_num_tokens is not None:
        return Lookup(config.prompt_lookup_num_tokens, config.max_matching_ngram_size)
    model = engine.model
    key: tuple[Any, ...] = (id(assistant), adapter)
    if config.assistant_early_exit is not None:
        key = ("early", config.assistant_early_exit)
    elif assistant is None and adapter is None:
        return None
    else:
        assistant = model if assistant is None else assistant
        check_assistant(model, assistant, asked.assistant_tokenizer is not None)
        if asked.assistant_tokenizer is not None:
            return _retold(engine, asked)
        if bool(getattr(assistant.config, "is_encoder_decoder", False)) != engine.encoder:
            raise Apart("in pages a draft is of the model's kind: with an encoder, or without")
        if engine.encoder and assistant is not model:
            raise Apart("in pages an encoder-decoder's draft is the model itself")
    schedule = explicit(model if assistant is None else assistant, config, asked.given)
    key = (*key, schedule.count, schedule.kind, schedule.threshold)
    if key not in engine.drafts:
        if key[0] == "early":
            assistant = early_exit(model, config.assistant_early_exit)
        own = type(engine)(
            assistant, max_batch_tokens=engine.scheduler.most_tokens,
            max_requests=engine.scheduler.most_rows, page_size=engine.pool.size,
        )  # fmt: skip
        setup, _ = with_setup(assistant, adapter, lambda: check_paged(assistant))
        engine.drafts[key] = Shadows(own, schedule, setup, _words(model))
    return engine.drafts[key]


def _retold(engine: Any, asked: Asked) -> Retold:
    """A draft of another vocabulary, whose best tokens come by way of the text."""
    if asked.config.do_sample or engine.encoder or asked.assistant_adapter is not None:
        raise Apart("in pages a draft of another vocabulary goes with greedy decoding")
    if asked.tokenizer is None:
        raise GenerationError("assistant_tokenizer needs the model's own: pass tokenizer= as well")
    schedule = explicit(asked.assistant_model, asked.config, asked.given)
    tokenizers = (asked.tokenizer, asked.assistant_tokenizer)
    return Retold(asked.assistant_model, *tokenizers, schedule, _words(engine.model))


def _words(model: Any) -> int:
    size = vocabulary_size(model)
    if size is None:
        raise GenerationError(f"a draft needs the vocabulary's size, which {type(model).__name__} lacks")
    return size


def negative_ids(config: GenerationConfig, ids: list[int], negative: Any, encoder: bool) -> list[int] | None:
    """The prompt of the unguided text, or None where nothing guides."""
    if config.guidance_scale is None or config.guidance_scale == 1:
        if negative is not None and config.guidance_scale is None:
            raise GenerationError("negative_prompt_ids need a guidance_scale, but none is set")
        return None
    if encoder:
        raise GenerationError("guidance_scale with a negative prompt works for decoder-only models alone")
    return ids[-1:] if negative is None else _one_text(negative, None)[0].tolist()
