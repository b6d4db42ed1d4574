"""Weights and inputs that follow from a name and a shape alone: a checkpoint of any size fits in one line.

Norm gains, biases and buffers are random too: swapped norms and dropped biases then show.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np

COUNTS = ("running_var", "cluster_size")
GAINS = ("weight", "gamma", "weight_g", "original0")
DIRECTION_GAINS = ("weight_g", "original0")


def generator(name: str, salt: int = 0) -> np.random.Generator:
    """The random stream that belongs to one tensor name."""
    return np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode()) + (salt << 32)))


def seeded_weight(name: str, shape: Sequence[int], salt: int = 0) -> np.ndarray:
    """float32 values of the checkpoint tensor with this public name; no value depends on another tensor."""
    shape = tuple(shape)
    noise = np.asarray(generator(name, salt).standard_normal(shape, dtype=np.float32), dtype=np.float32)
    leaf = name.rpartition(".")[2]
    values: np.ndarray
    if leaf in COUNTS:
        values = 1 + 0.1 * np.abs(noise)
    elif leaf in DIRECTION_GAINS or (len(shape) <= 1 and is_gain(leaf)):
        values = 1 + 0.2 * np.clip(noise, -2, 2)
    elif len(shape) <= 1:
        values = 0.1 * noise
    else:
        fan_in = shape[-1] if len(shape) == 2 and "embed" in name else math.prod(shape[1:])
        values = noise / np.sqrt(max(fan_in, 1))
    return np.ascontiguousarray(values, dtype=np.float32).reshape(shape)


def is_gain(leaf: str) -> bool:
    """Whether a vector with this last name multiplies (and so stands near 1) rather than adds."""
    return leaf in GAINS or "lambda" in leaf or "scale" in leaf


def seeded_input(name: str, shape: Sequence[int]) -> np.ndarray:
    """float32 values in [0, 1) for a large model input (pixels, features, samples)."""
    return generator("input." + name).random(tuple(shape), dtype=np.float32)
