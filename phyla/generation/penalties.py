"""Penalties and filters that the reference lacks: presence, frequency, DRY, XTC, top-n-sigma, mirostat."""

import math

import torch
from torch import Tensor

from phyla.errors import GenerationError
from phyla.generation.logits import NEVER, LogitsProcessor


class PresenceFrequencyLogitsProcessor(LogitsProcessor):
    """Lower the score of a generated token by `presence`, and by `frequency` for each time it occurs.

    Tokens of the prompt, the first `prompt_length` ids, do not count.
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int):
        self.presence, self.frequency, self.prompt_length = presence, frequency, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids[:, self.prompt_length :]
        count = torch.zeros_like(scores).scatter_add(1, new, torch.ones_like(new, dtype=scores.dtype))
        return scores - self.presence * (count > 0) - self.frequency * count


class DRYLogitsProcessor(LogitsProcessor):
    """Lower tokens that would lengthen a repetition: by multiplier * base ** (length - allowed), from a
    repetition
    of `allowed` tokens on ("don't repeat yourself", p-e-w 2024).

    `breakers` are ids that no repetition runs across; `window` ids at the end are searched, 0 for all.
    """

    def __init__(
        self, multiplier: float, base: float = 1.75, allowed: int = 2, breakers: list[int] | None = None,
        window: int = 0, prompt_mask: Tensor | None = None,
    ):  # fmt: skip
        if multiplier < 0 or base < 1 or allowed < 1:
            raise GenerationError(
                "DRY needs a multiplier at least 0, a base and an allowed length at least 1, but has "
                f"{multiplier}, {base} and {allowed}"
            )
        self.multiplier, self.base, self.allowed = multiplier, base, allowed
        self.breakers, self.window, self.prompt_mask = list(breakers or ()), window, prompt_mask
        # more than this would overflow
        self.longest = allowed + int(math.log(1e30) / math.log(base)) if base > 1 else allowed + 1000

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.window:
            input_ids = input_ids[:, -self.window :]
        rows, length = input_ids.shape
        if length < 2:
            return scores
        text = input_ids
        broken = torch.zeros_like(text, dtype=torch.bool)
        if self.breakers:
            broken = torch.isin(text, torch.tensor(self.breakers, device=text.device))
        if self.prompt_mask is not None and not self.window:
            mask = self.prompt_mask.repeat_interleave(rows // len(self.prompt_mask), 0)
            broken[:, : mask.shape[1]] |= mask == 0
        # how long the text before each position agrees with the end of the whole text
        reach = torch.zeros(rows, length - 1, dtype=torch.long, device=text.device)
        agree = torch.ones_like(reach, dtype=torch.bool)
        for back in range(min(self.longest, length - 1)):
            here = text[:, : length - 1 - back] == text[:, length - 1 - back, None]
            here = here & ~broken[:, : length - 1 - back] & ~broken[:, length - 1 - back, None]
            agree = agree & torch.nn.functional.pad(here, (back, 0))
            reach = reach + agree
            if not bool(agree.any()):
                break
        follow = text[:, 1:]  # the token behind each such position
        worst = torch.zeros(rows, scores.shape[1], dtype=torch.long, device=text.device)
        worst = worst.scatter_reduce(1, follow, reach, "amax")
        drop = self.multiplier * self.base ** (worst - self.allowed).clamp(max=self.longest).to(scores.dtype)
        return torch.where(worst >= self.allowed, scores - drop, scores)


class XTCLogitsWarper(LogitsProcessor):
    """With `probability`, drop all tokens at least as likely as `threshold` but the least likely of them
    (p-e-w
    2024); `keep` ids, such as end tokens, make a step go without if they are among the dropped.
    """

    def __init__(
        self, probability: float, threshold: float = 0.1, keep: list[int] | None = None,
        generators: list[torch.Generator] | None = None,
    ):  # fmt: skip
        self.probability, self.threshold, self.keep = probability, threshold, list(keep or ())
        self.generators = generators if generators is not None else []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chance = scores.softmax(-1)
        likely = chance >= self.threshold
        least = torch.where(likely, chance, torch.inf).amin(-1, keepdim=True)
        drop = likely & (chance > least)
        on = self._flips(len(scores), scores.device) < self.probability
        if self.keep:
            on = on & ~drop[:, self.keep].any(1)
        return scores.masked_fill(drop & on[:, None], NEVER)

    def _flips(self, rows: int, device: torch.device) -> Tensor:
        if len(self.generators) > 1:
            return torch.cat([torch.rand(1, generator=g, device=device) for g in self.generators])
        generator = self.generators[0] if self.generators else None
        return torch.rand(rows, generator=generator, device=device)


class TopNSigmaLogitsWarper(LogitsProcessor):
    """Keep tokens whose score is at most `n` standard deviations below the best (Tang et al. 2024)."""

    def __init__(self, n: float, filter_value: float = NEVER):
        if not n > 0:
            raise GenerationError(f"top_n_sigma must be above 0, but is {n!r}")
        self.n, self.filter_value = n, filter_value

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        there = scores > NEVER
        count = there.sum(-1, keepdim=True)
        mean = torch.where(there, scores, 0).sum(-1, keepdim=True) / count
        spread = torch.where(there, (scores - mean) ** 2, 0).sum(-1, keepdim=True) / count
        least = scores.amax(-1, keepdim=True) - self.n * spread.sqrt()
        return scores.masked_fill(scores < least, self.filter_value)


class MirostatLogitsWarper(LogitsProcessor):
    """Keep tokens whose surprise is below a bound that is steered so that the text's mean surprise is `tau`
    bits
    (Basu et al. 2021, version 2); `eta` is how quickly.

    The bound follows from the surprises of the tokens that were taken, one step behind; rows have their own.
    """

    together = True  # rows of a batch at one length alone: it remembers them

    def __init__(self, tau: float = 5.0, eta: float = 0.1):
        if not tau > 0 or not 0 < eta <= 1:
            raise GenerationError(
                f"mirostat needs a tau above 0 and an eta above 0 and at most 1, but has {tau} and {eta}"
            )
        self.tau, self.eta = tau, eta
        self.bounds: dict[int, Tensor] = {}  # by the length of the text
        self.chances: dict[int, Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        length = input_ids.shape[1]
        bound = self.bounds.get(length - 1)
        if bound is None:
            bound = scores.new_full((len(scores), 1), 2 * self.tau)
        else:
            taken = self.chances[length - 1].gather(1, input_ids[:, -1:])
            surprise = -taken.log2()
            # a token that was forced from outside tells nothing
            step = torch.where(surprise.isfinite(), surprise - self.tau, 0.0)
            bound = bound - self.eta * step
        chance = scores.softmax(-1)
        drop = (-chance.log2() > bound) & (chance < chance.amax(-1, keepdim=True))
        kept = scores.masked_fill(drop, NEVER)
        # steps may be taken back as far as drafts reach
        self.bounds = {k: v for k, v in self.bounds.items() if length - 64 < k < length} | {length: bound}
        self.chances = {k: v for k, v in self.chances.items() if length - 64 < k < length}
        self.chances[length] = kept.softmax(-1)
        return kept
