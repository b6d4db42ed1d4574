"""Prompt tuning: learned vectors in front of the embedded tokens (Lester et al. 2021, arXiv:2104.08691)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.adapters.config import ARCHITECTURES, AdapterConfig, known
from phyla.adapters.interpret import Facts, Flow, Method, run
from phyla.adapters.invertible import width_of
from phyla.adapters.places import Place, Survey
from phyla.blocks.context import Context
from phyla.errors import AdapterError


@known("prompt_tuning")
@dataclass
class PromptTuningConfig(AdapterConfig):
    """prompt_length vectors before all tokens, or behind the first (combine="prefix_after_bos")."""

    architecture: ClassVar[str | None] = "prompt_tuning"
    prompt_length: int = 10
    prompt_init: str = "random_uniform"
    prompt_init_text: str | None = None
    combine: str = "prefix"
    init_weights_seed: int | None = None
    random_uniform_scale: float = 0.5
    __hash__ = AdapterConfig.__hash__

    def unsaved(self) -> tuple[str, ...]:
        return ("random_uniform_scale",)


ARCHITECTURES["prompt_tuning"] = PromptTuningConfig


class Prompt(nn.Module):
    """The vectors (P, D)."""

    def __init__(self, config: PromptTuningConfig, width: int) -> None:
        super().__init__()
        if config.prompt_init != "random_uniform":
            raise AdapterError(
                "prompt_init must be random_uniform: a prompt from a text needs that text's token vectors; "
                "copy them into model.get_adapter(name) after adding it"
            )
        if config.combine not in ("prefix", "prefix_after_bos"):
            raise AdapterError(f"combine must be prefix or prefix_after_bos, but is {config.combine!r}")
        self.skip = 1 if config.combine == "prefix_after_bos" else 0
        self.prompt_embedding = nn.Embedding(config.prompt_length, width)
        scale = config.random_uniform_scale
        nn.init.uniform_(self.prompt_embedding.weight, -scale, scale)

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by public name."""
        return self.state_dict()

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by public name."""
        self.load_state_dict(tensors)


def attach(config: PromptTuningConfig, places: Survey, entry: Any) -> Iterator[tuple[Place, nn.Module]]:
    """The part of one adapter with its place."""
    if places.with_cross or len(places.embeds) != 1:
        raise AdapterError("prompt tuning needs a model with one embedding, but this one has several or none")
    embed = places.embeds[0]
    yield embed, Prompt(config, width_of(embed, places))


class PromptSite(nn.Module, Method):
    """The site of an embedding while prompts are active: (x, ctx) -> longer x; ctx is made to fit."""

    def __init__(self, setup: Any, parts: dict[str, list[Prompt]], facts: Facts) -> None:
        super().__init__()
        self.setup, self.parts, self.facts = setup, parts, facts
        skips = {p.skip for found in parts.values() for p in found}
        lengths = {p.prompt_embedding.num_embeddings for found in parts.values() for p in found}
        if len(skips) > 1 or len(lengths) > 1:
            raise AdapterError("prompts side by side must have one length and one place, but have several")
        self.skip = skips.pop()

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        if ctx is not None and (ctx.start or ctx.cache is not None):
            raise AdapterError("prompt tuning does not work with a cache: call with use_cache=False")
        (prompts,) = run(self.setup, (None,), (x,), self, self.facts)
        assert prompts is not None
        added = prompts.shape[1]
        if ctx is not None:
            self._lengthen(ctx, added)
        return torch.cat([x[:, : self.skip], prompts.to(x.dtype), x[:, self.skip :]], 1)

    def _lengthen(self, ctx: Context, added: int) -> None:
        """Make masks and positions of the call fit the longer rows."""
        mask = ctx.attention_mask
        if mask is not None:
            if mask.dim() != 2:
                raise AdapterError("prompt tuning needs a mask of (batch, positions)")
            ctx.attention_mask = torch.cat(
                [mask[:, : self.skip], mask.new_ones(mask.shape[0], added), mask[:, self.skip :]], 1
            )
        ctx.length += added
        last = ctx.positions[:, -1:]
        more = torch.arange(1, added + 1, device=ctx.positions.device)[None] + last
        ctx.positions = torch.cat([ctx.positions, more], 1)
        ctx.memo.clear()

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        x = fixed[0]
        assert x is not None
        for part in self.parts.get(name, ()):
            flow = (part.prompt_embedding.weight[None].expand(x.shape[0], -1, -1),)
        return flow
