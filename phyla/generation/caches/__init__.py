"""Memory of generation under the public names: kinds of cache, packed and offloaded keys, files."""

from phyla.generation.caches.files import load_cache, save_cache
from phyla.generation.caches.kinds import IMPLEMENTATIONS, new_cache
from phyla.generation.caches.quantized import QuantizedCacheConfig

__all__ = ["IMPLEMENTATIONS", "QuantizedCacheConfig", "load_cache", "new_cache", "save_cache"]
