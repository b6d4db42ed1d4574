"""x W^T + b by the native kernels: reading-bound products of few rows, and those of many rows."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from phyla.blocks import matmul
from phyla.blocks.processor import is_foreign_to_blas

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor | None]

# Rows up to which a product is taken row by row, which reads W once and fastest.
FEW = {torch.float32: 8, torch.bfloat16: 4 if matmul.HAS_BFLOAT16 else 8}
# The kernel for many rows: where oneDNN has bfloat16 arithmetic it wins later on; in float32 the BLAS that
# torch brings leaves a third of the speed of processors that its maker does not sell.
MANY = 1 << 40
WHOLE_ROWS = 128  # rows above which the form of the weight decides in float32
LEAST_WORK = 1 << 18  # multiplications below which a call costs more than it computes


def most_rows() -> dict[torch.dtype, int]:
    """Rows up to which the kernels are the faster, by dtype."""
    return {
        torch.float32: MANY if is_foreign_to_blas() else matmul.FEW_ROWS,
        torch.bfloat16: matmul.FEW_ROWS if matmul.HAS_BFLOAT16 else MANY,
    }


def product_of(library: ctypes.CDLL, parallel: int) -> Product:
    """product(x, weight, bias): x W^T + b for x (..., K), None where the kernels do not apply."""
    number, pointer = ctypes.c_ssize_t, ctypes.c_void_p
    few, many = library.phyla_few_rows, library.phyla_many_rows
    for function in (few, many):
        function.restype = ctypes.c_int
        function.argtypes = [
            ctypes.c_int, number, number, number, pointer, number, pointer, pointer, pointer, number,
            ctypes.c_uint, pointer,
        ]  # fmt: skip
    most = most_rows()

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        dtype = weight.dtype
        if (
            type(x) is not Tensor
            or type(weight) not in (Tensor, nn.Parameter)
            or x.dtype != dtype
            or dtype not in FEW
            or not (x.is_cpu and weight.is_cpu)
            or matmul.is_watched()
            or weight.dim() != 2
        ):
            return None
        outs, width = weight.shape
        rows = x.numel() // width if width else 0
        if x.shape[-1] != width or not 1 <= rows <= most[dtype] or not weight.is_contiguous():
            return None
        if bias is not None:
            if bias.dtype != dtype or bias.shape != (outs,) or not bias.is_cpu or not bias.is_contiguous():
                return None
        kernel = few
        if rows > FEW[dtype]:
            # Short rows, or fewer outs than elements: putting x into panels costs more than it saves.
            if dtype == torch.float32 and rows > WHOLE_ROWS and not outs > width >= 256:
                return None
            # Pairs of bfloat16 need an even K.
            if rows * outs * width < LEAST_WORK or (dtype == torch.bfloat16 and width % 2):
                return None
            kernel = many
        flat = x if x.is_contiguous() else x.reshape(rows, width)
        if flat.stride(-1) != 1:
            flat = flat.contiguous()
        stride = width if flat is x else flat.stride(0)
        y = x.new_empty((*x.shape[:-1], outs))
        try:
            failed = kernel(
                dtype == torch.bfloat16, rows, outs, width, flat.data_ptr(), stride, weight.data_ptr(),
                None if bias is None else bias.data_ptr(), y.data_ptr(), outs, torch.get_num_threads(),
                parallel,
            )  # fmt: skip
        except RuntimeError:  # a tensor without memory of its own (vmap and the like)
            return None
        return None if failed else y

    return product
