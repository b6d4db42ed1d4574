"""Files that turn a multilingual model to one language: its small layers and its head (arXiv:2305.13516)."""

from typing import Any

import torch

from phyla.blocks import Linear
from phyla.checkpoints.resolve import resolve
from phyla.checkpoints.state import layout_of, tensors_of
from phyla.checkpoints.weights import open_weight_file
from phyla.errors import ConfigError, MissingFileError, MissingWeightsError, UnexpectedWeightsError
from phyla.model import PreTrainedModel, init_module


def load_language(model: PreTrainedModel, language: str, **source: Any) -> None:
    """Read `adapter.LANGUAGE.safetensors` or `.bin` of the model's source into its adapter layers and head.

    A vocabulary of another size gets a head of its size, and config.vocab_size follows.

    Raises ConfigError, MissingFileError, MissingWeightsError or UnexpectedWeightsError.
    """
    if model.config.adapter_attn_dim is None:
        raise ConfigError(
            f"the language {language!r} needs adapter layers, but config.adapter_attn_dim is not set; load a "
            "checkpoint that has them"
        )
    file = _file(model.config._name_or_path, language, source)
    wanted = {
        name: path
        for line in layout_of(model).lines(True)
        for path, name in zip(line.ours, line.theirs, strict=True)
        if ".adapter." in path or path.startswith("head.")
    }
    with open_weight_file(file) as weights:
        missing, extra = (
            sorted(wanted.keys() - weights.infos.keys()),
            sorted(weights.infos.keys() - wanted.keys()),
        )
        if missing:
            raise MissingWeightsError(f"{file} lacks {len(missing)} tensors, first {missing[0]!r}")
        if extra:
            raise UnexpectedWeightsError(f"{file} holds {len(extra)} tensors too many, first {extra[0]!r}")
        values = dict(weights.read_many())
    head: Any = model.head
    old = head.out
    size = values[next(n for n, p in wanted.items() if p == "head.out.weight")].shape[0]
    if size != old.out_features:
        head.out = Linear(old.in_features, size).to(old.weight)
        model.config.vocab_size = size
    tensors = tensors_of(model)
    with torch.no_grad():
        for name, path in wanted.items():
            tensors[path].copy_(values[name])


def init_language(model: PreTrainedModel) -> None:
    """Fresh adapter layers and a fresh head, to train a new language."""
    std = float(model.config.initializer_range)
    for path, module in model.named_modules():
        if ".adapter" in path or path.startswith("head"):
            init_module(module, std)


def _file(root: str, language: str, source: dict[str, Any]) -> Any:
    names = [f"adapter.{language}.safetensors", f"adapter.{language}.bin"]
    for name in names:
        try:
            return resolve(root, file=name, **source)
        except MissingFileError:
            continue
    raise MissingFileError(f"{root} has no weights for the language {language!r}: looked for {names}")
