"""save_pretrained: the model in the public format."""

import json
import os
from typing import Any

from torch import Tensor

from phyla.checkpoints.save import save_weights
from phyla.checkpoints.state import public_tensors
from phyla.errors import ArgumentError
from phyla.model import PreTrainedModel
from phyla.quantization.plan import saved_config


def public_state(self: PreTrainedModel) -> dict[str, Tensor]:
    """The model's tensors by public name."""
    return public_tensors(self)


def save_pretrained(
    self: PreTrainedModel,
    save_directory: str | os.PathLike,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    is_main_process: bool = True,
) -> None:
    """Write config.json, generation_config.json and the weights into a folder, atomically, in public format.

    max_shard_size: bytes or "5GB"-like; larger models are cut into shards with an index. state_dict: other
    values by public name. Raises ArgumentError for unknown settings and OSError where the folder cannot be
    written.
    """
    if not safe_serialization:
        raise ArgumentError("phyla writes safetensors only: leave safe_serialization at True")
    if not is_main_process:
        return
    config = self.config.to_dict()
    config["architectures"] = [type(self).__name__]
    config["torch_dtype"] = str(self.dtype).removeprefix("torch.")
    config.pop("quantization_config", None)
    quantization = saved_config(self)
    if quantization is not None:
        config["quantization_config"] = quantization
    files = {"config.json": _json(config)}
    generation = self.__dict__.get("generation_config")
    if generation is not None:
        files["generation_config.json"] = generation.to_json_string().encode()
    save_weights(state_dict or public_tensors(self), save_directory, max_shard_size, {"format": "pt"}, files)


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
