"""The layers of a plain stack for many rows: products as ever, all between them in native passes."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from phyla.blocks.cache import KVCache
from phyla.blocks.context import Context
from phyla.blocks.flat import Pages
from phyla.blocks.linear import Linear
from phyla.blocks.matmul import linear_act
from phyla.blocks.moe import Experts
from phyla.fast.plan import LayerPart, Norm, Plan, address
from phyla.fast.positions import Positions

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class _Turned(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in (
            "is_bfloat16", "batch", "length", "heads", "kv_heads", "head_width", "turned", "paired",
            "angle_rows",
        )),
        *((name, _pointer) for name in ("cos", "sin", "q", "k", "v")),
        *((name, _long) for name in ("q_stride", "k_stride", "v_stride")),
        *((name, _pointer) for name in ("q_out", "keys", "values")),
        ("capacity", _long), ("used", _long),
    ]  # fmt: skip


class _Attended(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in (
            "is_bfloat16", "batch", "heads", "kv_heads", "head_width", "length", "keys_used", "start",
            "window", "ahead",
        )),
        ("scale", _float), *((name, _pointer) for name in ("q", "keys", "values")), ("capacity", _long),
        ("mask", _pointer), ("mask_stride", _long), ("bias", _pointer), ("bias_row", _long),
        ("bias_head", _long), ("out", _pointer),
    ]  # fmt: skip


class _Normed(ctypes.Structure):
    _fields_ = [
        ("is_bfloat16", _long), ("rows", _long), ("width", _long), ("x", _pointer), ("change", _pointer),
        ("multiplier", _float), ("out", Norm), ("post", Norm), ("pre", Norm), ("h", _pointer),
    ]  # fmt: skip


class _Gated(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in ("is_bfloat16", "rows", "width", "act", "gate_stride", "up_stride")),
        *((name, _pointer) for name in ("gate", "up", "out")),
    ]  # fmt: skip


class Wide:
    """Call it with a plan: the states after all layers, (B, S, D), or None where memory is short."""

    def __init__(self, library: ctypes.CDLL, parallel: int) -> None:
        self.parallel = parallel
        self.functions = {n: getattr(library, f"phyla_{n}") for n in ("norm", "turn", "attend", "gate")}
        for function in self.functions.values():
            function.restype = ctypes.c_int
            function.argtypes = [_pointer, ctypes.c_uint, _pointer]

    def _run(self, name: str, what: Any) -> None:
        if self.functions[name](ctypes.byref(what), torch.get_num_threads(), self.parallel):
            raise MemoryError(f"no memory for the native pass {name!r}")

    def __call__(self, plan: Plan, slots: list[Any], x: Tensor, ctx: Context) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        h, half = torch.empty_like(x), int(plan.dtype == torch.bfloat16)
        rows, width = x.shape[0] * x.shape[1], x.shape[2]
        normed = _Normed(is_bfloat16=half, rows=rows, width=width, x=x.data_ptr(), h=h.data_ptr())
        normed.pre = plan.layers[0].attn_pre
        self._run("norm", normed)
        held, layers = Positions(plan, ctx), plan.parts()
        mask = None if ctx.attention_mask is None else ctx.attention_mask.contiguous()
        last = len(plan.attns) - 1
        for i, (layer, attn, ffn) in enumerate(zip(layers, plan.attns, plan.ffns, strict=True)):
            change = attn.o(self._attend(plan, layer, attn, slots[i], h, held, mask))
            if layer.attn_keeps:
                x.copy_(h)
            normed.change, normed.multiplier = change.data_ptr(), layer.attn_multiplier
            normed.out, normed.post, normed.pre = layer.attn_out, layer.attn_post, layer.ffn_pre
            if layer.side_by_side:  # both branches read x as it was
                before, normed.h = h, None
                h = self._beside(plan, layer, x, h, half)
                self._run("norm", normed)
                normed.h = before.data_ptr()
            else:
                self._run("norm", normed)
            if isinstance(ffn, Experts):
                change = ffn.mix(h, ctx)
            else:
                change = ffn.down(self._inner(ffn, h, layer.act, half))
            if layer.side_by_side:
                h = before
            if layer.ffn_keeps:
                x.copy_(h)
            normed.change, normed.multiplier = change.data_ptr(), layer.ffn_multiplier
            normed.out, normed.post = layer.ffn_out, layer.ffn_post
            if i < last:
                normed.pre = plan.layers[i + 1].attn_pre
            else:
                normed.h = None
            self._run("norm", normed)
        return x

    def _beside(self, plan: Plan, layer: LayerPart, x: Tensor, h: Tensor, half: int) -> Tensor:
        """What the feed-forward beside attention reads: the same states, or x by a norm of its own."""
        if _is_same(layer.attn_pre, layer.ffn_pre):
            return h
        own = torch.empty_like(h)
        rows, width = x.shape[0] * x.shape[1], x.shape[2]
        normed = _Normed(is_bfloat16=half, rows=rows, width=width, x=x.data_ptr(), h=own.data_ptr())
        normed.pre = layer.ffn_pre
        self._run("norm", normed)
        return own

    def _attend(
        self,
        plan: Plan,
        layer: LayerPart,
        attn: Any,
        slot: KVCache | Pages | None,
        h: Tensor,
        held: Positions,
        mask: Tensor | None,
    ) -> Tensor:
        """Heads joined, (B, S, H * E), for normed states h (B, S, D); keys and values go into the cache."""
        made, half = plan.stack, int(plan.dtype == torch.bfloat16)
        batch, length = h.shape[:2]
        heads, groups, width = made.heads, made.kv_heads, made.head_width
        joined = attn.joined
        if joined is not None and joined.ready() and joined.bare():
            q, k, v = joined.product(h).split([heads * width, groups * width, groups * width], -1)
        else:
            q, k, v = attn.q(h), attn.k(h), attn.v(h)
        q, k, v = self._refine(plan, layer, q, k, v)
        turned = _Turned(
            is_bfloat16=half, batch=batch, length=length, heads=heads, kv_heads=groups, head_width=width,
            turned=layer.turned, paired=layer.paired, q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(),
            q_stride=q.stride(1), k_stride=k.stride(1), v_stride=v.stride(1),
        )  # fmt: skip
        used = first = 0
        if slot is None or isinstance(slot, Pages):
            keys = h.new_empty(batch, groups, length, width)
            values = torch.empty_like(keys)
        else:
            keys, values = slot.room(length, h.new_empty(batch, groups, 0, width))
            used, first = slot.used, slot.first
            slot.used += length
        held.tell(layer, attn, first, used + length)
        turned.angle_rows, turned.cos, turned.sin = layer.angle_rows, layer.cos, layer.sin
        queries = h.new_empty(batch, heads, length, width)
        turned.q_out, turned.keys, turned.values = queries.data_ptr(), keys.data_ptr(), values.data_ptr()
        turned.capacity, turned.used = keys.shape[2], used
        self._run("turn", turned)
        if isinstance(slot, Pages):
            return slot.look(queries, keys, values, made.scale)
        out = h.new_empty(batch, length, heads * width)
        attended = _Attended(
            is_bfloat16=half, batch=batch, heads=heads, kv_heads=groups, head_width=width, length=length,
            keys_used=used + length, start=used, window=layer.window, ahead=layer.ahead, scale=made.scale,
            q=queries.data_ptr(), keys=keys.data_ptr(), values=values.data_ptr(), capacity=keys.shape[2],
            out=out.data_ptr(), bias=layer.bias, bias_row=layer.bias_row, bias_head=layer.bias_head,
        )  # fmt: skip
        if mask is not None:
            attended.mask, attended.mask_stride = mask.data_ptr() + first, mask.shape[1]
        self._run("attend", attended)
        return out

    def _refine(
        self, plan: Plan, layer: LayerPart, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, S, heads * E), normed and clipped where a layer does that."""
        if layer.q_norm.kind:
            q, k = (self._normed(plan, norm, t) for norm, t in ((layer.q_norm, q), (layer.k_norm, k)))
        if layer.clip:
            q, k, v = (t.clamp(-layer.clip, layer.clip) for t in (q, k, v))
        return q, k, v

    def _normed(self, plan: Plan, norm: Norm, y: Tensor) -> Tensor:
        """A norm of each head, or of all of a row."""
        made = plan.stack
        y = y.contiguous()
        width = made.head_width if made.norm_by_head else y.shape[-1]
        out = torch.empty_like(y)
        self._run("norm", _Normed(
            is_bfloat16=made.is_bfloat16, rows=y.numel() // width, width=width, x=y.data_ptr(), pre=norm,
            h=out.data_ptr(),
        ))  # fmt: skip
        return out

    def _inner(self, ffn: Any, h: Tensor, act: int, half: int) -> Tensor:
        """act(gate(h)) * up(h), or act(up(h)), (B, S, F)."""
        size = ffn.up.out_features
        gate = up = None
        if hasattr(ffn, "gate"):
            if ffn.joined is not None and ffn.joined.ready() and ffn.joined.bare():
                gate, up = ffn.joined.product(h).split([size, size], -1)
            else:
                gate, up = ffn.gate(h), ffn.up(h)
        else:
            fused = None
            if type(ffn.up) is Linear:
                fused = linear_act(h, ffn.up.weight, ffn.up.bias, ffn.act_name)
            if fused is not None:
                return fused
            gate = ffn.up(h)
        out = h.new_empty(*h.shape[:2], size)
        self._run("gate", _Gated(
            is_bfloat16=half, rows=h.shape[0] * h.shape[1], width=size, act=act, gate_stride=gate.stride(1),
            up_stride=0 if up is None else up.stride(1), gate=gate.data_ptr(), up=address(up),
            out=out.data_ptr(),
        ))  # fmt: skip
        return out


def _is_same(a: Norm, b: Norm) -> bool:
    return bytes(a) == bytes(b)
