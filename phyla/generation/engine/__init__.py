"""Continuous batching: requests come and go between steps, and their memory lies in pages."""

from phyla.generation.engine.batch import generate_batch
from phyla.generation.engine.engine import Engine
from phyla.generation.engine.request import GenerationOutput, Handle
from phyla.generation.engine.threaded import (
    ContinuousBatchingConfig,
    ContinuousBatchingManager,
    continuous_batching_context_manager,
    init_continuous_batching,
)

__all__ = [
    "ContinuousBatchingConfig", "ContinuousBatchingManager", "Engine", "GenerationOutput", "Handle",
    "continuous_batching_context_manager", "generate_batch", "init_continuous_batching",
]  # fmt: skip
