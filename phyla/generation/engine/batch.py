"""`model.generate_batch`: many prompts of many lengths through the engine, in one call."""

from collections.abc import Iterable
from typing import Any

from phyla.generation.config import GenerationConfig
from phyla.generation.engine.engine import Engine
from phyla.generation.engine.request import GenerationOutput


def generate_batch(
    model: Any, inputs: Iterable[Any], generation_config: GenerationConfig | None = None,
    progress_bar: bool = False, *, seeds: list[int] | None = None, tokenizer: Any = None,
    max_batch_tokens: int = 256, max_requests: int = 64, page_size: int = 32,
    max_memory: int | None = None, share_prefixes: bool = True, **settings: Any,
) -> dict[str, GenerationOutput]:  # fmt: skip
    """What each prompt (a list of token ids) gives, by request id, in the order of the prompts.

    `settings` are fields of GenerationConfig; the others as `Engine` has them.
    """
    engine = Engine(
        model, max_batch_tokens=max_batch_tokens, max_requests=max_requests, page_size=page_size,
        max_memory=max_memory, share_prefixes=share_prefixes,
    )  # fmt: skip
    with engine:
        found = engine.generate(
            inputs, generation_config, seeds=seeds, progress=progress_bar, tokenizer=tokenizer, **settings
        )
        return {output.request_id: output for output in found}
