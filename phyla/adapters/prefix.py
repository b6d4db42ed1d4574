"""Prefix tuning: learned keys and values before those of attention (Li & Liang 2021, arXiv:2101.00190)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.bottleneck import Act
from phyla.adapters.config import ADAPTER_CONFIG_MAP, ARCHITECTURES, AdapterConfig, known
from phyla.adapters.dialect import NO_PREFIXES
from phyla.adapters.interpret import Facts, Flow, Method, run
from phyla.adapters.places import Place, Survey


@known("prefix_tuning")
@dataclass
class PrefixTuningConfig(AdapterConfig):
    """Prefixes of every attention, made by a small network or (flat) learned as they are."""

    architecture: ClassVar[str | None] = "prefix_tuning"
    encoder_prefix: bool = True
    cross_prefix: bool = True
    leave_out: list[int] = field(default_factory=list)
    flat: bool = False
    prefix_length: int = 30
    bottleneck_size: int = 512
    non_linearity: str = "tanh"
    dropout: float = 0.0
    use_gating: bool = False
    shared_gating: bool = True
    init_weights_seed: int | None = None
    __hash__ = AdapterConfig.__hash__


ADAPTER_CONFIG_MAP["prefix_tuning_flat"] = PrefixTuningConfig(flat=True)
ARCHITECTURES["prefix_tuning"] = PrefixTuningConfig


class Prefixes(nn.Module):
    """Keys and values of several attentions: `length` positions of `heads` heads, `width` wide."""

    def __init__(self, config: PrefixTuningConfig, count: int, heads: int, width: int, stream: int) -> None:
        super().__init__()
        self.length, self.heads, self.width, self.count = config.prefix_length, heads, width, count
        self.dropout_prob = config.dropout
        inner = heads * width
        self.is_flat = config.flat
        if config.flat:
            self.control_trans: Any = nn.Parameter(torch.empty(self.length * count * 2 * inner).normal_(0, 1))
            return
        self.wte = nn.Embedding(self.length, stream)
        nn.init.normal_(self.wte.weight, 0.0, 0.02)
        self.control_trans = nn.Sequential(
            nn.Linear(stream, config.bottleneck_size),
            Act(config.non_linearity),
            nn.Linear(config.bottleneck_size, count * 2 * inner),
        )
        for linear in (self.control_trans[0], self.control_trans[2]):
            nn.init.normal_(linear.weight, 0.0, 0.02)
            nn.init.zeros_(linear.bias)

    def values(self) -> Tensor:
        """All prefixes, (length, 2 * count, heads, width)."""
        made = self.control_trans if self.is_flat else self.control_trans(self.wte.weight)
        if self.training and self.dropout_prob:
            made = F.dropout(made, self.dropout_prob)
        return made.view(self.length, 2 * self.count, self.heads, self.width)

    def at(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values (heads, length, width) of one attention."""
        made = self.values()
        return made[:, 2 * index].transpose(0, 1), made[:, 2 * index + 1].transpose(0, 1)

    @torch.no_grad()
    def eject(self) -> None:
        """Replace the network by what it makes."""
        if not self.is_flat:
            kept, self.training = self.training, False
            flat = nn.Parameter(self.values().reshape(-1).clone())
            self.training = kept
            del self.wte, self.control_trans
            self.control_trans, self.is_flat = flat, True

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by public name."""
        return self.state_dict()

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by public name."""
        self.load_state_dict(tensors)


class PrefixAt(nn.Module):
    """The part at one attention: which of the shared prefixes, and the gate."""

    def __init__(self, config: PrefixTuningConfig, prefixes: Prefixes, index: int, width: int) -> None:
        super().__init__()
        object.__setattr__(self, "prefixes", prefixes)  # shared by several attentions: owned by the adapter
        self.index = index
        self.gate = nn.Linear(width, 1 if config.shared_gating else 2) if config.use_gating else None
        if self.gate is not None:
            nn.init.normal_(self.gate.weight, 0.0, 0.02)
            nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, P, E) for the attention's input x (B, S, D)."""
        prefixes: Any = self.prefixes
        k, v = (t.to(x.device).expand(x.shape[0], -1, -1, -1) for t in prefixes.at(self.index))
        if self.gate is not None:
            scores = self.gate(x.to(self.gate.weight.dtype))
            gate = torch.sigmoid(scores).mean(1)[:, :, None, None, None]  # (B, 1 or 2, 1, 1, 1)
            k, v = k * gate[:, 0], v * gate[:, -1]
        return k, v

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by public name."""
        return {} if self.gate is None else self.gate.state_dict()

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by public name."""
        if self.gate is not None:
            self.gate.load_state_dict(tensors)


def attach(config: PrefixTuningConfig, places: Survey, entry: Any) -> Iterator[tuple[Place, nn.Module]]:
    """The parts of one adapter with their places."""
    groups: dict[tuple[str, str, Any], list[tuple[Place, int]]] = {}
    for layer in places.layers:
        if layer.index in config.leave_out or layer.model_type in NO_PREFIXES:
            continue
        for place in layer.keys_values:
            group = places.group(layer, place.role)
            if (group == "encoder_prefix" and not config.encoder_prefix) or (
                group == "cross_prefix" and not config.cross_prefix
            ):
                continue
            tower = layer.tower if not places.with_cross else ""
            shape = (place.module.num_kv_heads, place.module.head_width)
            groups.setdefault((group, tower, shape), []).append((place, layer.width))
    counts: dict[tuple[str, str], int] = {}
    for (group, tower, (heads, width)), members in groups.items():
        # Prefixes of one network have one shape: attentions of another shape have a group of their own.
        number = counts[group, tower] = counts.get((group, tower), 0) + 1
        group = group if number == 1 else f"{group}_{number}"
        prefixes = Prefixes(config, len(members), heads, width, members[0][1])
        entry.share(f"{group}@{tower}", prefixes)
        for index, (place, stream) in enumerate(members):
            yield place, PrefixAt(config, prefixes, index, stream)


class KeyValueSite(nn.Module, Method):
    """The site of keys and values while prefixes are active: (k, v, mask, x) -> (k, v, mask)."""

    def __init__(
        self, setup: Any, parts: dict[str, list[PrefixAt]], facts: Facts, by_slot: bool = False
    ) -> None:
        super().__init__()
        self.by_slot = by_slot  # see Position
        self.setup, self.parts, self.facts = setup, parts, facts
        self.ragged = False  # whether rows of the running call have prefixes of several lengths

    def forward(
        self, k: Tensor, v: Tensor, mask: Tensor | None, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        self.ragged = False
        pk, pv, real = run(self.setup, (None, None, None), (x,), self, self.facts)
        if pk is None or pv is None or real is None:
            return k, v, mask
        length = pk.shape[2]
        k, v = torch.cat([pk.to(k.dtype), k], 2), torch.cat([pv.to(v.dtype), v], 2)
        if mask is not None:
            if mask.dtype != torch.bool:
                front = torch.zeros_like(real, dtype=mask.dtype).masked_fill(
                    ~real, torch.finfo(mask.dtype).min
                )
            else:
                front = real
            batch = max(mask.shape[0], front.shape[0])
            mask = torch.cat(
                [front.expand(batch, mask.shape[1], mask.shape[2], -1), mask.expand(batch, -1, -1, -1)], -1
            )
        elif self.uneven():
            mask = torch.cat([real, real.new_ones(real.shape[0], 1, 1, k.shape[2] - length)], -1)
        return (
            self._behind(k, v, mask, real)
            if self.ragged and self.by_slot and mask is not None
            else (k, v, mask)
        )

    def _behind(self, k: Tensor, v: Tensor, mask: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What shorter prefixes leave empty, behind all keys: in front it would count as positions."""
        count = k.shape[2]
        shift = (~real).sum(-1).view(-1, 1)
        index = (torch.arange(count, device=k.device)[None] + shift) % count  # (B, K)
        wide = index[:, None, :, None]
        mask = mask.expand(len(index), -1, -1, -1)
        return (
            k.gather(2, wide.expand(-1, k.shape[1], -1, k.shape[3])),
            v.gather(2, wide.expand(-1, v.shape[1], -1, v.shape[3])),
            mask.gather(3, index[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)),
        )

    def uneven(self) -> bool:
        """Whether rows may have prefixes of several lengths."""
        return not isinstance(self.setup, str) and type(self.setup).__name__ != "Stack"

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        k, v, real = flow
        x = fixed[0]
        assert x is not None
        for part in self.parts.get(name, ()):
            more_k, more_v = part(x)
            more = torch.ones(x.shape[0], 1, 1, more_k.shape[2], dtype=torch.bool, device=x.device)
            if k is None or v is None or real is None:
                k, v, real = more_k, more_v, more
            else:
                k, v = torch.cat([more_k, k], 2), torch.cat([more_v, v], 2)
                real = torch.cat([more, real], -1)
        return k, v, real

    def level(self, flows: list[Flow], flow: Flow, fixed: Flow) -> list[Flow]:
        return self.level_rows(flows, [(flow, fixed)] * len(flows))

    def level_rows(self, flows: list[Flow], parts: list[tuple[Flow, Flow]]) -> list[Flow]:
        there = [f for f in flows if f[0] is not None]
        if not there:
            return flows
        longest = max(f[0].shape[2] for f in there)  # type: ignore[union-attr]
        self.ragged = self.ragged or any(f[0] is None or f[0].shape[2] < longest for f in flows)
        made: list[Flow] = []
        for (k, v, real), (_, fixed) in zip(flows, parts, strict=True):
            if k is None or v is None or real is None:  # no prefix here: nothing of it may be attended
                like, x = there[0], fixed[0]
                assert x is not None and like[0] is not None and like[1] is not None
                shape = (x.shape[0], like[0].shape[1], longest)
                made.append((
                    like[0].new_zeros(*shape, like[0].shape[-1]),
                    like[1].new_zeros(*shape, like[1].shape[-1]),
                    torch.zeros(x.shape[0], 1, 1, longest, dtype=torch.bool, device=x.device),
                ))  # fmt: skip
                continue
            short = longest - k.shape[2]
            made.append((F.pad(k, (0, 0, short, 0)), F.pad(v, (0, 0, short, 0)), F.pad(real, (short, 0))))
        return made
