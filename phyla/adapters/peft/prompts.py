"""Virtual tokens: prompt tuning and P-tuning ahead of a text, prefix tuning ahead of keys and values.

Lester et al. 2021 (arXiv:2104.08691); Liu et al. 2021 (arXiv:2103.10385); Li & Liang 2021 (arXiv:2101.00190).
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from phyla.adapters.peft.configs import (
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    required,
)
from phyla.adapters.places import Place, Survey
from phyla.blocks.context import Context
from phyla.errors import AdapterError, MissingWeightsError, ShapeMismatchError

KEY = "prompt_embeddings"


class Virtual(nn.Module):
    """Vectors (n, D) ahead of a text; of encoder-decoders (2 n, D), of which the encoder takes the first n.

    While training P-tuning, a small network makes them; files hold what it makes.
    """

    def __init__(self, config: PromptLearningConfig, count: int, width: int) -> None:
        super().__init__()
        self.count = required(config, "num_virtual_tokens")
        self.embeddings = nn.Parameter(torch.randn(count, width))
        self.encoder: nn.Module | None = None
        if isinstance(config, PromptEncoderConfig):
            self.encoder = _encoder(config, width)

    def vectors(self) -> Tensor:
        """What stands ahead of the text, (count, D)."""
        return self.embeddings if self.encoder is None else self.encoder(self.embeddings)

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by the names that files have for them."""
        return {KEY: self.vectors()}

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over what a file holds; from then on the vectors themselves are trained."""
        self.encoder = None
        _take(self.embeddings, tensors)

    def ahead(self, model: Any, named: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call with these vectors ahead of the text."""
        named = dict(named)
        embeds = named.get("inputs_embeds")
        if embeds is None:
            ids = named.get("input_ids")
            if ids is None:
                return named
            embeds = model.get_input_embeddings()(ids)
        rows = embeds.shape[0]
        front = self.vectors()[: self.count].to(embeds.dtype)
        named["inputs_embeds"] = torch.cat([front.expand(rows, -1, -1), embeds], 1)
        named["input_ids"] = None
        for name, value in (("attention_mask", 1), ("token_type_ids", 0)):
            given = named.get(name)
            if given is not None:
                more = torch.full((rows, self.count), value, dtype=given.dtype, device=given.device)
                named[name] = torch.cat([more, given], 1)
        labels: Any = named.get("labels")
        of_tokens = labels is not None and labels.shape == embeds.shape[:2] and not labels.is_floating_point()
        if of_tokens and not model.config.is_encoder_decoder:
            more = torch.full((rows, self.count), -100, dtype=labels.dtype, device=labels.device)
            named["labels"] = torch.cat([more, labels], 1)
        if named.pop("position_ids", None) is not None:
            raise AdapterError("virtual tokens take positions of their own: leave position_ids out")
        return named

    def call(self, model: Any, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments of a model's call; calls that go on from a cache have the vectors in it already."""
        names = [n for n in inspect.signature(type(model).forward).parameters if n != "self"]
        named = {**dict(zip(names, args, strict=False)), **named}
        past: Any = named.get("past_key_values")
        if (past is not None and getattr(past, "length", False)) or named.get("encoder_outputs") is not None:
            return (), named
        return (), {k: v for k, v in self.ahead(model, named).items() if v is not None}

    def generate(self, model: Any, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments of `generate`: the ids stay, so that they open what is returned."""
        if args:
            named = {"input_ids": args[0], **named}
            args = args[1:]
        ids = named.get("input_ids")
        found = self.ahead(model, named)
        if ids is not None and not model.config.is_encoder_decoder:
            found["input_ids"] = ids
        return args, {k: v for k, v in found.items() if v is not None}


def _take(parameter: nn.Parameter, tensors: dict[str, Tensor]) -> None:
    if KEY not in tensors:
        raise MissingWeightsError(f"the PEFT file has no tensor {KEY}")
    if tensors[KEY].shape != parameter.shape:
        raise ShapeMismatchError(
            f"{KEY} must have shape {tuple(parameter.shape)}, but has {tuple(tensors[KEY].shape)}"
        )
    with torch.no_grad():
        parameter.copy_(tensors[KEY])


def _encoder(config: PromptEncoderConfig, width: int) -> nn.Module:
    inner = config.encoder_hidden_size or width
    if config.encoder_reparameterization_type != "MLP":
        raise AdapterError("encoder_reparameterization_type must be MLP: the LSTM is not implemented")
    return nn.Sequential(
        nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, width)
    )


class Keys(nn.Module):
    """The keys and values of all layers, (n, layers * 2 * heads * width)."""

    def __init__(self, config: PrefixTuningConfig, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.count, self.layers, self.heads, self.width = (
            required(config, "num_virtual_tokens"), layers, heads, width,
        )  # fmt: skip
        size = layers * 2 * heads * width
        self.encoder: nn.Module | None = None
        inner = heads * width
        if config.prefix_projection:
            hidden = config.encoder_hidden_size or inner
            self.embeddings = nn.Parameter(torch.randn(self.count, inner))
            self.encoder = nn.Sequential(nn.Linear(inner, hidden), nn.Tanh(), nn.Linear(hidden, size))
        else:
            self.embeddings = nn.Parameter(torch.randn(self.count, size))

    def all(self) -> Tensor:
        """The keys and values, (layers, 2, heads, n, width)."""
        whole = self.embeddings if self.encoder is None else self.encoder(self.embeddings)
        return whole.view(self.count, self.layers, 2, self.heads, self.width).permute(1, 2, 3, 0, 4)

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by the names that files have for them."""
        whole = self.embeddings if self.encoder is None else self.encoder(self.embeddings)
        return {KEY: whole}

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over what a file holds; from then on the keys and values themselves are trained."""
        if self.encoder is not None:
            size = self.layers * 2 * self.heads * self.width
            self.embeddings = nn.Parameter(self.embeddings.new_empty(self.count, size))
            self.encoder = None
        _take(self.embeddings, tensors)


class KeysAt(nn.Module):
    """The keys and values of one layer, at its site: x (B, S, D) -> two (B, heads, n, width)."""

    def __init__(self, keys: Keys, index: int) -> None:
        super().__init__()
        self.keys, self.index = keys, index

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.keys.all()[self.index].to(x.device)
        return k.expand(x.shape[0], -1, -1, -1), v.expand(x.shape[0], -1, -1, -1)


class Shift:
    """Positions of a tower's tokens begin behind the prefix while it is active, as behind a cache."""

    def __init__(self, module: Any, count: int) -> None:
        self.module, self.count = module, count
        self.handle: Any = None

    def put(self) -> None:
        """Begin."""
        self.handle = self.module.register_forward_pre_hook(self.shift, with_kwargs=True)

    def lift(self) -> None:
        """End."""
        self.handle.remove()

    def shift(self, module: Any, args: tuple, named: dict[str, Any]) -> None:
        """Move the positions of the call's context."""
        for value in (*args, *named.values()):
            if isinstance(value, Context):
                value.positions = value.positions + self.count
                value.notes = {**value.notes, "ahead": self.count}
                value.counted = False


def attach_prompt(
    config: PromptLearningConfig, model: Any, where: Survey, entry: Any
) -> Iterator[tuple[Place, nn.Module]]:
    """The parts of an adapter of virtual tokens; sizes that the configuration leaves open are filled in."""
    count = required(config, "num_virtual_tokens")
    if not isinstance(config, PrefixTuningConfig):
        yield from ()
        if type(model).main_input_name == "pixel_values":
            raise AdapterError(f"virtual tokens stand ahead of text, but {type(model).__name__} reads images")
        width = model.get_input_embeddings().weight.shape[1]
        halves = 2 if model.config.is_encoder_decoder else 1
        _settle(config, token_dim=width, num_transformer_submodules=halves, num_layers=len(where.layers))
        prompt = Virtual(config, count * (config.num_transformer_submodules or 1), width)
        if isinstance(config, PromptTuningConfig) and config.prompt_tuning_init != "RANDOM":
            _from_words(prompt, config, model)
        entry.around.append(prompt)
        return
    towers = dict.fromkeys(layer.tower for layer in where.layers if not _encodes(layer, where))
    if len(towers) != 1:
        raise AdapterError(f"prefix tuning needs one tower of layers, but this model has {list(towers)}")
    tower = next(iter(towers))
    places = [
        place for layer in where.layers if layer.tower == tower
        for place in layer.keys_values if place.role == "attn"
    ]  # fmt: skip
    if not places:
        raise AdapterError("prefix tuning needs attentions, but this model has none")
    shapes = {(p.module.num_kv_heads, p.module.head_width) for p in places}
    if len(shapes) > 1:
        raise AdapterError(f"prefix tuning needs attentions of one shape, but this model has {shapes}")
    heads, width = shapes.pop()
    halves = 2 if model.config.is_encoder_decoder else 1
    _settle(
        config, token_dim=heads * width, num_attention_heads=heads, num_layers=len(places),
        num_transformer_submodules=halves,
    )  # fmt: skip
    keys = Keys(config, len(places), heads, width)
    entry.share("keys", keys)
    entry.shifts.append(Shift(model.get_submodule(tower), count))
    # PEFT deals an encoder-decoder's prefixes out two at a time: layer i gets those of layer 2 i.
    step = config.num_transformer_submodules or 1
    for index, place in enumerate(places):
        yield place, KeysAt(keys, index * step % len(places))


def _encodes(layer: Any, where: Survey) -> bool:
    return where.with_cross and layer.cross is None


def _settle(config: Any, **sizes: int) -> None:
    for name, size in sizes.items():
        if getattr(config, name) is None:
            setattr(config, name, size)


def _from_words(prompt: Virtual, config: PromptTuningConfig, model: Any) -> None:
    """Begin with the vectors of a text's tokens, over and over."""
    if config.prompt_tuning_init == "SAMPLE_VOCAB":
        ids = torch.randint(0, model.get_input_embeddings().weight.shape[0], (len(prompt.embeddings),))
    elif config.prompt_tuning_init == "TEXT" and config.prompt_tuning_init_text:
        from phyla import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(required(config, "tokenizer_name_or_path"))
        words = tokenizer(config.prompt_tuning_init_text)["input_ids"]
        count = len(prompt.embeddings)
        ids = torch.tensor((words * -(-count // len(words)))[:count])
    else:
        raise AdapterError(
            "prompt_tuning_init must be RANDOM, SAMPLE_VOCAB, or TEXT with prompt_tuning_init_text, but is "
            f"{config.prompt_tuning_init!r}"
        )
    with torch.no_grad():
        prompt.embeddings.copy_(model.get_input_embeddings().weight[ids.to(prompt.embeddings.device)])
