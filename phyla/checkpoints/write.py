"""save_pretrained: the model in the public format."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from phyla.checkpoints.ahead import public_ahead
from phyla.checkpoints.save import save_weights
from phyla.checkpoints.spans import ranks_of
from phyla.checkpoints.state import public_tensors
from phyla.errors import ArgumentError
from phyla.model import PreTrainedModel
from phyla.quantization.plan import saved_beside, saved_config


def public_state(self: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of the model without adapters by public name."""
    with _bare(self):
        return public_tensors(self)


@contextmanager
def _bare(model: PreTrainedModel) -> Iterator[None]:
    """The base's own parameters in their places while adapters stand aside."""
    with ExitStack() as stack:
        for module in list(model.modules()):
            if isinstance(module, PreTrainedModel) and "adapters" in module._modules:
                stack.enter_context(module._adapters_lifted())
        yield


def save_pretrained(
    self: PreTrainedModel,
    save_directory: str | os.PathLike,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    is_main_process: bool = True,
) -> None:
    """Write config.json, generation_config.json and the weights, also of adapters and fusions, into a folder,
    atomically, in public format.

    max_shard_size: bytes or "5GB"-like; larger models are cut into shards with an index. state_dict: other
    values by public name. Raises ArgumentError for unknown settings and OSError where the folder cannot be
    written.
    """
    if not safe_serialization:
        raise ArgumentError("phyla writes safetensors only: leave safe_serialization at True")
    ranks = ranks_of(self)  # all of a divided model take part, and the first writes
    if not is_main_process and ranks is None:
        return
    with _bare(self):
        config, tensors = self.config.to_dict(), state_dict or public_tensors(self, on_first=True)
    if state_dict is None and not self.is_own() and self.family.ahead is not None:
        tensors = {**tensors, **public_ahead(self)}
    config["architectures"] = [type(self).__name__]
    config["torch_dtype"] = str(self.dtype).removeprefix("torch.")
    config.pop("quantization_config", None)
    quantization = saved_config(self)
    if quantization is not None:
        config["quantization_config"] = quantization
    config.pop("adapters", None)
    adapters = self._adapters_written() if _adapted(self) else None
    if adapters is not None:
        config["adapters"], tensors = adapters.facts, {**adapters.tensors, **tensors}
    files = {"config.json": _json(config)}
    generation = self.__dict__.get("generation_config")
    if generation is not None:
        files["generation_config.json"] = generation.to_json_string().encode()
    notes, beside = saved_beside(self, tensors)
    notes, files = {"format": "pt", **notes}, {**files, **beside}
    write = partial(save_weights, tensors, save_directory, max_shard_size, notes, files)
    write() if ranks is None else ranks.on_first(write)


def _adapted(model: PreTrainedModel) -> bool:
    """Whether a model, or one inside it, has adapters or heads of theirs."""
    return any(
        isinstance(m, PreTrainedModel) and ("adapters" in m._modules or "flexible" in m._modules)
        for m in model.modules()
    )


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
