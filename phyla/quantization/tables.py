"""The values that four and eight bits stand for in the public formats."""

import functools

import torch
from torch import Tensor

# NormalFloat of four bits (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip
# bitsandbytes' float of one sign, two exponent and one mantissa bit, by its bits; the largest is one.
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4 = tuple(v / 12 for v in (*_FP4, *(-v for v in _FP4)))
# E2M1 of the Open Compute Project's microscaling formats (specification 1.0, 5.3.3), by its bits.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = (*_E2M1, *(-v for v in _E2M1))


@functools.cache
def pairs(table: tuple[float, ...], high_first: bool) -> Tensor:
    """The two values of every byte, (256, 2) in float32, from the values of four bits."""
    values = torch.tensor(table)
    octets = torch.arange(256)
    low, high = values[octets & 15], values[octets >> 4]
    return torch.stack((high, low) if high_first else (low, high), -1)


def expand(octets: Tensor, table: Tensor) -> Tensor:
    """Both values of every byte: uint8 (..., n) and a table (256, 2) -> (..., 2 n)."""
    return torch.nn.functional.embedding(octets.int(), table.to(octets.device)).flatten(-2)


def nearest_codes(values: Tensor, table: Tensor) -> Tensor:
    """The place in the table (T) of the nearest value, as uint8; between two, the lower one."""
    ordered, order = table.sort(stable=True)
    middles = (ordered[1:] + ordered[:-1]) / 2
    return order[torch.bucketize(values, middles, out_int32=True)].to(torch.uint8)


@functools.cache
def dynamic_map() -> Tensor:
    """256 signed values with a moving exponent (Dettmers 2015, arXiv:1511.04561), in rising order."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (10 ** (exponent - 6) * (edges[1:] + edges[:-1]) / 2).tolist()
        values += middles + [-v for v in middles]
    return torch.tensor(sorted(values))
