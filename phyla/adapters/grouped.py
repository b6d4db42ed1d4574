"""Low-rank parts of many rows at once: one batched product, however many adapters the batch has."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.adapters.composition import Rows


class Grouped:
    """The change of a projection where rows have adapters of their own and all are plain LoRA.

    Factors of all adapters stand in one bank, (N, r, in) and (N, out, r), smaller ranks filled with zeros;
    it is kept between calls without gradients, as long as no factor has changed.
    """

    def __init__(self, setup: Any, parts: dict[str, list[Any]], facts: Any, kind: type) -> None:
        self.setup, self.facts = setup, facts
        self.members: list[Any] | None = None
        self.kept: tuple[tuple[int, ...], Tensor, Tensor] | None = None
        if isinstance(setup, Rows):
            found = [parts.get(c or "", []) if isinstance(c, str | None) else None for c in setup.children]
            if all(
                p is not None
                and len(p) < 2
                and all((low.whole or type(low) is kind) and _plain(low) for low in p)
                for p in found
            ):
                self.members = [p[0] if p else None for p in found]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor | None:
        """What to add to y (..., out) for x (..., in); None where the parts must work one by one."""
        if self.members is None:
            return None
        parts = [m for m in self.members if m is not None]
        chances = {m.dropout if m.whole else m.config.dropout for m in parts} if parts[0].training else {0.0}
        if len(chances) > 1:
            return None
        chance = chances.pop()
        low, high = self._bank(parts)
        # several rows of x may belong to one row of the batch: they follow each other
        rows = len(self.setup.numbers)
        index = self.facts.children(self.setup, rows, x.device)
        if x.shape[0] % rows:
            return None  # the rows are counted, and refused, one by one
        flat = x.reshape(rows, -1, x.shape[-1])
        if chance:
            flat = F.dropout(flat, chance)
        flat = flat.to(low.dtype)
        h = torch.bmm(flat, low[index].transpose(1, 2))
        return torch.bmm(h, high[index].transpose(1, 2)).view(*x.shape[:-1], -1)

    def _bank(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._stack(parts)
        now = tuple(p._version for part in parts for p in (part.lora_A, part.lora_B))
        if self.kept is None or self.kept[0] != now or self.kept[1].device != parts[0].lora_A.device:
            with torch.inference_mode(False), torch.no_grad():
                self.kept = (now, *self._stack(parts))
        return self.kept[1], self.kept[2]

    def _stack(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        rank = max(part.lora_A.shape[0] for part in parts)
        low, high = [], []
        empty_low, empty_high = None, None
        for member in self.members or ():
            if member is None:
                if empty_low is None:
                    empty_low = parts[0].lora_A.new_zeros(rank, parts[0].lora_A.shape[1])
                    empty_high = parts[0].lora_B.new_zeros(parts[0].lora_B.shape[0], rank)
                low.append(empty_low)
                high.append(empty_high)
                continue
            short = rank - member.lora_A.shape[0]
            a, b = member.lora_A, member.lora_B * member.scaling
            low.append(F.pad(a, (0, 0, 0, short)) if short else a)
            high.append(F.pad(b, (0, short)) if short else b)
        return torch.stack(low), torch.stack(high)


def _plain(low: Any) -> bool:
    """Whether a part computes nothing but scaling * B A x."""
    if low.whole:
        return low.plain()
    return (
        low.pair is None and not low.scales and low.gate is None and low.m is None and low.lora_B.dim() == 2
    )
