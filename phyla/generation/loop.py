"""`generate`: one call from settings and prompt to token ids."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.config import DEFAULTS, GenerationConfig
from phyla.generation.forward import Forward
from phyla.generation.guidance import guidance_processor
from phyla.generation.modes import check_supported, generation_mode
from phyla.generation.plan import (
    build_criteria,
    build_processors,
    context_length,
    end_tokens,
    merge_config,
    new_token_limit,
    pad_token,
)
from phyla.generation.prompt import Prompt, read_prompt, split_inputs
from phyla.generation.search import Record, Task, decode


def generate(
    model: nn.Module,
    inputs: Any = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: list | None = None,
    stopping_criteria: list | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    synced_gpus: bool | None = None,
    assistant_model: Any = None,
    streamer: Any = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    use_model_defaults: bool | None = None,
    *,
    tokenizer: Any = None,
    assistant_tokenizer: Any = None,
    seed: int | Sequence[int] | None = None,
    truncate: str | None = None,
    **settings: Any,
) -> Any:
    """Token ids (batch * num_return_sequences, length) that continue the prompt `inputs`, ids (batch, length).

    Decoder-only models return the prompt, as it was given, with the new tokens behind it (only new tokens for a prompt
    of `inputs_embeds`); encoder-decoders return the decoder's ids from the start token on. Rows that finish early are
    filled with pad_token_id (else the first end token). With return_dict_in_generate=True the result is an output
    object with the public fields.

    Prompts may be padded on the left or the right: a row gives the same tokens as alone. Without an attention_mask,
    padding is told from pad_token_id, unless that is also an end token: then everything counts as text. Vectors go in
    as inputs_embeds; images and the like under the model's names for them.

    `settings` are fields of GenerationConfig, which go before those of `generation_config`, which go before the
    model's own; and inputs of the model. Any other name is an UnknownArgumentError. Without a length, 20 tokens
    (max_length=20) are generated. `seed` makes sampling repeatable: a number for the call, or one for each returned
    row, which then does not depend on the other rows; without it torch's global generator is used, drawing as the
    reference does. truncate="left" cuts a prompt that is too long for the context at its start. `tokenizer` serves
    stop_strings. `streamer` gets the prompt, then the tokens of each step (rows,).

    Raises GenerationError for settings, ArgumentError for prompts, NonFiniteLogitsError where the model computes NaN.
    """
    can_generate = getattr(model, "can_generate", None)
    if can_generate is not None and not can_generate():
        raise GenerationError(
            f"{type(model).__name__} cannot generate: it has no head for next tokens; load the checkpoint as "
            "AutoModelForCausalLM or AutoModelForSeq2SeqLM"
        )
    with torch.no_grad():
        config = merge_config(model, generation_config, use_model_defaults)
        asked = {name: value for name, value in settings.items() if name in DEFAULTS or hasattr(config, name)}
        config.update(**asked)
        config.validate()
        named = split_inputs(model, {k: v for k, v in settings.items() if k not in asked})
        mode = generation_mode(config, assistant_model)
        check_supported(config, mode)
        if synced_gpus:
            raise GenerationError("synced_gpus=True is not supported")
        prompt = read_prompt(model, inputs, named, config)
        length_given = any(settings.get(n) is not None for n in ("max_new_tokens", "max_length")) or (
            generation_config is not None and generation_config.max_new_tokens is not None
        )
        context, encoder_decoder = (
            context_length(model.config),
            bool(getattr(model.config, "is_encoder_decoder", False)),
        )
        if truncate is not None:
            prompt = _truncated(prompt, truncate, config, context, encoder_decoder)
        limit = new_token_limit(config, prompt, context, length_given)
        guidance = guidance_processor(model, config, negative_prompt_ids, negative_prompt_attention_mask)
        # born outside of inference mode, so that what is returned may be trained on
        task = _task(config, prompt, limit, streamer, seed, encoder_decoder)
        task.processors = build_processors(
            model,
            config,
            prompt,
            task.start + limit,
            logits_processor or [],
            prefix_allowed_tokens_fn,
            guidance,
        )
        task.criteria = build_criteria(config, stopping_criteria or [], tokenizer)
        forward = Forward(
            model, prompt, prompt.positions + limit, config.use_cache is not False, task.pad_id,
            {"output_attentions": task.record is not None and bool(config.output_attentions),
             "output_hidden_states": task.record is not None and bool(config.output_hidden_states)},
        )  # fmt: skip
    # tensors born in inference mode may not take part in later training or be written to: nothing that leaves this
    # call, or that the caller gave to be filled, is touched in it
    leaves = task.record is not None or prompt.cache is not None
    try:
        if streamer is not None:
            streamer.put(task.given.cpu())
        with torch.no_grad() if leaves else torch.inference_mode():
            length = decode(forward, task)
    except BaseException as error:
        fail = getattr(streamer, "fail", None)
        if fail is not None:
            fail(error)
        raise
    if streamer is not None:
        streamer.end()
    sequences = torch.cat([task.given, task.ids[:, task.start : length]], dim=1)
    return sequences if task.record is None else task.record.output(sequences, forward)


def _task(
    config: GenerationConfig, prompt: Prompt, limit: int, streamer: Any, seed: Any, encoder_decoder: bool
) -> Task:
    repeats = config.num_return_sequences or 1
    given, ids = (
        x.repeat_interleave(repeats, dim=0) if repeats > 1 else x for x in (prompt.given, prompt.ids)
    )
    rows, start = ids.shape
    pad_id = pad_token(config)
    buffer = torch.full((rows, start + limit), pad_id, dtype=torch.long, device=ids.device)
    buffer[:, :start] = ids
    record = None
    if config.return_dict_in_generate:
        record = Record(bool(config.output_scores), bool(config.output_logits), bool(config.output_attentions),
                        bool(config.output_hidden_states), encoder_decoder)  # fmt: skip
    return Task(
        ids=buffer, given=given, start=start, limit=limit, repeats=repeats, pad_id=pad_id,
        eos=end_tokens(config, ids.device), do_sample=bool(config.do_sample),
        allow_nonfinite=bool(config.remove_invalid_values), generators=_generators(seed, rows, ids.device),
        streamer=streamer, record=record,
    )  # fmt: skip


def _generators(seed: int | Sequence[int] | None, rows: int, device: torch.device) -> list[torch.Generator]:
    if seed is None:
        return []
    seeds = list(seed) if isinstance(seed, Sequence) else [seed]
    if isinstance(seed, Sequence) and len(seeds) != rows:
        raise ArgumentError(
            f"seed must be one number, or one for each of {rows} returned rows, but has {len(seeds)}"
        )
    if not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise ArgumentError(f"seed must be an integer or a list of integers, but is {seed!r}")
    return [torch.Generator(device).manual_seed(s) for s in seeds]


def _truncated(
    prompt: Prompt, side: str, config: GenerationConfig, context: int | None, encoder_decoder: bool
) -> Prompt:
    """The prompt without its oldest ids, so that the new tokens fit the context."""
    if side != "left":
        raise ArgumentError(f'truncate must be "left" or None, but is {side!r}')
    if encoder_decoder or prompt.positions != prompt.ids.shape[1] or "inputs_embeds" in prompt.first:
        raise GenerationError("truncate='left' works for prompts of token ids of decoder-only models alone")
    new = config.max_new_tokens if config.max_new_tokens is not None else DEFAULTS["max_length"]
    if context is None or prompt.positions + new <= context:
        return prompt
    keep = context - new
    if keep < 1:
        raise GenerationError(
            f"max_new_tokens must be below the context of {context} positions, but is {new}"
        )
    mask = None if prompt.mask is None else prompt.mask[:, -keep:]
    ids = prompt.ids[:, -keep:]
    first = {
        k: v[:, -keep:] if k in ("token_type_ids", "position_ids") else v for k, v in prompt.first.items()
    }
    return replace(prompt, ids=ids, mask=mask, positions=keep, first=first, source_ids=ids, source_mask=mask)
