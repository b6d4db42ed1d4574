"""Which stacks of layers the native kernels compute as a whole, and how they are told where all lies.

Plain means: pre-, post- or output-normed branches of self-attention with or without rotary positions, and a
feed-forward, in a fixed order, with dense weights of one dtype. Anything put at a site, a hook, a recorded
attention, gradients or a captured graph send the call through the modules as ever.
"""

import ctypes
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from phyla.blocks.attention import Attention
from phyla.blocks.ffn import FFN, GatedFFN
from phyla.blocks.linear import Linear
from phyla.blocks.mask import Causal, Full, Window
from phyla.blocks.norm import LayerNorm, RMSNorm
from phyla.blocks.position import Rotary
from phyla.blocks.stack import Layer, Stack
from phyla.fast.codes import CodeMatrix
from phyla.fast.packed import PackedLinear
from phyla.quantization.linear import QuantizedLinear

WIDEST = 512  # elements of a head that the kernels have room for
ALL = 1 << 40  # more keys than there are
_ACTS = {
    "relu": 0, "silu": 1, "swish": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "gelu_python_tanh": 2,
    "gelu": 3, "gelu_python": 3, "quick_gelu": 4,
}  # fmt: skip
_PACKED = (PackedLinear, QuantizedLinear)
SITES = ("site", "mix_site", "kv_site")
_NORMS: dict[type, int] = {RMSNorm: 1, LayerNorm: 2}

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class Norm(ctypes.Structure):
    _fields_ = [
        ("weight", _pointer), ("bias", _pointer), ("eps", _float), ("offset", _float), ("kind", _long),
    ]  # fmt: skip


class Map(ctypes.Structure):
    _fields_ = [("weight", _pointer), ("bias", _pointer), ("codes", _pointer)]


_NORM_NAMES = ("attn_pre", "attn_out", "attn_post", "ffn_pre", "ffn_out", "ffn_post")
_MAP_NAMES = ("q", "k", "v", "o", "gate", "up", "down")


class LayerPart(ctypes.Structure):
    _fields_ = [
        *((name, Norm) for name in _NORM_NAMES),
        *((name, Map) for name in _MAP_NAMES),
        ("attn_multiplier", _float), ("ffn_multiplier", _float),
        ("keys", _pointer), ("values", _pointer),
        ("capacity", _long), ("used", _long), ("first", _long), ("window", _long), ("ahead", _long),
    ]  # fmt: skip


class StackPart(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in (
            "is_bfloat16", "coded", "layers", "batch", "length", "width", "heads", "kv_heads", "head_width",
            "inner", "act", "gated",
        )),
        ("scale", _float),
        *((name, _long) for name in ("turned", "paired", "angle_rows")),
        ("cos", _pointer), ("sin", _pointer), ("mask", _pointer), ("mask_stride", _long),
        ("x", _pointer), ("layer", ctypes.POINTER(LayerPart)),
    ]  # fmt: skip


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
        self.position = self.positions[0] if self.positions else None
        self.causal = isinstance(first.attn.mask, Causal)
        self.dtype = next(first.parameters()).dtype
        packed = [m for layer in layers for m in layer.modules() if type(m) in _PACKED]
        self.packed = [(m._modules, "packed" if type(m) is PackedLinear else "coded") for m in packed]
        self.matrices = [matrix_of(m) for m in packed]  # the kernel looks at them
        modules = [m for layer in layers for m in layer.modules()]
        self.hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks) if d is not None]
        self.sites = [(m._modules, n) for m in modules for n in SITES if n in m._modules]
        self.places = [
            (m._parameters, name) for m in modules for name, p in m._parameters.items() if p is not None
        ]
        self.pointers = self.now()
        self.layers = (LayerPart * len(layers))(*(self._layer(layer) for layer in layers))
        attn, ffn = first.attn, first.ffn
        inner = ffn.up.out_features
        self.stack = StackPart(
            is_bfloat16=self.dtype == torch.bfloat16, coded=bool(self.packed), layers=len(layers),
            width=attn.q.in_features, heads=attn.num_heads, kv_heads=attn.num_kv_heads,
            head_width=attn.head_width, inner=inner,
            act=_ACTS[ffn.spec.args["act"]], gated=isinstance(ffn, GatedFFN), scale=attn.scale,
            turned=0 if self.position is None else self.position.width,
            paired=self.position is not None and self.position.layout == "pairs", layer=self.layers,
        )  # fmt: skip

    def now(self) -> list[int]:
        """Where the parameters lie."""
        weights = [table[name] for table, name in self.packed]
        codes = [0 if w is None else w._buffers["codes"].data_ptr() for w in weights]
        return [table[name].data_ptr() for table, name in self.places] + codes

    def holds(self) -> bool:
        """Whether parameters lie where they lay."""
        return self.now() == self.pointers

    def busy(self) -> bool:
        """Whether something is at a site or hook, and wants to be asked."""
        return any(self.hooks) or any(table[name] is not None for table, name in self.sites)

    def _layer(self, layer: Any) -> LayerPart:
        made = LayerPart()
        for branch_name in ("attn", "ffn"):
            branch = getattr(layer, branch_name)
            for place in ("pre", "out", "post"):
                setattr(made, f"{branch_name}_{place}", _norm(getattr(branch, f"{place}_norm")))
            setattr(
                made, f"{branch_name}_multiplier", 1.0 if branch.multiplier is None else branch.multiplier
            )
        for name in _MAP_NAMES:
            owner = layer.attn if name in "qkvo" else layer.ffn
            setattr(made, name, _map(getattr(owner, name, None)))
        mask = layer.attn.mask
        if isinstance(mask, Window):
            made.window, made.ahead = mask.radius + 1, mask.radius
        else:
            made.window = getattr(mask, "window", None) or 0
            made.ahead = 0 if isinstance(mask, Causal) else ALL
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


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def is_plain(stack: Stack) -> bool:
    """Whether the kernel computes what these layers compute."""
    layers: list[Any] = list(stack.layers)
    if not layers or stack.position is not None:
        return False
    shapes = set()
    for layer in layers:
        if type(layer) is not Layer or layer.order != ("attn", "ffn"):
            return False
        attn, ffn = layer.attn, layer.ffn
        if (
            type(attn) is not Attention
            or type(ffn) not in (FFN, GatedFFN)
            or type(attn.mask) not in (Causal, Full, Window)
        ):
            return False
        position = attn.position
        if attn.cross or attn.q_norm is not None or (position is not None and type(position) is not Rotary):
            return False
        for branch in (attn, ffn):
            if not branch.is_branch or branch.keep_norm or branch.layer_scale is not None:
                return False
            norms = (branch.pre_norm, branch.out_norm, branch.post_norm)
            if any(n is not None and type(n) not in _NORMS for n in norms):
                return False
        if type(ffn) is FFN and ffn.down.out_features != attn.q.in_features:
            return False
        maps = [m for m in layer.modules() if isinstance(m, (nn.Linear, *_PACKED))]
        if len(maps) != (7 if type(ffn) is GatedFFN else 6):
            return False
        if any(type(m) is not Linear and matrix_of(m) is None for m in maps):
            return False
        tensors: list[Tensor] = list(layer.parameters())
        tensors += [m.codes for p in maps if (m := matrix_of(p)) is not None]
        if any(not t.is_contiguous() or not t.is_cpu for t in tensors) or ffn.spec.args["act"] not in _ACTS:
            return False
        shapes.add((
            attn.num_heads, attn.num_kv_heads, attn.head_width, attn.scale, ffn.up.out_features,
            ffn.spec.args["act"], type(ffn), isinstance(attn.mask, Causal),
            None if position is None else (position.width, position.layout),
            *{t.dtype for t in layer.parameters()},
        ))  # fmt: skip
    kinds = {t.dtype for t in stack.parameters()}
    fits = len(shapes) == 1 and attn.head_width <= WIDEST
    return fits and kinds in ({torch.float32}, {torch.bfloat16})


def _waits(stack: Stack) -> bool:
    """Whether a map may yet get codes (fast.coded)."""
    maps = [m for m in stack.modules() if isinstance(m, QuantizedLinear)]
    return any(m.coded is None and not m.packed.is_plain for m in maps)


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
