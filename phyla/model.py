"""The public face of every model: construction, devices, dtypes, and names of what is on higher floors."""

import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.blocks import gradient
from phyla.blocks.cache import Cache, number_slots
from phyla.blocks.site import Site, sites
from phyla.blocks.spec import Block
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError, UnknownArgumentError, nearest
from phyla.heads.base import Head, HeadModule

if TYPE_CHECKING:
    from phyla.family import Family

# Methods that live on higher floors: name -> (module, function). They are imported at the first use.
LAZY_METHODS: dict[str, tuple[str, str]] = {
    "generate": ("phyla.generation", "generate"),
    "generate_batch": ("phyla.generation", "generate_batch"),
    "init_continuous_batching": ("phyla.generation", "init_continuous_batching"),
    "continuous_batching_context_manager": ("phyla.generation", "continuous_batching_context_manager"),
    "compute_transition_scores": ("phyla.generation", "compute_transition_scores"),
    "heal_tokens": ("phyla.generation", "heal_tokens"),
    "save_pretrained": ("phyla.checkpoints.write", "save_pretrained"),
    "state_dict_public": ("phyla.checkpoints.write", "public_state"),
    "pack": ("phyla.fast.pack", "pack"),
    "_divide": ("phyla.fast.shard", "divide_for_loading"),
    "_install_packed": ("phyla.fast.install", "install_packed"),
    "_install_quantized": ("phyla.quantization.install", "install_quantized"),
    "set_attn_implementation": ("phyla.fast.interface", "set_attn_implementation"),
    "dequantize": ("phyla.quantization.plan", "dequantize"),
    "_read_generation_config": ("phyla.generation.config", "read_for_model"),
    "describe": ("phyla.describe", "describe_model"),
    **{name: ("phyla.vocabulary", name) for name in (
        "disable_input_require_grads", "enable_input_require_grads", "get_memory_footprint",
        "get_output_embeddings", "resize_token_embeddings", "set_input_embeddings",
        "set_output_embeddings", "tie_weights",
    )},
    **{name: ("phyla.adapters.api", name) for name in (
        "add_adapter", "add_adapter_fusion", "adapter_fusion_to", "adapter_summary", "adapter_to",
        "apply_to_adapter_layers", "delete_adapter", "iter_layers",
        "delete_adapter_fusion", "eject_prefix_tuning", "freeze_model", "get_adapter",
        "get_fusion_regularization_loss",
        "has_adapters", "iterate_adapters", "merge_adapter", "reset_adapter",
        "set_active_adapters", "supports_adapter", "train_adapter", "train_adapter_fusion",
    )},
    **{name: ("phyla.adapters.hub", name) for name in (
        "load_adapter", "load_adapter_fusion", "load_adapter_setup", "save_adapter", "save_adapter_fusion",
        "save_adapter_setup", "save_all_adapter_fusions", "save_all_adapters",
    )},
    **{name: ("phyla.adapters.heads.files", name) for name in ("load_head", "save_all_heads", "save_head")},
    **{name: ("phyla.adapters.embeddings", name) for name in (
        "add_embeddings", "delete_embeddings", "load_embeddings", "save_embeddings", "set_active_embeddings",
    )},
    **{name: ("phyla.adapters.sharing", name) for name in ("share_parameters", "unshare_parameters")},
    **{name: ("phyla.adapters.push", name) for name in ("push_adapter_setup_to_hub", "push_adapter_to_hub")},
    **{name: ("phyla.adapters.whole", name.removeprefix("_adapters_")) for name in (
        "_adapters_lifted", "_adapters_restore", "_adapters_written",
    )},
    "average_adapter": ("phyla.adapters.average", "average_adapter"),
    "_generate_with_adapters": ("phyla.adapters.api", "run_generation"),
}  # fmt: skip
LAZY_CLASS_METHODS: dict[str, tuple[str, str]] = {
    "from_pretrained": ("phyla.checkpoints.load", "from_pretrained"),
}

LAZY_PROPERTIES: dict[str, tuple[str, str]] = {
    "supports_tp_plan": ("phyla.fast.shard", "supports_tp_plan"),
    "tp_size": ("phyla.fast.shard", "tp_size"),
    "generation_config": ("phyla.generation.config", "of_model"),
    "active_embeddings": ("phyla.adapters.embeddings", "get_active_embeddings"),
    "loaded_embeddings": ("phyla.adapters.embeddings", "get_loaded_embeddings"),
}

# Properties, each with the method that sets it.
LAZY_SETTINGS: dict[str, tuple[str, str, str]] = {
    "active_adapters": ("phyla.adapters.api", "get_active_adapters", "set_active_adapters"),
}

# Call arguments that models with adapters take as well.
ADAPTER_ARGUMENTS = (
    "task_ids", "adapter_names", "adapter_input_parallelized", "output_adapter_gating_scores",
    "output_adapter_fusion_attentions",
)  # fmt: skip

# Tasks whose heads score next tokens.
GENERATING = (
    "block-diffusion", "causal-lm", "double-heads", "image-text-to-text", "seq2seq-lm", "speech-seq2seq",
    "text-to-waveform",
)  # fmt: skip

# Ways to compute attention that are there without more; phyla/fast/interface.py knows all public names. The
# fused call picks the flash kernel by itself wherever there is one.
IMPLEMENTATIONS = ("eager", "sdpa")


class Lazy:
    """Finds a method on a higher floor when it is first asked for."""

    def __init__(self, module: str, name: str, kind: str) -> None:
        self.module, self.name, self.kind = module, name, kind

    def __get__(self, instance: Any, owner: type) -> Any:
        function = getattr(importlib.import_module(self.module), self.name)
        if self.kind == "class":
            return function.__get__(owner)
        if instance is None:
            return function
        return function(instance) if self.kind == "property" else function.__get__(instance)


class LazySetting(Lazy):
    """A property whose setting is a method of the instance."""

    def __init__(self, module: str, name: str, setter: str) -> None:
        super().__init__(module, name, "property")
        self.setter = setter

    def __set__(self, instance: Any, value: Any) -> None:
        getattr(instance, self.setter)(value)


class PreTrainedModel(nn.Module):
    """A backbone with at most one head, under a public class name.

    `Model(config)` has fresh random weights; `Model.from_pretrained(source)` reads them. The public classes
    are made by `phyla.family.family`; skeletons (phyla/skeletons.py) give them their call signature. A class
    of one's own derives from a family's base (`BertPreTrainedModel`) and makes its parts in `__init__`.
    """

    config_class: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    family: ClassVar["Family"]
    head_spec: ClassVar[Head]
    main_input_name: ClassVar[str] = "input_ids"
    # Whether token ids, their positions and a cache are all that a step of a text decoder reads.
    steps_by_ids: ClassVar[bool] = False
    config: PretrainedConfig
    _pooled = True

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # LAZY_METHODS and the like

    def __init__(
        self,
        config: PretrainedConfig,
        add_pooling_layer: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """A model with fresh weights; without its pool, where it has one, if add_pooling_layer is False."""
        super().__init__()
        if self.is_own():
            self._take(config)
            return
        self._pooled = add_pooling_layer
        self._assemble(config)
        materialise(self, torch.device(device) if device else torch.get_default_device())
        self.fill_buffers()
        self.init_weights()
        wanted = dtype or config.torch_dtype
        if isinstance(wanted, str):
            wanted = getattr(torch, wanted, None)
        if wanted is not None:
            self.to(wanted)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run `forward`; UnknownArgumentError with the nearest name for an argument that it does not take."""
        adapted = "adapters" in self._modules
        if not torch.compiler.is_compiling() and gradient.wanted and torch.is_grad_enabled():
            importlib.import_module("phyla.fast.native").enable()
        if not torch.compiler.is_compiling() and not self.is_own():
            taken = _arguments(type(self).forward) + (ADAPTER_ARGUMENTS if adapted else ())
            unknown = [name for name in named if name not in taken]
            if unknown:
                raise UnknownArgumentError(
                    f"{type(self).__name__} takes no {unknown[0]!r}.{nearest(unknown[0], taken)}"
                )
        if adapted:
            adapters: Any = self._modules["adapters"]
            return adapters.run(self, super().__call__, args, named)
        return super().__call__(*args, **named)

    @classmethod
    def is_own(cls) -> bool:
        """Whether the class is no family's but one's own, which makes its parts in `__init__`."""
        return not hasattr(cls, "head_spec")

    def _take(self, config: PretrainedConfig) -> None:
        """Keep the configuration, and what follows from it for calls."""
        if not isinstance(config, PretrainedConfig):
            raise ConfigError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, but got "
                f"{type(config).__name__}; to read a checkpoint use from_pretrained"
            )
        self.config = config
        asked = getattr(config, "_attn_implementation", None)
        if isinstance(asked, dict):  # of names by part: see phyla/fast/interface.py
            asked = asked.get("")
        asked = asked or "sdpa"
        if asked not in IMPLEMENTATIONS:
            asked = importlib.import_module("phyla.fast.interface").enabled(asked)
        self.implementation = asked

    def _assemble(self, config: PretrainedConfig) -> None:
        """Build the module tree on the meta device."""
        self._take(config)
        head = self.head_spec
        for name, value in head.changes.items():
            setattr(config, name, value)
        spec = (head.build or self.family.build)(config)
        if not (head.pool and self._pooled) and "pool" in spec.args:
            spec = spec.but(pool=None)
        spec = head.wrap(spec, config)
        with torch.device("meta"):
            self.backbone = spec.make()
            self.head: HeadModule | None = head.make(config, self.width)
        if self.head is not None:
            self.head.tie(self.backbone)
        number_slots(self)
        for inner in self.modules() if self.implementation != "sdpa" else ():
            if isinstance(inner, PreTrainedModel) and inner is not self:
                inner.implementation = self.implementation
        asked = [c.__dict__.get("_attn_implementation") for c in self._part_configs()]
        if any(asked) or isinstance(getattr(config, "_attn_implementation", None), dict):
            importlib.import_module("phyla.fast.interface").settle(self)

    def _part_configs(self) -> list[PretrainedConfig]:
        """The configurations of the parts that a model of several has."""
        found = [self.config.__dict__.get(name) for name in type(self.config).PARTS]
        return [c for c in found if isinstance(c, PretrainedConfig)]

    def more_names(self) -> dict[str, Any]:
        """The name maps, by part, of what hangs beside `backbone` and `head` of a model put together."""
        return {}

    @property
    def width(self) -> int:
        """Elements of a state of the backbone."""
        return self.family.width(self.config)

    def fill_buffers(self) -> None:
        """Compute every table that no file holds."""
        for module in self.modules():
            if isinstance(module, Block):
                module.fill_buffers()

    def init_weights(self) -> None:
        """Fresh random parameters: normal with config.initializer_range, norms at one, biases at zero.

        In a class of one's own: of the layers beside its models, which have theirs.
        """
        std = 0.02
        for key in ("initializer_range", "init_std"):
            std = float(getattr(self.config.get_text_config(), key, std))
        inside = {id(m) for part in self.parts().values() for m in part.modules()}
        for module in self.modules():
            added = id(module) not in inside and isinstance(module, _PLAIN_LAYERS)
            if added or not self.is_own():
                init_module(module, std)

    def post_init(self) -> None:
        """The last line of `__init__` in a class of one's own: fresh weights for its layers."""
        self.init_weights()

    def parts(self) -> "dict[str, PreTrainedModel]":
        """The outermost models inside a class of one's own, by path."""
        found: dict[str, PreTrainedModel] = {}
        for path, module in self.named_modules():
            if path and isinstance(module, PreTrainedModel):
                if not any(path.startswith(outer + ".") for outer in found):
                    found[path] = module
        return found

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating parameter."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether inputs go to an encoder and generated tokens to a decoder."""
        return False

    @property
    def base_model(self) -> nn.Module:
        """The backbone; in a class of one's own its first model."""
        return next(iter(self.parts().values()), self) if self.is_own() else self.backbone

    def sites(self) -> Iterator[Site]:
        """Every named place that adapters, quantisers and probes may touch."""
        yield from sites(self if self.is_own() else self.backbone)

    def new_cache(self, batch: int, length: int) -> Cache | None:
        """An empty cache with room for `length` positions of `batch` rows; forward fills it in place.

        None where no mixer keeps memory (encoders).
        """
        if batch <= 0 or length <= 0:
            raise ArgumentError(f"a cache needs a positive batch and length, but got {batch} and {length}")
        cache = Cache.of(self, batch, length)
        return None if all(slot is None for slot in cache.slots) else cache

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count of parameters, tied ones once, and of the weights that packed maps stand for."""
        tables, packed = set(), 0
        if exclude_embeddings:
            tables = {id(m.weight) for n, m in self.named_modules() if n.endswith("embed.tokens")}
        if not only_trainable:
            outlines = [(n, getattr(m, "outline", None)) for n, m in self.named_modules()]
            packed = sum(
                o.numel()
                for n, o in outlines
                if isinstance(o, Tensor) and not (exclude_embeddings and ".embed.tokens." in f".{n}.")
            )
        return packed + sum(
            p.numel()
            for p in self.parameters()
            if id(p) not in tables and (p.requires_grad or not only_trainable)
        )

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        from phyla.heads.lm import token_table

        if self.is_own():
            base: Any = self.base_model
            return base.get_input_embeddings()
        return token_table(self.backbone)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """Recompute layers in the backward pass instead of keeping their activations."""
        self._set_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._set_checkpointing(False)

    def _set_checkpointing(self, value: bool) -> None:
        module: Any
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = value

    @classmethod
    def from_config(
        cls, config: PretrainedConfig, attn_implementation: str | dict | None = None, **options: Any
    ) -> "PreTrainedModel":
        """A model of this configuration with fresh random weights."""
        if attn_implementation is not None:
            config = copy.deepcopy(config)  # which other models may share
            config._attn_implementation = attn_implementation
        return cls(config, **options)

    _from_config = from_config

    def can_generate(self) -> bool:
        """Whether the head scores next tokens."""
        return not self.is_own() and self.head_spec.task in GENERATING


# Layers that a class of one's own may add; what else it has starts as it made it.
_PLAIN_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@functools.cache
def _arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names that a call signature takes."""
    return tuple(inspect.signature(forward).parameters)[1:]


for _name, (_module, _function) in LAZY_METHODS.items():
    setattr(PreTrainedModel, _name, Lazy(_module, _function, "method"))
for _name, (_module, _function) in LAZY_CLASS_METHODS.items():
    setattr(PreTrainedModel, _name, Lazy(_module, _function, "class"))
for _name, (_module, _function) in LAZY_PROPERTIES.items():
    setattr(PreTrainedModel, _name, Lazy(_module, _function, "property"))
for _name, (_module, _function, _setter) in LAZY_SETTINGS.items():
    setattr(PreTrainedModel, _name, LazySetting(_module, _function, _setter))


Places = dict[int, list[tuple[nn.Module, str]]]


def places_of(model: nn.Module) -> Places:
    """Where each parameter and buffer hangs, by identity: (module, attribute), several for a tied one."""
    places: Places = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, name))
    return places


def assign(places: Places, old: Tensor, new: Tensor) -> None:
    """Put `new` wherever `old` hangs; tied tensors stay tied."""
    parameter = isinstance(old, nn.Parameter)
    value = nn.Parameter(new, requires_grad=old.requires_grad) if parameter else new
    for module, name in places[id(old)]:
        table: dict[str, Any] = module._parameters if parameter else module._buffers
        table[name] = value


def materialise(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Give uninitialised memory to tensors still on the meta device; `dtype` is for floating parameters."""
    places = places_of(model)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_meta:
            kind = (
                dtype
                if dtype and isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
                else tensor.dtype
            )
            assign(places, tensor, torch.empty(tensor.shape, dtype=kind, device=device))


def init_module(module: nn.Module, std: float) -> None:
    """Fresh values for the parameters that this module itself holds."""
    with torch.no_grad():
        reset = getattr(module, "reset", None)
        if reset is not None and reset(std):
            return
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or not parameter.is_floating_point():
                parameter.zero_()
            else:
                parameter.normal_(0.0, std)
        padding, weight = getattr(module, "padding", None), getattr(module, "weight", None)
        if isinstance(padding, int) and isinstance(weight, Tensor):
            if 0 <= padding < len(weight) and weight.dim() == 2:
                weight[padding].zero_()
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                buffer.zero_()
