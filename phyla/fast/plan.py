"""Which stacks of layers the native kernels compute as a whole, and how they are told where all lies.

Plain means: branches of self-attention and of a feed-forward or a mixture of experts, one after the other or
side by side, with norms before, behind and after them, of queries and keys, with rotary positions, ALiBi or
none, in weights of one dtype. Anything put at a site, a hook, a recorded attention, gradients or a captured
graph send the call through the modules as ever.
"""

import ctypes
import functools
from collections.abc import Iterable
from operator import getitem
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from phyla.blocks.attention import Attention
from phyla.blocks.ffn import FFN, GatedFFN
from phyla.blocks.linear import Linear
from phyla.blocks.mask import Causal, Full, Window
from phyla.blocks.moe import Experts
from phyla.blocks.norm import LayerNorm, RMSNorm
from phyla.blocks.position import Alibi, Rotary, StackBias
from phyla.blocks.stack import Layer, Parallel, Stack
from phyla.fast.codes import CodeMatrix
from phyla.fast.packed import PackedLinear
from phyla.quantization.experts import PackedExperts
from phyla.quantization.linear import QuantizedLinear

WIDEST = 512  # elements of a head that the kernels have room for
MOST_CHOSEN = 32  # experts of a token that they have room for
ALL = 1 << 40  # more keys than there are
_ACTS = {
    "relu": 0, "silu": 1, "swish": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "gelu_python_tanh": 2,
    "gelu": 3, "gelu_python": 3, "quick_gelu": 4,
}  # fmt: skip
_PACKED = (PackedLinear, QuantizedLinear)
_HOLDING = (*_PACKED, PackedExperts)
SITES = ("site", "mix_site", "kv_site")
_NORMS: dict[type, int] = {RMSNorm: 1, LayerNorm: 2}

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class Norm(ctypes.Structure):
    _fields_ = [
        ("weight", _pointer), ("bias", _pointer), ("eps", _float), ("offset", _float), ("kind", _long),
    ]  # fmt: skip


class Map(ctypes.Structure):
    _fields_ = [("weight", _pointer), ("bias", _pointer), ("codes", _pointer)]


class Mixture(ctypes.Structure):
    _fields_ = [
        ("experts", _long), ("chosen", _long), ("power", _float), ("router", Map),
        *((name, ctypes.POINTER(Map)) for name in ("gate", "up", "down")),
    ]  # fmt: skip


class Cross(ctypes.Structure):
    _fields_ = [
        *((name, Norm) for name in ("pre", "out", "post")), ("q", Map), ("o", Map), ("multiplier", _float),
        ("keeps", _long), ("keys", _pointer), ("values", _pointer), ("count", _long),
    ]  # fmt: skip


_BRANCH_NORMS = ("attn_pre", "attn_out", "attn_post", "ffn_pre", "ffn_out", "ffn_post")
_MAP_NAMES = ("q", "k", "v", "o", "gate", "up", "down")


class LayerPart(ctypes.Structure):
    _fields_ = [
        *((name, Norm) for name in (*_BRANCH_NORMS, "q_norm", "k_norm")),
        *((name, Map) for name in _MAP_NAMES),
        ("attn_multiplier", _float), ("ffn_multiplier", _float), ("clip", _float),
        *((name, _long) for name in ("side_by_side", "attn_keeps", "ffn_keeps", "inner", "act", "gated")),
        ("mixture", ctypes.POINTER(Mixture)), ("cross", ctypes.POINTER(Cross)),
        *((name, _long) for name in ("turned", "paired", "angle_rows")), ("cos", _pointer), ("sin", _pointer),
        ("bias", _pointer), ("bias_row", _long), ("bias_head", _long),
        ("keys", _pointer), ("values", _pointer),
        ("capacity", _long), ("used", _long), ("first", _long), ("window", _long), ("ahead", _long),
    ]  # fmt: skip


class StackPart(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in (
            "is_bfloat16", "coded", "layers", "batch", "length", "width", "heads", "kv_heads", "head_width",
            "norm_by_head",
        )),
        ("scale", _float), ("mask", _pointer), ("mask_stride", _long), ("memory_mask", _pointer),
        ("memory_stride", _long), ("x", _pointer),
        ("layer", ctypes.POINTER(LayerPart)),
    ]  # fmt: skip


class _Entries:
    """Places in tables of modules, looked up at every step: by loops of the interpreter's own."""

    def __init__(self, places: Iterable[tuple[dict[str, Any], str]]) -> None:
        kept = list(places)
        self.tables, self.names = [table for table, _ in kept], [name for _, name in kept]

    def now(self) -> list[Any]:
        """What is there."""
        return [*map(getitem, self.tables, self.names)]


class Plan:
    """The static part of the calls of one stack, and what must not have changed since it was made."""

    def __init__(self, stack: Stack) -> None:
        layers: list[Any] = list(stack.layers)
        first = layers[0]
        self.attns: list[Attention] = [layer.attn for layer in layers]
        self.ffns: list[Any] = [layer.ffn for layer in layers]
        self.positions: list[Any] = list(
            {
                attn.position.signature: attn.position for attn in self.attns if attn.position is not None
            }.values()
        )
        self.biased = any(isinstance(position, Alibi | StackBias) for position in self.positions)
        # Attentions over an encoder's states; biases that differ between the queries of a call.
        self.crosses: list[Attention] = [layer.cross for layer in layers if "cross" in layer.order]
        self.by_query = stack.position is not None
        self.causal = isinstance(first.attn.mask, Causal)
        self.dtype = next(first.parameters()).dtype
        packed = [m for layer in layers for m in layer.modules() if type(m) in _HOLDING]
        self.packed = _Entries((m._modules, "packed" if type(m) is PackedLinear else "coded") for m in packed)
        self.weights = self.packed.now()
        self.codes = _Entries((w._buffers, "codes") for w in self.weights if w is not None)
        self.matrices = [matrix for m in packed for matrix in matrices_of(m)]  # the kernel looks at them
        modules = [m for layer in layers for m in _modules_of(layer)]
        self.modules, self.kinds = modules, [*map(type, modules)]
        self.children = _Entries(
            (m._modules, name)
            for m in (stack, stack.layers, *modules)
            for name, child in m._modules.items() if child is not None
        )  # fmt: skip
        self.stood = self.children.now()
        self.hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks) if d is not None]
        sites = [(m._modules, n) for m in modules for n in SITES if n in m._modules]
        lacking = [(m._parameters, n) for m in modules for n, p in m._parameters.items() if p is None]
        self.sites = _Entries((*sites, *lacking))
        self.free = [None] * len(self.sites.names)
        self.places = _Entries(
            (m._parameters, name) for m in modules for name, p in m._parameters.items() if p is not None
        )
        self.pointers = self.now()
        self.layers = (LayerPart * len(layers))(*(self._layer(layer) for layer in layers))
        attn = first.attn
        self.stack = StackPart(
            is_bfloat16=self.dtype == torch.bfloat16, coded=bool(self.weights), layers=len(layers),
            width=attn.q.in_features, heads=attn.num_heads, kv_heads=attn.num_kv_heads,
            head_width=attn.head_width, norm_by_head=attn.norm_by_head, scale=attn.scale, layer=self.layers,
        )  # fmt: skip

    def now(self) -> list[int]:
        """Where the parameters lie."""
        return [*map(Tensor.data_ptr, self.places.now()), *map(Tensor.data_ptr, self.codes.now())]

    def holds(self) -> bool:
        """Whether modules and parameters are those that they were, and lie where they lay."""
        try:
            same = self.children.now() == self.stood and self.packed.now() == self.weights
            return same and self.now() == self.pointers
        except (KeyError, TypeError):  # one was taken away
            return False

    def parts(self) -> Any:
        """The layers for one call, whose tensors are written there: other threads may be at theirs."""
        made = type(self.layers).from_buffer_copy(self.layers)
        for part, own in zip(made, self.layers, strict=True) if self.crosses else ():
            part.cross = ctypes.pointer(Cross.from_buffer_copy(own.cross.contents))
        return made

    def busy(self) -> bool:
        """Whether something is at a site or a hook, or new among the parameters, and wants to be asked."""
        return any(self.hooks) or self.sites.now() != self.free or [*map(type, self.modules)] != self.kinds

    def _layer(self, layer: Any) -> LayerPart:
        made, attn, ffn = LayerPart(), layer.attn, layer.ffn
        made.side_by_side = isinstance(layer, Parallel)
        for name in ("attn", "ffn"):
            branch = getattr(layer, name)
            pre, out, post = _norms_of(layer, branch)
            for place, norm in (("pre", pre), ("out", out), ("post", post)):
                setattr(made, f"{name}_{place}", _norm(norm))
            setattr(made, f"{name}_multiplier", 1.0 if branch.multiplier is None else branch.multiplier)
            setattr(made, f"{name}_keeps", branch.keep_norm and pre is not None)
        made.q_norm, made.k_norm = _norm(attn.q_norm), _norm(attn.k_norm)
        made.clip = attn.clip or 0.0
        for name in "qkvo":
            setattr(made, name, _map(getattr(attn, name)))
        if isinstance(ffn, Experts):
            made.mixture, made.inner = ctypes.pointer(_mixture(ffn)), ffn.inner
        else:
            made.inner = ffn.up.out_features
            for name in ("gate", "up", "down"):
                setattr(made, name, _map(getattr(ffn, name, None)))
        if "cross" in layer.order:
            made.cross = ctypes.pointer(_cross(layer, layer.cross))
        made.act, made.gated = _ACTS[ffn.spec.args["act"]], not isinstance(ffn, FFN)
        if isinstance(attn.position, Rotary):
            made.turned, made.paired = attn.position.width, attn.position.layout == "pairs"
        mask = attn.mask
        if isinstance(mask, Window):
            made.window, made.ahead = mask.radius + 1, mask.radius
        else:
            made.window = getattr(mask, "window", None) or 0
            made.ahead = 0 if isinstance(mask, Causal) else ALL
        return made


def _cross(layer: Any, branch: Any) -> Cross:
    pre, out, post = _norms_of(layer, branch)
    return Cross(
        _norm(pre), _norm(out), _norm(post), _map(branch.q), _map(branch.o),
        1.0 if branch.multiplier is None else branch.multiplier, branch.keep_norm and pre is not None,
    )  # fmt: skip


def _modules_of(layer: Any) -> list[Any]:
    """A layer's modules, without the parts of packed experts, of which there may be thousands."""
    left_out = {id(p) for m in layer.modules() if isinstance(m, PackedExperts) for p in m.parts.modules()}
    return [m for m in layer.modules() if id(m) not in left_out]


def _norms_of(layer: Any, branch: Any) -> tuple[Any, Any, Any]:
    """The norms before, behind and after a branch."""
    pre = getattr(layer, "pre_norm", None)
    return branch.pre_norm if pre is None else pre, branch.out_norm, branch.post_norm


def _branches(layer: Any) -> list[Any]:
    return [getattr(layer, name) for name in layer.order]


def _all_norms(layer: Any) -> list[Any]:
    branches = [norm for branch in _branches(layer) for norm in _norms_of(layer, branch)]
    return [*branches, layer.attn.q_norm, layer.attn.k_norm]


def _mixture(ffn: Experts) -> Mixture:
    made = Mixture(ffn.experts, ffn.chosen, float(ffn.renormalise), _map(ffn.router))
    for name in ("gate", "up", "down"):
        weight = getattr(ffn, name)
        if isinstance(weight, PackedExperts):
            maps = [Map(None, None, ctypes.addressof(m.struct)) for m in weight.matrices()]
        else:
            maps = [Map(address(part)) for part in weight.detach().unbind()]
        setattr(made, name, (Map * ffn.experts)(*maps))
    return made


def _norm(norm: Any) -> Norm:
    if norm is None:
        return Norm()
    return Norm(
        address(norm.weight), address(getattr(norm, "bias", None)), norm.eps,
        getattr(norm, "offset", 0.0), _NORMS[type(norm)],
    )  # fmt: skip


def _map(linear: Any) -> Map:
    if linear is None:
        return Map()
    matrix = matrix_of(linear)
    if matrix is None:
        return Map(address(linear.weight), address(linear.bias))
    return Map(None, address(linear.bias), ctypes.addressof(matrix.struct))


def matrix_of(linear: Any) -> CodeMatrix | None:
    """The codes of a packed map, None for a dense one and for one whose codes no kernel takes."""
    if type(linear) not in _PACKED:
        return None
    weight = linear.packed if type(linear) is PackedLinear else linear.coded
    return None if weight is None else weight.matrix


def matrices_of(module: Any) -> list[Any]:
    """The codes of a packed map, or of the experts of a mixture, where they have some."""
    if isinstance(module, PackedExperts):
        return module.matrices()
    matrix = matrix_of(module)
    return [] if matrix is None else [matrix]


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def is_plain(stack: Stack) -> bool:
    """Whether the kernel computes what these layers compute."""
    layers: list[Any] = list(stack.layers)
    if not layers or not all(_is_plain_layer(layer) for layer in layers):
        return False
    shared = {isinstance(layer.attn.position, StackBias) for layer in layers}
    if shared != {stack.position is not None} or len({"cross" in layer.order for layer in layers}) > 1:
        return False
    kinds = {t.dtype for t in stack.parameters()}
    shapes = {_shape(layer.attn) for layer in layers}
    return len(shapes) == 1 and kinds in ({torch.float32}, {torch.bfloat16})


def _shape(attn: Attention) -> tuple[Any, ...]:
    """What self-attention must have in common in all layers."""
    has_norms = attn.q_norm is not None
    return (
        attn.num_heads, attn.num_kv_heads, attn.head_width, attn.scale, isinstance(attn.mask, Causal),
        has_norms, has_norms and attn.norm_by_head,
    )  # fmt: skip


def _is_plain_layer(layer: Any) -> bool:
    """Whether the kernel computes one layer."""
    orders = {Layer: (("attn", "ffn"), ("attn", "cross", "ffn")), Parallel: (("attn", "ffn"),)}
    if layer.order not in orders.get(layer.__class__, ()):
        return False
    if "cross" in layer.order and not _is_plain_cross(layer.cross, layer.attn):
        return False
    attn, ffn = layer.attn, layer.ffn
    if not _is_attention(attn.__class__) or type(ffn) not in (FFN, GatedFFN, Experts):
        return False
    if not _is_plain_attention(attn) or ffn.spec.args["act"] not in _ACTS:
        return False
    for branch in _branches(layer):
        if not branch.is_branch or branch.layer_scale is not None:
            return False
        if type(layer) is Parallel and (
            branch.keep_norm or branch.post_norm is not None
            or (layer.pre_norm is not None and branch.pre_norm is not None)
        ):  # fmt: skip
            return False
        if any(n is not None and type(n) not in _NORMS for n in _norms_of(layer, branch)):
            return False
    return _has_plain_maps(layer)


@functools.cache
def _is_attention(kind: type) -> bool:
    """Whether a class is Attention, or differs from it only in what it sets."""
    if not issubclass(kind, Attention):
        return False
    own = [name for c in kind.__mro__[: kind.__mro__.index(Attention)] for name in vars(c)]
    return all(name == "__init__" or not hasattr(Attention, name) or name.startswith("__") for name in own)


def _is_plain_attention(attn: Attention) -> bool:
    if attn.cross or attn.head_width > WIDEST or type(attn.mask) not in (Causal, Full, Window):
        return False
    if attn.q_norm is not None:
        if type(attn.q_norm) not in _NORMS or (attn.norm_by_head and attn.clip is not None):
            return False
    return attn.position is None or type(attn.position) in (Rotary, Alibi, StackBias)


def _is_plain_cross(cross: Any, attn: Any) -> bool:
    """Whether the kernel computes attention over an encoder's states, by heads such as those of `attn`."""
    if not _is_attention(cross.__class__) or not isinstance(attn, Attention):
        return False
    alike = all(
        getattr(cross, name) == getattr(attn, name)
        for name in ("num_heads", "num_kv_heads", "head_width", "scale")
    )
    bare = cross.position is None and cross.q_norm is None and cross.clip is None
    return cross.cross and alike and bare


def _has_plain_maps(layer: Any) -> bool:
    """Whether all weights are such as the kernel reads, and there are no others."""
    ffn = layer.ffn
    maps = [m for m in layer.modules() if isinstance(m, (nn.Linear, *_PACKED))]
    of_ffn = 3 if type(ffn) is GatedFFN else 2 if type(ffn) is FFN else 1
    if len(maps) != 4 * (len(layer.order) - 1) + of_ffn:
        return False
    if any(type(m) is not Linear and matrix_of(m) is None for m in maps):
        return False
    if type(ffn) is FFN and ffn.down.out_features != layer.attn.q.in_features:
        return False
    if type(ffn) is Experts and ffn.chosen > MOST_CHOSEN:
        return False
    known = {id(m) for m in (layer, *_branches(layer), layer.attn.position, *_all_norms(layer))}
    experts = [m for m in ffn._modules.values() if isinstance(m, PackedExperts)]
    known |= {id(part) for m in (*maps, *experts) for part in m.modules()}
    if any(id(m) not in known for m in layer.modules()) or any(m.coded is None for m in experts):
        return False
    tensors: list[Tensor] = list(layer.parameters())
    tensors += [matrix.codes for m in (*maps, *experts) for matrix in matrices_of(m)]
    return all(t.is_contiguous() and t.is_cpu for t in tensors)


def _waits(stack: Stack) -> bool:
    """Whether a map may yet get codes (fast.coded)."""
    maps = [m for m in stack.modules() if isinstance(m, QuantizedLinear)]
    experts = [m for m in stack.modules() if isinstance(m, PackedExperts)]
    waiting = [m.coded is None and not m.packed.is_plain for m in maps]
    return any(waiting) or any(m.coded is None and not m.is_plain for m in experts)


class Plans:
    """The plan of each stack, made when it is first asked for and again when its weights have moved."""

    def __init__(self) -> None:
        self.known: WeakKeyDictionary[Stack, Plan | None] = WeakKeyDictionary()

    def of(self, stack: Stack) -> Plan | None:
        """The plan, or None where the stack is not plain or something in it wants to be asked."""
        known = self.known.get(stack)
        if known is not None and known.busy():
            return None  # something is at a site now: it may go away again
        if known is not None and known.holds():
            return known
        if known is None and stack in self.known:
            return None
        plan = Plan(stack) if is_plain(stack) else None
        if plan is None and _waits(stack):
            self.known.pop(stack, None)
            return None
        self.known[stack] = plan
        return None if plan is not None and plan.busy() else plan
