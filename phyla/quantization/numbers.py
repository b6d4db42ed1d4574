"""A quantised weight as numbers of four or eight bits with scales by group: what all kernels take."""

from typing import NamedTuple

from torch import Tensor


class Numbers(NamedTuple):
    """A weight (out, in): codes of it, with a scale and perhaps a zero for each `group` of columns.

    codes (out, in): uint8 below 16 with a `table` of 16 values, int8, or float8_e4m3fn. scale, zero
    (out, groups). A weight is scale * (value - zero) where `relative`, else scale * value + zero. order (in):
    the input that stands at each column once groups lie side by side; codes are in order of the inputs.
    """

    codes: Tensor
    scale: Tensor
    group: int
    table: Tensor | None = None
    zero: Tensor | None = None
    relative: bool = True
    order: Tensor | None = None

    def rows(self, index: Tensor) -> "Numbers":
        """Those of some outputs."""
        zero = None if self.zero is None else self.zero[index]
        return self._replace(codes=self.codes[index], scale=self.scale[index], zero=zero)
