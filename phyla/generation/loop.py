"""`generate`: one call from settings and prompt to token ids."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import GenerationError
from phyla.generation.beams import BeamSettings, Found, beam_search
from phyla.generation.config import DEFAULTS, GenerationConfig
from phyla.generation.constraints import read_constraints
from phyla.generation.forward import Forward
from phyla.generation.grouped import grouped_search
from phyla.generation.guidance import guidance_processor
from phyla.generation.healing import healed_inputs
from phyla.generation.modes import GenerationMode, check_supported, generation_mode, has_beams
from phyla.generation.own import own_loop
from phyla.generation.plan import (
    build_criteria,
    build_processors,
    context_length,
    merge_config,
    new_token_limit,
    set_rows,
)
from phyla.generation.prompt import read_prompt, split_inputs, truncated
from phyla.generation.scores import compute_transition_scores
from phyla.generation.settled import SettledBeams
from phyla.generation.strategies import Sources, forward_class, needed_states, prepare
from phyla.generation.task import Task, make_task

# strategies whose every step after the prompt is one token a row
_ONE_BY_ONE = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def adapted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a model's adapters prepare a call: rows of their own (`adapter_names`), copies of the rows."""

    @functools.wraps(function)
    def call(model: nn.Module, *args: Any, **named: Any) -> Any:
        if "adapters" in getattr(model, "_modules", ()):
            return model._generate_with_adapters(function, args, named)  # type: ignore[operator]
        return function(model, *args, **named)

    return call


def row_by_row(function: Callable[..., Any]) -> Callable[..., Any]:
    """With batch_invariant=True, let each row go through the engine instead."""

    @functools.wraps(function)
    def call(model: nn.Module, *args: Any, batch_invariant: bool = False, **named: Any) -> Any:
        if not batch_invariant:
            return function(model, *args, **named)
        from phyla.generation.invariant import generate_alike

        names = list(inspect.signature(function).parameters)[1:]
        return generate_alike(model, **dict(zip(names, args, strict=False)), **named)

    return call


@row_by_row
@adapted
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
    assistant_adapter: str | None = None,
    seed: int | Sequence[int] | None = None,
    truncate: str | None = None,
    row_settings: Sequence[dict[str, Any]] | None = None,
    grammar: Any = None,
    candidate_generator: Any = None,
    custom_generate: Callable[..., Any] | None = None,
    batch_invariant: bool = False,
    **settings: Any,
) -> Any:
    """Token ids (batch * num_return_sequences, length) that continue the prompt `inputs`, ids (batch,
    length).

    Decoder-only models return the prompt, as it was given, with the new tokens behind it (only new tokens for
    a prompt of `inputs_embeds`); encoder-decoders return the decoder's ids from the start token on. Rows that
    finish early are filled with pad_token_id (else the first end token). With return_dict_in_generate=True
    the result is an output object with the public fields.

    Prompts may be padded on the left or the right: a row gives the same tokens as alone. Without an
    attention_mask, padding is told from pad_token_id, unless that is also an end token: then everything
    counts as text. Vectors go in as inputs_embeds; images and the like under the model's names for them.

    `settings` are fields of GenerationConfig, which go before those of `generation_config`, which go before
    the model's own; and inputs of the model. Any other name is an UnknownArgumentError. Without a length, 20
    tokens (max_length=20) are generated. `seed` makes sampling repeatable: a number for the call, or one for
    each returned row, which then does not depend on the other rows; without it torch's global generator is
    used. truncate="left" cuts a prompt that is too long for the context at its
    start. `row_settings` has a dict for each row of the prompt with what it samples by, beside the others.
    `grammar` (a Grammar, a JSON Schema, or a list with one for each row) is what the new text must be; it is
    whole also where the length ends it.
    `tokenizer` serves grammars, stop_strings, token_healing and drafts of another vocabulary (with
    `assistant_tokenizer`). A draft is `assistant_model`, prompt_lookup_num_tokens or assistant_early_exit;
    sampling with a `seed` and a draft gives the same again, but not what it gives without.
    `assistant_adapter` names an adapter of the assistant, which may be the model itself ("__base__": none):
    it drafts with that, and the adapters that are active check. `candidate_generator` is a draft of the
    caller's own, `custom_generate` a whole loop (see phyla.generation.own). `streamer` gets the prompt, then
    the tokens of each step (rows,).
    `batch_invariant` runs each row by itself on the engine: its bits do not depend on the others.

    `synced_gpus` is for processes that share out one model's weights: it is an error with more than one.

    Raises GenerationError for settings, ArgumentError for prompts, NonFiniteLogitsError where the model
    computes NaN.
    """
    if not getattr(model, "can_generate", lambda: True)():
        raise GenerationError(
            f"{type(model).__name__} cannot generate: it has no head for next tokens; load the checkpoint as "
            "AutoModelForCausalLM or AutoModelForSeq2SeqLM"
        )
    pack = getattr(model, "pack", None)
    if pack is not None and not model.training:
        pack()  # does nothing where it is done already
    with torch.no_grad():
        config = merge_config(model, generation_config, use_model_defaults)
        asked = {name: value for name, value in settings.items() if name in DEFAULTS or hasattr(config, name)}
        config.update(**asked)
        config.validate()
        named = split_inputs(model, {name: value for name, value in settings.items() if name not in asked})
        if assistant_adapter is not None and assistant_model is None:
            assistant_model = model
        strategy = generation_mode(
            config, candidate_generator if assistant_model is None else assistant_model
        )
        check_supported(config, strategy)
        if synced_gpus and _processes() > 1:
            raise GenerationError(
                "synced_gpus=True holds for one process alone, but there are more: processes that share out "
                "the weights must take equally many steps, so set min_new_tokens to max_new_tokens instead"
            )
        sources = dict(named)
        if config.token_healing:
            inputs, named = healed_inputs(model, inputs, named, tokenizer)
        prompt = read_prompt(model, inputs, named, config)
        context = context_length(model.config)
        if truncate is not None:
            prompt = truncated(prompt, truncate, config, context)
        asked_length = any(settings.get(name) is not None for name in ("max_new_tokens", "max_length")) or (
            generation_config is not None and generation_config.max_new_tokens is not None
        )
        limit = new_token_limit(config, prompt, context, asked_length)
        guidance = guidance_processor(model, config, negative_prompt_ids, negative_prompt_attention_mask)
        beams = None
        if has_beams(strategy):
            beams = _beam_settings(config, guidance is not None)
        # made here, outside of inference mode, so that what is returned may be trained on
        encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        task = make_task(config, prompt, limit, beams is not None, seed, encoder_decoder)
        task.streamer = streamer
        end, custom = task.start + limit, list(logits_processor or [])
        if grammar is not None:
            from phyla.generation.parsing import grammar_processor

            if row_settings is not None and isinstance(grammar, (list, tuple)):
                raise GenerationError("row_settings go with one grammar for all rows, not with a list")
            custom.append(
                grammar_processor(
                    model, config, grammar, tokenizer, prompt.rows, task.start, limit, row_settings
                )
            )
        task.processors = build_processors(
            model, config, prompt, end, custom, prefix_allowed_tokens_fn, guidance, task.generators
        )
        if row_settings is not None:
            set_rows(
                model, config, prompt, end, custom, prefix_allowed_tokens_fn, guidance, task, row_settings
            )
        task.criteria = build_criteria(config, stopping_criteria or [], tokenizer)
        flags = {name: bool(getattr(config, name)) for name in ("output_attentions", "output_hidden_states")}
        flags = flags if task.record is not None else {}
        if needed_states(strategy):
            flags["output_hidden_states"] = True
        forward = forward_class(strategy)(
            model, prompt, prompt.positions + limit, config.use_cache is not False, task.pad_id, flags,
            (config.cache_implementation, _cache_settings(config)), config.prefill_chunk_size,
        )  # fmt: skip
        if custom_generate is not None:
            return own_loop(custom_generate, forward, task, config)
        if strategy in _ONE_BY_ONE and prompt.cache is None and not config.disable_compile:
            forward.capture(limit)
        if beams is None:
            given = {*asked, *(generation_config._given if generation_config is not None else ())}
            run = prepare(
                strategy, forward, task, config,
                Sources(
                    assistant_model, inputs, sources, prompt, tokenizer, assistant_tokenizer, given,
                    assistant_adapter, candidate_generator,
                ),
            )  # fmt: skip
    # tensors born in inference mode may not be trained on or written to later: nothing that leaves this call,
    # or that the caller gave to be filled, is touched in it
    leaves = task.record is not None or prompt.cache is not None
    mode = torch.no_grad() if leaves else torch.inference_mode()
    if beams is not None:
        return _with_beams(forward, task, config, beams, mode)
    try:
        if streamer is not None:
            streamer.put(task.given.cpu())
        with mode:
            length = run()
    except BaseException as error:
        if hasattr(streamer, "fail"):
            streamer.fail(error)
        raise
    finally:
        forward.close(keep=task.record is None)
    if streamer is not None:
        streamer.end()
    sequences = torch.cat([task.given, task.ids[:, task.start : length]], dim=1)
    return sequences if task.record is None else task.record.output(sequences, forward)


def _cache_settings(config: GenerationConfig) -> Any:
    """cache_config, with the room that max_cache_len asks of a static cache."""
    named = config.cache_implementation or ""
    if config.max_cache_len is None or config.cache_config is not None or "static" not in named:
        return config.cache_config
    return {"max_cache_len": config.max_cache_len}


def _processes() -> int:
    """How many processes of torch.distributed work together."""
    group = torch.distributed
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


class GenerationMixin:
    """What gives a model of one's own `generate` and `compute_transition_scores`, which phyla's have."""

    generate = generate
    compute_transition_scores = compute_transition_scores

    def can_generate(self) -> bool:
        """Whether `generate` works."""
        return True


def _with_beams(
    forward: Forward, task: Task, config: GenerationConfig, beams: BeamSettings, mode: Any
) -> Any:
    strategy, streamer = generation_mode(config), task.streamer
    constraints = None
    if strategy == GenerationMode.CONSTRAINED_BEAM_SEARCH:
        constraints = read_constraints(config.constraints, config.force_words_ids)
    given = task.given.repeat_interleave(beams.returned, dim=0)
    try:
        if streamer is not None:
            streamer.put(given.cpu())
            task.settled = SettledBeams(streamer, len(task.given), beams.returned, task.pad_id)
        with mode:
            if strategy in (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE):
                found = beam_search(forward, task, beams)
            else:
                found = grouped_search(forward, task, beams, config.num_beam_groups or 1, constraints)
        if streamer is not None:
            _tell_all(task, found, beams.returned)
    except BaseException as error:
        if hasattr(streamer, "fail"):
            streamer.fail(error)
        raise
    sequences = torch.cat([given, found.ids[:, task.start :]], dim=1)
    if task.record is None:
        return sequences
    fields = {"beam_indices": found.origin}
    if task.record.scores is not None:
        fields["sequences_scores"] = found.scores
    return task.record.output(sequences, forward, fields)


def _tell_all(task: Task, found: Found, returned: int) -> None:
    """Give the streamer the rest."""
    lengths = (found.origin >= 0).sum(1).tolist()
    texts = [t[:n] for t, n in zip(found.ids[:, task.start :].tolist(), lengths, strict=True)]
    for row in range(len(task.given)):
        task.settled.closed(row, texts[row * returned : (row + 1) * returned])
    task.settled.flush()
    task.streamer.end()


def _beam_settings(config: GenerationConfig, guided: bool) -> BeamSettings:
    if guided and (config.num_beam_groups or 1) > 1:
        raise GenerationError(
            f"guidance_scale works with num_beam_groups=1 alone, but it is {config.num_beam_groups}"
        )
    if config.mirostat_tau is not None:
        raise GenerationError(
            f"mirostat_tau works with num_beams=1 alone, but num_beams is {config.num_beams}"
        )
    penalty = 1.0 if config.length_penalty is None else config.length_penalty
    returned = config.num_return_sequences or 1
    return BeamSettings(config.num_beams, returned, penalty, config.early_stopping or False)
