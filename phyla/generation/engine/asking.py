"""From what `submit` is given to a request: its prompt, its draft, the rows that it needs beside its text."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.fusion import ImageText
from phyla.errors import ArgumentError, GenerationError
from phyla.generation.config import DEFAULTS, GenerationConfig
from phyla.generation.drafts import check_assistant, early_exit, explicit
from phyla.generation.engine.guesses import Draft, Lookup, Shadows, Told
from phyla.generation.engine.picking import ELSEWHERE
from phyla.generation.engine.request import Row
from phyla.generation.engine.setups import with_setup
from phyla.generation.forward import Forward
from phyla.generation.healing import healed_inputs
from phyla.generation.prompt import Prompt, main_input, read_prompt, split_inputs, truncated, vocabulary_size

# inputs of the first step that a single text needs none of
_IDLE = ("attention_mask", "decoder_attention_mask")


def parted(
    model: Any, config: GenerationConfig, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of the request, inputs of the model) in what a caller names.

    Raises GenerationError for what `generate` alone can do, UnknownArgumentError for names nobody knows.
    """
    for name, value in settings.items():
        if name in ELSEWHERE and value is not None:
            raise GenerationError(f"the engine has no {name}: {ELSEWHERE[name]}")
    fields = {n: v for n, v in settings.items() if n in DEFAULTS or hasattr(config, n)}
    rest = {n: v for n, v in settings.items() if n not in fields and n not in ELSEWHERE}
    return fields, split_inputs(model, rest)


def read_request(
    model: Any, prompt: Any, named: dict[str, Any], config: GenerationConfig, tokenizer: Any,
    truncate: str | None, context: int | None,
) -> Prompt:  # fmt: skip
    """The prompt of one text; `prompt` is the main input, and `named` the model's others."""
    named = dict(named)
    if isinstance(prompt, Mapping):
        raise ArgumentError("a prompt must be token ids, but is a mapping; write submit(**inputs)")
    main = main_input(model)
    if prompt is None:
        prompt = named.pop(main, None)
    mask = named.pop("attention_mask", None)
    if prompt is not None and main == "input_ids":
        prompt = _one_text(prompt, mask)
        mask = torch.ones_like(prompt)  # one text has no padding, whatever its ids
    elif mask is not None and not bool(torch.as_tensor(mask).all()):
        raise GenerationError("attention_mask must be 1 everywhere for prompts that are no token ids")
    if config.token_healing:
        prompt, named = healed_inputs(model, prompt, named, tokenizer)
        prompt = _one_text(prompt, named.pop("attention_mask"))
        mask = torch.ones_like(prompt)
    given = named if mask is None else {**named, "attention_mask": mask}
    if prompt is None and main == "input_ids" and named.get("inputs_embeds") is None and len(named) == 0:
        raise ArgumentError("a prompt must be one list of token ids, but there is none")
    with torch.no_grad():
        read = read_prompt(model, prompt, given, config)
    if read.rows != 1:
        raise ArgumentError(f"a request must be one text, but its inputs have {read.rows} rows")
    if "lang_ids" in read.steady:
        raise GenerationError(
            "requests share the model's default language: leave lang_ids out, or use generate"
        )
    if read.mask is not None or read.steady.get("attention_mask") is not None:
        steady = read.steady.get("attention_mask")
        if (read.mask is not None and not bool(read.mask.all())) or (
            steady is not None and not bool(steady.all())
        ):
            raise GenerationError("a request must have no padding: cut it off, or use generate")
    return read if truncate is None else truncated(read, truncate, config, context)


def _one_text(prompt: Any, mask: Any) -> Tensor:
    """The ids (1, length) of one text without its padding."""
    ids = prompt if isinstance(prompt, Tensor) else torch.as_tensor(prompt)
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or len(ids) != 1:
        raise ArgumentError(f"a prompt must be one list of token ids, but has shape {tuple(ids.shape)}")
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
        raise GenerationError(
            f"{type(model).__name__} needs more than a token and its position at each step: use generate"
        )
    row.shift = 0 if places is None else int(places) - row.fixed
    cache.adopt(text, forward.cache, row.fixed)
    return forward.logits(out)


def draft_of(
    engine: Any, config: GenerationConfig, given: set[str], assistant: Any, adapter: str | None, source: Any
) -> Draft | None:
    """Where a request's candidates come from: its text, a model, the model's first layers, or the caller."""
    if source is not None:
        return Told(source)
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
        check_assistant(model, assistant, False)
        if bool(getattr(assistant.config, "is_encoder_decoder", False)) != engine.encoder:
            raise GenerationError("assistant_model must be of the model's kind: with an encoder, or without")
        if engine.encoder and assistant is not model:
            raise GenerationError("an encoder-decoder's draft is the model itself: use generate for others")
    schedule = explicit(model if assistant is None else assistant, config, given)
    key = (*key, schedule.count, schedule.kind, schedule.threshold)
    if key not in engine.drafts:
        if key[0] == "early":
            assistant = early_exit(model, config.assistant_early_exit)
        own = type(engine)(
            assistant, max_batch_tokens=engine.scheduler.most_tokens,
            max_requests=engine.scheduler.most_rows, page_size=engine.pool.size,
        )  # fmt: skip
        setup, _ = with_setup(assistant, adapter, lambda: None)
        size = vocabulary_size(model)
        if size is None:
            raise GenerationError(f"a draft needs the vocabulary's size, which {type(model).__name__} lacks")
        engine.drafts[key] = Shadows(own, schedule, setup, size)
    return engine.drafts[key]


def negative_ids(config: GenerationConfig, ids: list[int], negative: Any, encoder: bool) -> list[int] | None:
    """The prompt of the unguided text, or None where nothing guides."""
    if config.guidance_scale is None or config.guidance_scale == 1:
        if negative is not None:
            raise GenerationError("negative_prompt_ids need a guidance_scale other than 1, but none is set")
        return None
    if encoder:
        raise GenerationError("guidance_scale with a negative prompt works for decoder-only models alone")
    return ids[-1:] if negative is None else _one_text(negative, None)[0].tolist()
