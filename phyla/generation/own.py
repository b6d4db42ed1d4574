"""A decoding loop of the caller's own: `generate(..., custom_generate=function)`."""

from collections.abc import Callable
from typing import Any

from phyla.errors import GenerationError
from phyla.generation.config import GenerationConfig
from phyla.generation.forward import Forward
from phyla.generation.stopping import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from phyla.generation.task import Task


def own_loop(function: Callable[..., Any], forward: Forward, task: Task, config: GenerationConfig) -> Any:
    """What function(model, input_ids, logits_processor, stopping_criteria, generation_config, ...) returns.

    It gets the prepared prompt with padding on the left, and by name the model's inputs: attention_mask, an
    empty past_key_values and use_cache, what an encoder has read. A name of a repository, whose code would
    be run, is a GenerationError.
    """
    if not callable(function):
        raise GenerationError(
            f"custom_generate must be a function, but is {function!r}: code from elsewhere is not run"
        )
    criteria: list[Any] = [MaxLengthCriteria(task.start + task.limit)]
    if task.eos is not None:
        criteria.append(EosTokenCriteria(task.eos.tolist()))
    inputs = {**forward.steady, **forward.first}
    inputs.pop("return_dict", None)
    prefix = forward.prefix
    if forward.mask is not None:
        inputs[f"{prefix}attention_mask"] = forward.mask[:, : task.start + forward.hidden_positions]
    if task.streamer is not None:
        inputs["streamer"] = task.streamer
    if task.repeats > 1:
        raise GenerationError("custom_generate goes with num_return_sequences=1")
    return function(
        forward.model, task.ids[:, : task.start], logits_processor=task.processors,
        stopping_criteria=StoppingCriteriaList([*criteria, *task.criteria]), generation_config=config,
        **inputs,
    )  # fmt: skip
