"""One call of `generate`, from its arguments to what it returns, which may go on step by step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import GenerationError
from phyla.generation.beams import BeamSettings, Found, beam_search, beam_settings
from phyla.generation.compiled import compile_settings
from phyla.generation.config import GenerationConfig
from phyla.generation.forward import Forward
from phyla.generation.grouped import search_state
from phyla.generation.guidance import guidance_processor
from phyla.generation.healing import healed_inputs
from phyla.generation.modes import GenerationMode, check_supported, generation_mode, has_beams
from phyla.generation.plan import (
    build_criteria,
    build_processors,
    context_length,
    merge_config,
    new_token_limit,
    set_rows,
    steps_of,
    told_ends,
    told_limit,
)
from phyla.generation.prompt import read_prompt, split_inputs, truncated
from phyla.generation.settled import SettledBeams
from phyla.generation.strategies import Sources, forward_class, needed_states, prepare
from phyla.generation.task import Steps, Task, make_task

# strategies whose every step after the prompt is one token a row
_ONE_BY_ONE = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


class Call:
    """A call that has begun: its strategy stops before each step of the model, and `output` is for its end.

    mode: what its steps run in. Tensors born in inference mode may not be trained on or written to later:
    nothing that leaves the call, or that the caller gave to be filled, is touched in it.
    """

    steps: Steps[Any]
    found: Any = None  # what the strategy returned

    def __init__(
        self, forward: Forward, task: Task, config: GenerationConfig, beams: BeamSettings | None, kept: bool
    ) -> None:
        self.forward, self.task, self.config, self.beams = forward, task, config, beams
        self.mode = torch.no_grad if kept else torch.inference_mode

    def run(self) -> Any:
        """All steps, and what they gave."""
        with self.mode():
            while self.advance():
                pass
        return self.output()

    def advance(self) -> bool:
        """One step; whether there is more to come."""
        try:
            next(self.steps)
        except StopIteration as end:
            self.found = end.value
            return False
        return True

    def told(self, steps: Steps[Any]) -> Steps[Any]:
        """The steps of a strategy, with what the streamer gets before and behind them."""
        task, streamer, beams = self.task, self.task.streamer, self.beams
        try:
            if streamer is not None:
                streamer.put(self._given().cpu())
                if beams is not None:
                    task.settled = SettledBeams(streamer, len(task.given), beams.returned, task.pad_id)
            found = yield from steps
            if beams is not None and streamer is not None:
                _tell_all(task, found, beams.returned)
        except GeneratorExit:  # whoever closes it knows
            raise
        except BaseException as error:
            if hasattr(streamer, "fail"):
                streamer.fail(error)
            raise
        finally:
            self.forward.close(keep=task.record is None)
        if streamer is not None:
            streamer.end()
        return found

    def output(self) -> Any:
        """What `generate` returns, once there are no more steps."""
        task, given, found = self.task, self._given(), self.found
        if self.beams is None:
            sequences = torch.cat([given, task.ids[:, task.start : found]], dim=1)
            return sequences if task.record is None else task.record.output(sequences, self.forward)
        sequences = torch.cat([given, found.ids[:, task.start :]], dim=1)
        if task.record is None:
            return sequences
        fields = {"beam_indices": found.origin}
        if task.record.scores is not None:
            fields["sequences_scores"] = found.scores
        return task.record.output(sequences, self.forward, fields)

    def _given(self) -> Tensor:
        given = self.task.given
        return given if self.beams is None else given.repeat_interleave(self.beams.returned, dim=0)


def begin(
    model: nn.Module, inputs: Any = None, generation_config: GenerationConfig | None = None, *,
    logits_processor: list | None = None, stopping_criteria: list | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    synced_gpus: bool | None = None, assistant_model: Any = None, streamer: Any = None,
    negative_prompt_ids: Tensor | None = None, negative_prompt_attention_mask: Tensor | None = None,
    use_model_defaults: bool | None = None, tokenizer: Any = None, assistant_tokenizer: Any = None,
    assistant_adapter: str | None = None, seed: int | Sequence[int] | None = None,
    truncate: str | None = None, row_settings: Sequence[dict[str, Any]] | None = None, grammar: Any = None,
    candidate_generator: Any = None, begun: bool = True, **settings: Any,
) -> Call:  # fmt: skip
    """The call that `generate` makes of its arguments; its prompt is read, the first step is to come.

    begun: whether its strategy is made ready, too; without, only what a loop of the caller's own needs is.
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
        asked = {name: value for name, value in settings.items() if config.knows(name)}
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
        end = prompt.ids.shape[1] + limit
        own_criteria = steps_of("stopping_criteria", stopping_criteria)
        limit = told_limit(own_criteria, limit, prompt, context)
        guidance = guidance_processor(model, config, negative_prompt_ids, negative_prompt_attention_mask)
        beams = beam_settings(config, guidance is not None) if has_beams(strategy) else None
        # made here, outside of inference mode, so that what is returned may be trained on
        encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        task = make_task(config, prompt, limit, beams is not None, seed, encoder_decoder)
        task.streamer = streamer
        if told_ends(own_criteria):
            task.eos = None
        custom = steps_of("logits_processor", logits_processor)
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
        task.criteria = build_criteria(config, own_criteria, tokenizer)
        flags = {name: bool(getattr(config, name)) for name in ("output_attentions", "output_hidden_states")}
        flags = flags if task.record is not None else {}
        if needed_states(strategy):
            flags["output_hidden_states"] = True
        forward = forward_class(strategy)(
            model, prompt, prompt.positions + limit,
            config.use_cache is not False or "inputs_embeds" in prompt.first, task.pad_id, flags,
            (config.cache_implementation, _cache_settings(config)), config.prefill_chunk_size,
        )  # fmt: skip
        kept = task.record is not None or prompt.cache is not None
        call = Call(forward, task, config, beams, kept)
        if not begun:
            return call
        if beams is not None:
            call.steps = call.told(beam_search(forward, task, search_state(task, beams, config)))
            return call
        if strategy in _ONE_BY_ONE and prompt.cache is None and not config.disable_compile:
            forward.capture(limit, compile_settings(config))
        given = {*asked, *(generation_config._given if generation_config is not None else ())}
        steps = prepare(
            strategy, forward, task, config,
            Sources(
                assistant_model, inputs, sources, prompt, tokenizer, assistant_tokenizer, given,
                assistant_adapter, candidate_generator,
            ),
        )  # fmt: skip
        call.steps = call.told(steps)
        return call


def _tell_all(task: Task, found: Found, returned: int) -> None:
    """Give the streamer the rest."""
    lengths = (found.origin >= 0).sum(1).tolist()
    texts = [t[:n] for t, n in zip(found.ids[:, task.start :].tolist(), lengths, strict=True)]
    for row in range(len(task.given)):
        task.settled.closed(row, texts[row * returned : (row + 1) * returned])
    task.settled.flush()


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
