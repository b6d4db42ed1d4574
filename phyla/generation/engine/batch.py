"""`model.generate_batch`: many prompts of many lengths through the engine, in one call."""

from collections.abc import Iterable
from typing import Any

from phyla.generation.config import GenerationConfig
from phyla.generation.engine.engine import Engine
from phyla.generation.engine.request import GenerationOutput
from phyla.generation.engine.threaded import ContinuousBatchingConfig


def generate_batch(
    model: Any, inputs: Iterable[Any], generation_config: GenerationConfig | None = None,
    continuous_batching_config: ContinuousBatchingConfig | None = None, record_timestamps: bool = False,
    progress_bar: bool = False, persistent_manager: bool = False, warmup: bool = True, *,
    seeds: list[int] | None = None, tokenizer: Any = None, max_batch_tokens: int | None = None,
    max_requests: int | None = None, page_size: int | None = None, max_memory: int | None = None,
    share_prefixes: bool | None = None, **settings: Any,
) -> dict[str, GenerationOutput]:  # fmt: skip
    """What each prompt (a list of token ids, or a dict as `Engine.generate` has it) gives, by request id, in
    the order of the prompts.

    `settings` are fields of GenerationConfig; the others as `Engine` has them, and go before
    `continuous_batching_config`. persistent_manager and warmup change nothing.
    """
    asked = (continuous_batching_config or ContinuousBatchingConfig()).settings(model)
    own = {
        "max_batch_tokens": max_batch_tokens, "max_requests": max_requests, "page_size": page_size,
        "max_memory": max_memory, "share_prefixes": share_prefixes,
    }  # fmt: skip
    asked |= {name: value for name, value in own.items() if value is not None}
    if continuous_batching_config is not None and continuous_batching_config.return_logprobs:
        settings.setdefault("output_scores", True)
    with Engine(model, **asked) as engine:
        found = engine.generate(
            inputs, generation_config, seeds=seeds, progress=progress_bar, tokenizer=tokenizer, **settings
        )
        return {output.request_id: output for output in found}
