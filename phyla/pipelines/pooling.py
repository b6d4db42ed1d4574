"""From one vector a token to one vector a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError, ConfigError, nearest

# The order is also that in which several pooled vectors are joined.
CONFIG_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ALIASES = {"mean_sqrt_len_tokens": "mean_sqrt_len"}
MODES = tuple(CONFIG_KEYS.values())


@dataclass(frozen=True)
class Pooling:
    """One or several ways of pooling, joined along the last dimension; padding on either side is left out.

    cls: first token. lasttoken: last token. max, mean: over tokens. mean_sqrt_len: sum / sqrt(tokens).
    weightedmean: weights 1, 2, 3, ... (Muennighoff 2022, arXiv:2202.08904). `include_prompt` False leaves the
    prompt's tokens out.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in MODES:
                raise ArgumentError(
                    f"pooling {mode!r} is not one of {', '.join(MODES)}.{nearest(mode, MODES)}"
                )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Pooling":
        """From the public config.json of a pooling folder: flags of old, `pooling_mode` of new files."""
        named = config.get("pooling_mode")
        if named is None:
            modes = [mode for key, mode in CONFIG_KEYS.items() if config.get(key)] or ["mean"]
        elif isinstance(named, str):
            modes = [named]
        elif isinstance(named, list) and named and all(isinstance(mode, str) for mode in named):
            modes = named
        else:
            raise ConfigError(f"pooling_mode must be a name or a list of names, but is {named!r}")
        return cls(tuple(ALIASES.get(m, m) for m in modes), bool(config.get("include_prompt", True)))

    def __call__(self, hidden: Tensor, mask: Tensor, prompt: int = 0) -> Tensor:
        """(batch, tokens, width) and a mask (batch, tokens) give (batch, width * modes).

        `prompt` is the number of leading tokens that belong to the prompt.
        """
        real = mask.bool()
        first = real.int().argmax(dim=1, keepdim=True)  # (B, 1), past left padding
        place = torch.arange(mask.shape[1], device=mask.device) - first  # (B, S), 0 at the first real token
        kept = real & (place >= prompt) if prompt and not self.include_prompt else real
        weight = kept.unsqueeze(-1).float()  # (B, S, 1)
        count = weight.sum(dim=1).clamp(min=1e-9)
        pooled = []
        for mode in self.modes:
            if mode == "cls":
                vector = pick(hidden, kept.int().argmax(dim=1))
            elif mode == "lasttoken":
                vector = pick(hidden, mask.shape[1] - 1 - kept.flip(1).int().argmax(dim=1))
            elif mode == "max":
                vector = hidden.masked_fill(~kept.unsqueeze(-1), float("-inf")).amax(dim=1)
            elif mode == "weightedmean":
                ramp = weight * (place + 1).unsqueeze(-1)
                vector = (hidden.float() * ramp).sum(dim=1) / ramp.sum(dim=1).clamp(min=1e-9)
            else:
                vector = (hidden.float() * weight).sum(dim=1) / (count if mode == "mean" else count.sqrt())
            pooled.append(vector.to(hidden.dtype))
        return torch.cat(pooled, dim=-1)


def pick(hidden: Tensor, index: Tensor) -> Tensor:
    """The vectors (batch, width) at one position (batch,) of each row."""
    return hidden[torch.arange(len(index), device=hidden.device), index]
