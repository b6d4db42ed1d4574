"""`compile_config`: the decode step through torch.compile, where a static cache is asked for."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch

from phyla.errors import GenerationError
from phyla.generation.config import CompileConfig, GenerationConfig

log = logging.getLogger("phyla.generation.compiled")

STATIC = ("static", "hybrid", "sliding_window")  # kinds of cache whose room is made at once


def compile_settings(config: GenerationConfig) -> CompileConfig | None:
    """How the steps of a call are compiled; None where they are not.

    Raises GenerationError for a compile_config of another kind.
    """
    asked = config.compile_config
    if asked is None or config.disable_compile or config.cache_implementation not in STATIC:
        return None
    if isinstance(asked, dict):
        known = [name for name in asked if name in CompileConfig.__dataclass_fields__]
        asked = CompileConfig(**asked) if len(known) == len(asked) else sorted(set(asked) - set(known))
    if not isinstance(asked, CompileConfig):
        raise GenerationError(
            f"compile_config must be a CompileConfig or a dict of its fields "
            f"{sorted(CompileConfig.__dataclass_fields__)}, but has or is {asked!r}"
        )
    return asked


def compiler(settings: CompileConfig) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """What makes a step on fixed buffers a compiled one, in place of a recording (see captured.py)."""

    def record(step: Callable[[], None]) -> Callable[[], None]:
        step()  # makes what a step makes once
        for buffer in getattr(step, "__self__").buffers():  # noqa: B009  (no attribute of a callable)
            torch._dynamo.mark_static_address(buffer)  # or graphs of CUDA would copy them
        compiled = torch.compile(step, **_arguments(settings))
        try:
            compiled()
        except Exception as error:
            log.warning("compile_config is without effect: the step cannot be compiled: %s", error)
            raise
        return compiled

    return record


def tag(settings: CompileConfig | None) -> tuple[Any, ...]:
    """What tells steps that are compiled in different ways apart."""
    return () if settings is None else tuple(repr(value) for value in vars(settings).values())


def _arguments(settings: CompileConfig) -> dict[str, Any]:
    named: dict[str, Any] = {
        "fullgraph": settings.fullgraph, "dynamic": settings.dynamic, "backend": settings.backend,
    }  # fmt: skip
    if settings.options is not None:
        named["options"] = settings.options
    elif settings.backend == "inductor":
        named["mode"] = settings.mode
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        named["isolate_recompiles"] = True  # other rooms and models have steps of their own
    return named
