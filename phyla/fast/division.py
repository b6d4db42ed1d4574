"""The parts of a model that several ranks can hold together, why others stay whole, how one is divided."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from phyla.blocks.attention import Attention
from phyla.blocks.embed import Embed, Tokens
from phyla.blocks.ffn import FFN, GatedFFN
from phyla.blocks.linear import Linear
from phyla.blocks.moe import Experts
from phyla.blocks.norm import LayerNorm, RMSNorm
from phyla.blocks.position import Alibi, BucketBias, RelativeKeys, Rotary, StackBias
from phyla.blocks.shares import Ranks, Span
from phyla.blocks.stack import Stack
from phyla.fast.shard_adapters import changed_by_adapters
from phyla.fast.shares import (
    AlibiShare,
    ColumnLinear,
    ExpertShare,
    HeadKeys,
    HeadNorm,
    HeadShare,
    PickingLinear,
    RowLinear,
    TokenShare,
    WideLayerNorm,
    WideRMSNorm,
    share_of,
)
from phyla.heads.lm import TokenScores

_WIDE_NORMS: dict[type, type] = {RMSNorm: WideRMSNorm, LayerNorm: WideLayerNorm}
_HARMLESS = ("__init__", "reset")
_OF_ATTENTION = {
    "q", "k", "v", "o", "position", "q_norm", "k_norm", "pre_norm", "post_norm", "out_norm", "layer_scale",
    "site", "mix_site", "kv_site",
}  # fmt: skip


@dataclass
class Part:
    """What is divided as one: an attention, a feed-forward, experts, token tables or an output matrix.

    columns, rows: its maps (or parameters) whose outputs or inputs are divided. obstacle: why it stays whole.
    """

    path: str
    module: Any
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    obstacle: str | None = None

    @property
    def sites(self) -> list[str]:
        """The paths of its maps."""
        return [f"{self.path}.{name}" if name else self.path for name in (*self.columns, *self.rows)]


def find_parts(model: nn.Module, size: int) -> list[Part]:
    """Every part of a model, with what keeps `size` ranks from dividing it."""
    parts = list(_parts(model, size))
    changed = changed_by_adapters(model)
    for part in parts:
        maps = (part.module._modules.get(n) for n in (*part.columns, *part.rows, "q_norm", "k_norm"))
        if changed & {id(part.module), *map(id, maps)} - {id(None)}:
            part.obstacle = "an adapter changes its weights"
    _tie(parts, model)
    _tie_biased(parts, model)
    return parts


def _parts(model: nn.Module, size: int) -> Iterator[Part]:
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules():
        if isinstance(module, Attention):
            yield Part(path, module, ("q", "k", "v"), ("o",), _of_heads(module, size, owners))
        elif isinstance(module, FFN | GatedFFN):
            columns = ("gate", "up") if isinstance(module, GatedFFN) else ("up",)
            yield Part(path, module, columns, ("down",), _of_width(module, size, owners))
        elif isinstance(module, Experts):
            yield Part(path, module, ("gate", "up"), ("down",), _of_experts(module, size))
        elif isinstance(module, TokenScores):
            out = f"{path}.out" if path else "out"
            yield Part(out, module.out, ("",), (), _of_rows(module.out, Linear, size))
        elif isinstance(module, Embed):
            table = f"{path}.tokens" if path else "tokens"
            yield Part(table, module.tokens, (), ("",), _of_rows(module.tokens, Tokens, size))


def bias_groups(model: nn.Module, parts: list[Part]) -> Iterator[tuple[Any, list[Part]]]:
    """The biases that stacks own, each with the attentions that take it."""
    known = {id(part.module): part for part in parts}
    for stack in model.modules():
        if isinstance(stack, Stack) and stack.position is not None:
            every = (known.get(id(m)) for layer in stack.layers for m in layer.modules())
            yield stack.position, [p for p in every if p is not None and _takes_bias(p)]


def _takes_bias(part: Part) -> bool:
    return isinstance(part.module, Attention) and isinstance(part.module.position, StackBias)


def _tie_biased(parts: list[Part], model: nn.Module) -> None:
    """Attentions with one bias are divided together, where it is a table of theirs alone, or not at all."""
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    seen: set[int] = set()
    for table, members in bias_groups(model, parts):
        seen |= {id(p) for p in members}
        kept = next((f"{p.path}, with the same bias, stays whole" for p in members if p.obstacle), None)
        if type(table) is not BucketBias or owners[id(table.weight)] > 1:
            kept = f"a bias of kind {type(table).__name__} is not known by head"
        for part in members:
            part.obstacle = part.obstacle or kept
    for part in parts:
        if _takes_bias(part) and id(part) not in seen:
            part.obstacle = part.obstacle or "its bias comes from elsewhere"


def _tie(parts: list[Part], model: nn.Module) -> None:
    """Token tables and output matrices that share a weight are divided together or not at all."""
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                holders.setdefault(id(tensor), []).append(module)
    tables = {id(p.module): p for p in parts if not (p.columns and p.rows)}
    for part in tables.values():
        weight = part.module._parameters.get("weight")
        for other in holders.get(id(weight), ()):
            known = tables.get(id(other))
            if known is None or known.obstacle is not None:
                part.obstacle = part.obstacle or "its weight is also used where it must be whole"


def _is_of(module: Any, *bases: type) -> bool:
    """Whether a class computes what a base computes, or says (`divides`) that its heads or elements are
    apart."""
    for kind in type(module).__mro__:
        if kind in bases:
            return True
        own = {n for n, v in vars(kind).items() if callable(v) or isinstance(v, property)}
        if own - set(_HARMLESS) and not vars(kind).get("divides"):
            return False
    return False


def _unlike(module: nn.Module, names: tuple[str, ...], owners: Counter) -> str | None:
    """Why the maps of a part cannot be cut."""
    for name in names:
        held = module._modules.get(name)
        if not isinstance(held, Linear) or type(held).forward is not Linear.forward:
            return f"{name} is a {type(held).__name__}, whose weight cannot be cut"
        if any(owners[id(p)] > 1 for p in held.parameters(recurse=False)):
            return f"{name} shares its weight with another map"
    return None


def _of_heads(attn: Attention, size: int, owners: Counter) -> str | None:
    heads, groups = attn.num_heads, attn.num_kv_heads
    if not _is_of(attn, Attention) or set(attn._modules) - _OF_ATTENTION or _holds_own(attn):
        return f"{type(attn).__name__} does more than plain attention"
    if heads % size:
        return f"{heads} heads are no multiple of {size} ranks"
    if groups % size and size % groups:
        return f"{groups} key/value heads and {size} ranks do not divide each other"
    position = attn.position
    known = position is None or isinstance(position, Rotary | RelativeKeys)
    if not known and type(position) not in (Alibi, StackBias):
        return f"positions of kind {type(position).__name__} are not known by head"
    if attn.q_norm is not None and not attn.norm_by_head:
        if type(attn.q_norm) not in _WIDE_NORMS or groups % size:
            return "its norm of queries and keys cannot be cut"
    return _unlike(attn, ("q", "k", "v", "o"), owners)


def _holds_own(module: nn.Module) -> bool:
    return any(p is not None for p in module._parameters.values())


def _of_width(ffn: Any, size: int, owners: Counter) -> str | None:
    if not _is_of(ffn, FFN, GatedFFN):
        return f"{type(ffn).__name__} does more than a plain feed-forward"
    names = ("gate", "up", "down") if isinstance(ffn, GatedFFN) else ("up", "down")
    unlike = _unlike(ffn, names, owners)
    if unlike is None and ffn.up.out_features % size:
        return f"the inner width {ffn.up.out_features} is no multiple of {size} ranks"
    return unlike


def _of_experts(experts: Any, size: int) -> str | None:
    held = [experts._parameters.get(name) for name in ("gate", "up", "down")]
    if type(experts)._run is not Experts._run or any(p is None for p in held):
        return f"{type(experts).__name__} does more than plain experts"
    inner = held[0].shape[1]
    return f"the inner width {inner} is no multiple of {size} ranks" if inner % size else None


def _of_rows(module: Any, kind: Any, size: int) -> str | None:
    if type(module) is not kind:
        return f"a {type(module).__name__} cannot be cut"
    rows = len(module.weight)
    return f"{rows} rows are fewer than {size} ranks" if rows < size else None


class Cutter:
    """Cuts parameters for one rank; those that were one stay one."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        # By the ids of the old ones, which are kept so that nothing else gets them.
        self.done: dict[int, tuple[Tensor, nn.Parameter]] = {}

    def divide(self, part: Part) -> None:
        """Let this rank hold its share of a part."""
        module: Any = part.module
        if isinstance(module, Attention):
            self._heads(module)
        elif isinstance(module, Experts):
            self._share(module, ExpertShare)
            for name, dim in (("gate", 1), ("up", 1), ("down", 2)):
                self.cut(module, name, dim)
        elif isinstance(module, Tokens):
            self._become(module, TokenShare)
            self.cut(module, "weight", 0)
        elif isinstance(module, Linear):
            self.columns(module, gathers=True)
        else:
            module.joined = None
            for name in part.columns:
                self.columns(module._modules[name])
            self.rows(module.down)

    def columns(self, linear: Any, units: int | None = None, gathers: bool = False) -> None:
        """Divide the outputs of a map, `units` of them, which stay whole."""
        self._become(linear, ColumnLinear)
        linear.gathers = gathers
        for name in ("weight", "bias"):
            self.cut(linear, name, 0, units)

    def rows(self, linear: Any, units: int | None = None, splits: bool = False) -> None:
        """Divide the inputs of a map."""
        self._become(linear, RowLinear)
        linear.splits = splits
        self.cut(linear, "weight", 1, units)

    def cut(self, module: Any, name: str, dim: int, units: int | None = None) -> None:
        """Keep this rank's part of a parameter, where there is one."""
        old = module._parameters.get(name)
        if old is None:
            return
        edges = self.ranks.edges(old.shape[dim], units or old.shape[dim])
        module.spans[name] = span = Span(dim, edges, self.ranks)
        if id(old) not in self.done:
            self.done[id(old)] = old, nn.Parameter(span.cut(old.detach()).clone(), old.requires_grad)
        module._parameters[name] = self.done[id(old)][1]

    def bias(self, table: Any) -> None:
        """Keep the columns of this rank's heads of a bias that a stack owns."""
        table.ranks, table.spans = self.ranks, {}
        self.cut(table, "weight", 1)

    def _become(self, module: Any, kind: type) -> None:
        module.__class__, module.ranks, module.spans = kind, self.ranks, {}

    def _share(self, module: Any, share: type) -> None:
        kind: Any = type(module)
        self._become(module, share_of(kind, share))

    def _heads(self, attn: Any) -> None:
        ranks, heads, groups = self.ranks, attn.num_heads, attn.num_kv_heads
        repeats = max(1, ranks.size // groups)
        self.columns(attn.q, heads)
        for side in (attn.k, attn.v):
            if side is None:  # keys serve as values
                continue
            if groups % ranks.size:
                self._become(side, PickingLinear)
                start = ranks.rank // repeats * attn.head_width
                side.kept = start, start + attn.head_width
            else:
                self.columns(side, groups)
        self.rows(attn.o, heads)
        for norm in (attn.q_norm, attn.k_norm):
            if norm is not None and attn.norm_by_head:
                self._share(norm, HeadNorm)
            elif norm is not None:
                self._become(norm, _WIDE_NORMS[type(norm)])
                for name in ("weight", "bias"):
                    self.cut(norm, name, 0, heads)
        self._share(attn, HeadShare)
        attn.every, attn.repeats, attn.joined = (heads, groups), repeats, None
        attn.num_heads, attn.num_kv_heads = heads // ranks.size, max(1, groups // ranks.size)
        self._position(attn.position, heads)

    def _position(self, position: Any, heads: int) -> None:
        if isinstance(position, Alibi):
            self._become(position, AlibiShare)
            position.signature += f" of rank {self.ranks.rank}"  # another bias than that of all heads
            span = Span(0, self.ranks.edges(heads, heads), self.ranks)
            position.slopes = span.cut(position.slopes).clone()
        elif isinstance(position, RelativeKeys):
            self._share(position, HeadKeys)
