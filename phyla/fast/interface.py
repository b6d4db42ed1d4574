"""Public names of attention implementations, functions of the caller's own, and switching between them."""

import logging
import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.attending import Asked, kernels
from phyla.blocks.attention import attend
from phyla.blocks.mask import additive
from phyla.blocks.stack import Stack
from phyla.blocks.stages import Stages
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError, MissingExtraError, nearest
from phyla.model import PreTrainedModel

log = logging.getLogger("phyla.fast.interface")

# (module, query, key, value, attention_mask, scaling, dropout, **more) -> ((B, S, H, E), weights or None)
AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]

# public name -> ours
NAMES = {
    "eager": "eager", "sdpa": "sdpa", "flex_attention": "flex", "flash_attention_2": "flash",
    "flash_attention_3": "flash3", "flash_attention_4": "flash4", "paged_attention": "sdpa",
}  # fmt: skip
# repositories of compiled kernels -> the public name of the same kernel from an installed package
HUB = {
    "kernels-community/flash-attn": "flash_attention_2",
    "kernels-community/flash-attn2": "flash_attention_2",
    "kernels-community/flash-attn3": "flash_attention_3",
    "kernels-community/vllm-flash-attn3": "flash_attention_3",
    "kernels-community/flash-attn4": "flash_attention_4",
    "kernels-community/metal-flash-sdpa": "sdpa",
}
_REPOSITORY = re.compile(r"(?:flash\||paged\|)*(?P<name>[\w.-]+/[\w.-]+?)(?:@[\w./-]+)?(?::\w+)?$")


def eager_attention_forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, **more: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Step by step: query (B, H, S, E), key and value (B, G, K, E) -> (B, S, H, E), (B, H, S, K)."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + additive(attention_mask, scores.dtype)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout)
    return (weights @ value).transpose(1, 2), weights


def sdpa_attention_forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The fused call, likewise; it gives no weights, and has no cap."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, None, False, scale, dropout).transpose(1, 2), None


def flex_attention_forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
    scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """FlexAttention, likewise; attention_mask may be a BlockMask, too.

    Raises ArgumentError for dropout, which it has not.
    """
    from phyla.fast import flex

    if dropout:
        raise ArgumentError(f"flex_attention has no dropout of weights, but dropout is {dropout}")
    ready = isinstance(attention_mask, Tensor)
    added = flex.looked_up(additive(attention_mask, query.dtype)) if ready else None
    y = flex.run(
        query, key, value, score_mod=flex.scored(None, softcap, added), scale=scaling,
        block_mask=None if ready else attention_mask, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return y.transpose(1, 2), None


class AttentionInterface(MutableMapping[str, AttentionFunction]):
    """Attention functions by name: `AttentionInterface.register("mine", function)`, then
    `attn_implementation="mine"`.

    A function is called as function(module, query, key, value, attention_mask, scaling=, dropout=,
    is_causal=False[, softcap=][, sliding_window=]) and returns ((B, S, H, E), weights or None).
    attention_mask is additive (B or 1, H or 1, S, K) and says all that is hidden, and biases of positions
    too; None where there is neither.
    """

    shared: ClassVar[dict[str, AttentionFunction]] = {
        "eager": eager_attention_forward,
        "flex_attention": flex_attention_forward,
        "sdpa": sdpa_attention_forward,
    }

    @classmethod
    def register(cls, key: str, value: AttentionFunction) -> None:
        """Let models compute attention by this function; ArgumentError for a name that is taken."""
        if key in NAMES or "|" in key or "/" in key or not callable(value):
            raise ArgumentError(
                f"an attention function needs a name of its own, without | and /, and must be callable, but "
                f"got {key!r} for a {type(value).__name__}; names that stand for others: {sorted(NAMES)}"
            )
        cls.shared[key] = value
        kernels[f"own:{key}"] = kernel_of(value)

    def valid_keys(self) -> list[str]:
        """Every name that has a function."""
        return list(self)

    def get_interface(self, attn_implementation: str, default: AttentionFunction) -> AttentionFunction:
        """The function of a name; ArgumentError for one that is not known."""
        if attn_implementation not in self and attn_implementation not in NAMES:
            raise ArgumentError(f"no attention function is registered as {attn_implementation!r}")
        return self.get(attn_implementation, default)

    def __getitem__(self, key: str) -> AttentionFunction:
        return self.shared[key]

    def __setitem__(self, key: str, value: AttentionFunction) -> None:
        self.register(key, value)

    def __delitem__(self, key: str) -> None:
        if key in NAMES:
            raise ArgumentError(f"{key!r} is no function of the caller's own")
        del self.shared[key]
        kernels.pop(f"own:{key}", None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shared)

    def __len__(self) -> int:
        return len(self.shared)


ALL_ATTENTION_FUNCTIONS = AttentionInterface()


def kernel_of(function: AttentionFunction) -> Callable[[Asked], Tensor | None]:
    """A public function as attention calls it."""

    def attend_by(asked: Asked) -> Tensor | None:  # (B, H, S, E)
        mixer, ctx = asked.mixer, asked.ctx
        if ctx.head_mask is not None:
            return None
        asked.causal = False
        k, v, mask, bias, _ = asked.tensors()
        if mask is not None:
            mask = additive(mask, asked.q.dtype)
        if bias is not None:
            mask = bias.to(asked.q.dtype) if mask is None else bias.to(asked.q.dtype) + mask
        more: dict[str, Any] = {}
        if mixer.softcap is not None:
            more["softcap"] = mixer.softcap
        if getattr(mixer.rule, "window", None) is not None and not mixer.cross:
            more["sliding_window"] = mixer.rule.window
        mixer.layer_idx = ctx.layer  # public functions look for it there
        y, weights = function(
            mixer, asked.q, k, v, mask, scaling=mixer.scale, dropout=asked.dropout, is_causal=False, **more
        )
        if asked.record is not None:
            if weights is None:
                return None  # step by step, which gives them
            asked.record.append(weights)
        return y.transpose(1, 2)

    return attend_by


def enabled(asked: Any) -> str:
    """Our name of a public one, ready to be used.

    "paged|sdpa", "sdpa_paged" and the like mean what they are without: the engine has its pages by itself.
    Code of repositories is not run: a known kernel's installed package takes its place, or the fused call.
    Raises ConfigError for an unknown name, MissingExtraError for a package that is not installed.
    """
    name = str(asked)
    name = name.removeprefix("paged|").removesuffix("_paged")
    if name in AttentionInterface.shared and name not in NAMES:
        return f"own:{name}"
    if name in NAMES:
        return _ready(NAMES[name])
    repository = _REPOSITORY.match(name)
    if repository is not None and repository["name"] in HUB:
        return _instead_of(repository["name"])
    known = [*NAMES, *AttentionInterface.shared, *HUB]
    hint = nearest(name, known)
    if repository is not None:
        hint += (
            " No code of a repository is run: register a function of yours by AttentionInterface.register."
        )
    raise ConfigError(f"attn_implementation must be one of {sorted(set(known))}, but is {asked!r}.{hint}")


def _ready(name: str) -> str:
    if name.startswith("flash"):
        from phyla.fast import flash

        flash.enable(name)
    elif name == "flex":
        from phyla.fast import flex

        flex.enable()
    return name


def _instead_of(repository: str) -> str:
    """What stands for a repository of kernels, whose code is not run."""
    public = HUB[repository]
    try:
        return _ready(NAMES[public])
    except MissingExtraError:
        log.warning("%s is not run; %s is not installed, so that sdpa takes its place", repository, public)
        return "sdpa"


def set_attn_implementation(model: PreTrainedModel, attn_implementation: str | dict[str, Any]) -> None:
    """Compute attention in another way from now on.

    attn_implementation: a name (see `enabled`); or a dict of names by part of the configuration
    ({"text_config": "flex_attention", "vision_config": "eager"}), where "" is the rest.
    Raises ConfigError for unknown names and parts; nothing is changed then.
    """
    config = model.config
    asked = attn_implementation if isinstance(attn_implementation, dict) else {"": attn_implementation}
    rest = asked.get("", None)
    if rest is None:
        rest = _named(getattr(config, "_attn_implementation", None))
    whole = enabled(rest)
    parts = {name: _part(model, name, value) for name, value in asked.items() if name}
    if not isinstance(attn_implementation, dict):
        _reset(model)
    model.implementation = whole
    config._attn_implementation = rest
    for name, (places, own) in parts.items():
        for place in places:
            place.implementation = own
        part = getattr(config, name)
        if isinstance(part, PretrainedConfig):
            part._attn_implementation = _named(asked[name])


def _named(asked: Any) -> str:
    """The name for what a dict of names does not mention."""
    return (asked.get("", None) if isinstance(asked, dict) else asked) or "sdpa"


def _reset(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, Stack | Stages):
            module.implementation = None
        elif isinstance(module, PreTrainedModel) and module is not model:
            module.implementation = model.implementation


def _part(model: PreTrainedModel, name: str, asked: Any) -> tuple[list[Any], str]:
    """The stacks and models that a part of the configuration describes, and our name for them."""
    if name not in type(model.config).PARTS and not isinstance(
        getattr(model.config, name, None), PretrainedConfig
    ):
        raise ConfigError(
            f"attn_implementation names the part {name!r}, but a {model.config.model_type} configuration has "
            f"{sorted(type(model.config).PARTS)}.{nearest(name, type(model.config).PARTS)}"
        )
    own = enabled(_named(asked))
    short = name.removesuffix("_config")
    called = (short, _OTHER.get(short))
    roots = [m for path, m in model.backbone.named_modules() if path.rpartition(".")[2] in called]
    places = [m for root in roots for m in root.modules() if isinstance(m, Stack | Stages | PreTrainedModel)]
    if not places:
        raise ConfigError(f"{type(model).__name__} has no part {name!r} whose attention can be set apart")
    return places, own


# Parts that are called otherwise here than in configurations.
_OTHER = {"vision": "image", "audio": "sound"}


def settle(model: PreTrainedModel) -> None:
    """Give the parts of a new model what its configuration asks for them."""
    asked = getattr(model.config, "_attn_implementation", None)
    parts: dict[str, Any] = {}
    for name in type(model.config).PARTS:
        own = getattr(getattr(model.config, name, None), "_attn_implementation", None)
        if own is not None:
            parts[name] = own
    if isinstance(asked, dict):
        parts.update({name: value for name, value in asked.items() if name})
    if parts:
        set_attn_implementation(model, {"": _named(asked), **parts})
