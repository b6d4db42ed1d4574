"""Who computes attention: functions by the name of an implementation, and what one call tells them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from phyla.blocks.context import Context


@dataclass
class Asked:
    """One call of an attention, before any mask or bias is made of it.

    mixer: the attention. q (B, H, S, E); k, v (B, G, K, E) from slot `first` on. causal: the mask is the
    lower triangle and nothing else. x: the input, (B, S, D). dropout: the chance in this call.
    """

    mixer: Any
    q: Tensor
    k: Tensor
    v: Tensor
    first: int
    causal: bool
    dropout: float
    x: Tensor
    ctx: Context
    made: tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool] | None = None

    @property
    def record(self) -> list[Tensor] | None:
        """The list that wants the weights (B, H, S, K), or None."""
        return self.ctx.cross_attentions if self.mixer.cross else self.ctx.attentions

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]:
        """Keys, values, mask, bias, and whether the mask is left to `causal`; made at the first request."""
        if self.made is None:
            plain = self.record is None and self.ctx.head_mask is None
            self.made = self.mixer.seen(
                self.q, self.k, self.v, self.first, self.causal and plain, self.x, self.ctx
            )
        return self.made


# what heads find, (B, H, S, E), or None where a kernel does not apply
Kernel = Callable[[Asked], Tensor | None]

# By the name of an implementation: phyla/fast puts its own and the caller's here. A call that none takes goes
# to the fused call, or where scores have a cap step by step.
kernels: dict[str, Kernel] = {}
