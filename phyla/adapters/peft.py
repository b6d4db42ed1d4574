"""PEFT folders: reading them into adapters of this library."""

from typing import Any

from torch import Tensor

from phyla.adapters.registry import Entry
from phyla.errors import AdapterError
from phyla.model import PreTrainedModel


def read_peft(model: PreTrainedModel, facts: dict[str, Any], tensors: dict[str, Tensor], name: str) -> Entry:
    """An adapter from the contents of a PEFT folder."""
    raise AdapterError(f"PEFT's {facts['peft_type']} is not implemented")
