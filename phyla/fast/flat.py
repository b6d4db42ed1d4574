"""Attention of several texts in one row by a native kernel, and products that take rows alike."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from phyla.blocks import flat
from phyla.blocks.flat import FlatAttention, Layout, Pages
from phyla.blocks.matmul import is_watched
from phyla.fast.plan import Plan
from phyla.fast.products import Product

_long, _float, _pointer = ctypes.c_long, ctypes.c_float, ctypes.c_void_p
_LANES = 16  # a page is a multiple of the widest vector
_WIDEST = 512


class _Flat(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in (
            "is_bfloat16", "tokens", "heads", "kv_heads", "width", "page", "window",
        )),
        ("scale", _float), *((name, _pointer) for name in ("q", "k", "v")),
        *((name, _long) for name in ("q_head", "q_token", "k_head", "k_token", "v_head", "v_token")),
        *((name, _pointer) for name in ("keys", "values", "pages", "offsets", "places", "rows", "table")),
        ("table_stride", _long), ("tiles", _pointer), ("tile_count", _long), ("out", _pointer),
    ]  # fmt: skip


def alike_of(library: ctypes.CDLL, parallel: int) -> Product:
    """product(x, weight, bias): x W^T + b whose sums run over K in order, whatever the number of rows."""
    function, number = library.phyla_many_rows, ctypes.c_ssize_t
    kinds = (torch.float32, torch.bfloat16)

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        dtype, (outs, width) = weight.dtype, weight.shape
        if (
            dtype not in kinds
            or x.dtype != dtype
            or not (x.is_cpu and weight.is_cpu and weight.is_contiguous())
            or (bias is not None and (bias.dtype != dtype or not bias.is_contiguous()))
            or (dtype == torch.bfloat16 and width % 2)
            or is_watched()
        ):
            return None
        flat = x.reshape(-1, width)
        flat = flat if flat.stride(-1) == 1 else flat.contiguous()
        y = x.new_empty((*x.shape[:-1], outs))
        failed = function(
            dtype == torch.bfloat16, number(len(flat)), number(outs), number(width),
            _pointer(flat.data_ptr()), number(flat.stride(0)), _pointer(weight.data_ptr()),
            None if bias is None else _pointer(bias.data_ptr()), _pointer(y.data_ptr()), number(outs),
            ctypes.c_uint(torch.get_num_threads()), _pointer(parallel),
        )  # fmt: skip
        return None if failed else y

    return product


def flat_attention_of(library: ctypes.CDLL, parallel: int) -> FlatAttention:
    """attend(q, k, v, keys, values, layout, scale, window): (1, N, H * E), or None."""
    function = library.phyla_flat
    function.restype = ctypes.c_int
    function.argtypes = [_pointer, ctypes.c_uint, _pointer]

    def attend(
        q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, layout: Layout, scale: float,
        window: int | None,
    ) -> Tensor | None:  # fmt: skip
        dtype = keys.dtype
        parts = (q, k, v)
        if (
            dtype not in (torch.float32, torch.bfloat16)
            or any(t.dtype != dtype or not t.is_cpu or t.stride(-1) != 1 for t in parts)
            or keys.shape[-1] % _LANES
            or q.shape[-1] > _WIDEST
            or q.shape[-1] != v.shape[-1]
            or is_watched()
        ):
            return None
        _, heads, length, width = q.shape
        tokens = len(layout.pages)  # those behind them are nobody's
        out = q.new_empty(1, length, heads * width)
        out[:, tokens:] = 0
        asked: dict[str, Any] = {}
        for name, t in zip(("q", "k", "v"), parts, strict=True):
            asked |= {name: t.data_ptr(), f"{name}_head": t.stride(1), f"{name}_token": t.stride(2)}
        made = _Flat(
            is_bfloat16=dtype == torch.bfloat16, tokens=tokens, heads=heads, kv_heads=k.shape[1], width=width,
            page=keys.shape[-1], window=window or 0, scale=scale,
            keys=keys.data_ptr(), values=values.data_ptr(),
            pages=layout.pages.data_ptr(), offsets=layout.offsets.data_ptr(), places=layout.places.data_ptr(),
            rows=layout.rows.data_ptr(), table=layout.table.data_ptr(), table_stride=layout.table.shape[1],
            tiles=layout.tiles.data_ptr(), tile_count=len(layout.tiles), out=out.data_ptr(), **asked,
        )  # fmt: skip
        failed = function(ctypes.byref(made), torch.get_num_threads(), parallel)
        return None if failed else out

    return attend


def pages_fit(slots: list[Any], plan: Plan) -> bool:
    """Whether the kernel attends in all layers of a stack whose memory lies in pages."""
    return (
        flat.native is not None
        and plan.stack.head_width <= _WIDEST
        and all(isinstance(slot, Pages) and slot.whole and not slot.size % _LANES for slot in slots)
    )
