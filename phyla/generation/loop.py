"""`generate`: one call from settings and prompt to token ids."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phyla.generation.call import begin
from phyla.generation.config import GenerationConfig
from phyla.generation.own import own_loop
from phyla.generation.scores import compute_transition_scores


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
    call = begin(
        model, inputs, generation_config, logits_processor=logits_processor,
        stopping_criteria=stopping_criteria, prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        synced_gpus=synced_gpus, assistant_model=assistant_model, streamer=streamer,
        negative_prompt_ids=negative_prompt_ids,
        negative_prompt_attention_mask=negative_prompt_attention_mask, use_model_defaults=use_model_defaults,
        tokenizer=tokenizer, assistant_tokenizer=assistant_tokenizer, assistant_adapter=assistant_adapter,
        seed=seed, truncate=truncate, row_settings=row_settings, grammar=grammar,
        candidate_generator=candidate_generator, begun=custom_generate is None, **settings,
    )  # fmt: skip
    if custom_generate is not None:
        with torch.no_grad():
            return own_loop(custom_generate, call.forward, call.task, call.config)
    return call.run()


class GenerationMixin:
    """What gives a model of one's own `generate` and `compute_transition_scores`, which phyla's have."""

    generate = generate
    compute_transition_scores = compute_transition_scores

    def can_generate(self) -> bool:
        """Whether `generate` works."""
        return True
