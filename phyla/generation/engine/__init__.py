"""Continuous batching: requests come and go between steps, and their memory lies in pages."""

from phyla.generation.engine.batch import generate_batch
from phyla.generation.engine.engine import Engine
from phyla.generation.engine.request import GenerationOutput, Handle

__all__ = ["Engine", "GenerationOutput", "Handle", "generate_batch"]
