"""The filters of sampling: temperature and the ways to cut off unlikely tokens, with their public names."""

import math

import torch
from torch import Tensor

from phyla.errors import GenerationError
from phyla.generation.checks import check_argument
from phyla.generation.logits import NEVER, LogitsProcessor

_SHORTLIST = 256  # top-p looks here first: a whole vocabulary takes milliseconds to sort on a CPU


class TemperatureLogitsWarper(LogitsProcessor):
    """Divide the scores by `temperature` (above 0)."""

    def __init__(self, temperature: float):
        check_argument("temperature", temperature)
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores / self.temperature


class _Filter(LogitsProcessor):
    """A warper that gives `filter_value` to the tokens it drops, but keeps at least `min_tokens_to_keep`."""

    def __init__(self, filter_value: float, min_tokens_to_keep: int):
        check_argument("min_tokens_to_keep", min_tokens_to_keep)
        self.filter_value = filter_value
        self.min_tokens_to_keep = min_tokens_to_keep

    def _drop(self, scores: Tensor, drop: Tensor) -> Tensor:
        """`scores` with the tokens of `drop` (rows, vocabulary) removed, save the most likely ones."""
        if self.min_tokens_to_keep == 1:
            drop = drop & (scores < scores.amax(-1, keepdim=True))
        else:
            keep = min(self.min_tokens_to_keep, scores.shape[-1])
            drop = drop.scatter(1, scores.topk(keep).indices, False)
        return scores.masked_fill(drop, self.filter_value)


class TopHLogitsWarper(LogitsProcessor):
    """Keep the most likely tokens while their part of the entropy of the first 100 is at most `top_h`.

    arXiv:2509.02510, section 4; the most likely one stays in any case.
    """

    top_n = 100

    def __init__(self, top_h: float, filter_value: float = NEVER):
        if not 0 < top_h <= 1:
            raise GenerationError(f"top_h must be above 0 and at most 1, but is {top_h!r}")
        self.top_h, self.filter_value = top_h, filter_value

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best, index = scores.topk(min(self.top_n, scores.shape[-1]))
        chances = best.softmax(-1)
        parts = torch.special.entr(chances).cumsum(-1)
        kept = parts <= parts[:, -1:] * self.top_h
        kept[:, 0] = True
        drop = torch.ones_like(scores, dtype=torch.bool).scatter(1, index, ~kept)
        return scores.masked_fill(drop, self.filter_value)


class TopKLogitsWarper(_Filter):
    """Keep the `top_k` most likely tokens, and those as likely as the last of them (Fan et al. 2018)."""

    def __init__(self, top_k: int, filter_value: float = NEVER, min_tokens_to_keep: int = 1):
        super().__init__(filter_value, min_tokens_to_keep)
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise GenerationError(
                f"top_k must be an integer at least 1, but is {top_k!r}; 0 switches it off in generate"
            )
        self.top_k = max(top_k, min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        least = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
        return scores.masked_fill(scores < least, self.filter_value)


class TopPLogitsWarper(_Filter):
    """Keep the fewest most likely tokens whose probabilities sum to `top_p` (Holtzman et al. 2019)."""

    def __init__(self, top_p: float, filter_value: float = NEVER, min_tokens_to_keep: int = 1):
        super().__init__(filter_value, min_tokens_to_keep)
        check_argument("top_p", top_p)
        self.top_p = float(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        size = scores.shape[-1]
        if self.top_p == 1:
            return scores
        if scores.device.type == "cpu" and size > 4 * _SHORTLIST:
            top, index = scores.topk(_SHORTLIST)
            chance = (top - scores.logsumexp(-1, keepdim=True)).exp()
            if bool((chance.sum(-1) >= self.top_p).all()):
                return self._keep(scores, chance, index)
        top, index = scores.sort(descending=True)
        return self._keep(scores, top.softmax(-1), index)

    def _keep(self, scores: Tensor, chance: Tensor, index: Tensor) -> Tensor:
        """Keep the tokens `index` (rows, count), sorted by falling `chance`, until the sum before one reaches
        top_p.
        """
        before = chance.cumsum(-1) - chance
        keep = before < self.top_p
        keep[:, : self.min_tokens_to_keep] = True
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, keep)
        return scores.masked_fill(~kept, self.filter_value)


class MinPLogitsWarper(_Filter):
    """Drop tokens less likely than `min_p` times the most likely one (Nguyen et al. 2024)."""

    def __init__(self, min_p: float, filter_value: float = NEVER, min_tokens_to_keep: int = 1):
        super().__init__(filter_value, min_tokens_to_keep)
        check_argument("min_p", min_p)
        self.min_p = min_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chance = scores.softmax(-1)
        return self._drop(scores, chance < self.min_p * chance.amax(-1, keepdim=True))


class TypicalLogitsWarper(_Filter):
    """Keep the tokens whose surprise is nearest to the entropy, up to `mass` (Meister et al. 2022)."""

    def __init__(self, mass: float = 0.9, filter_value: float = NEVER, min_tokens_to_keep: int = 1):
        super().__init__(filter_value, min_tokens_to_keep)
        check_argument("typical_p", mass)
        self.mass = float(mass)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp = scores.log_softmax(-1)
        entropy = -(logp * logp.exp()).nansum(-1, keepdim=True)
        distance, index = (-logp - entropy).abs().sort()
        sums = scores.gather(1, index).softmax(-1).cumsum(-1)
        last = (sums < self.mass).sum(1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        drop = distance > distance.gather(1, last)
        drop[:, : self.min_tokens_to_keep] = False
        return scores.masked_fill(drop.scatter(1, index, drop), self.filter_value)


class EpsilonLogitsWarper(_Filter):
    """Drop tokens less likely than `epsilon` (Hewitt et al. 2022)."""

    def __init__(self, epsilon: float, filter_value: float = NEVER, min_tokens_to_keep: int = 1):
        super().__init__(filter_value, min_tokens_to_keep)
        check_argument("epsilon_cutoff", epsilon)
        self.epsilon = float(epsilon)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._drop(scores, scores.softmax(-1) < self.epsilon)


class EtaLogitsWarper(_Filter):
    """Drop tokens less likely than min(epsilon, sqrt(epsilon) exp(-entropy)) (Hewitt et al. 2022)."""

    def __init__(
        self, epsilon: float, filter_value: float = NEVER, min_tokens_to_keep: int = 1, device: str = "cpu"
    ):
        super().__init__(filter_value, min_tokens_to_keep)
        check_argument("eta_cutoff", epsilon)
        self.epsilon = float(epsilon)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp = scores.log_softmax(-1)
        chance = logp.exp()
        entropy = -(logp * chance).nansum(-1, keepdim=True)
        cutoff = (math.sqrt(self.epsilon) * (-entropy).exp()).clamp(max=self.epsilon)
        return self._drop(scores, chance < cutoff)
