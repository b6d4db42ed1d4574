"""Which tokens of a canvas are kept at a step of denoising, what the others become, and when it is done.

Steps count down: `cur_step` steps are left, this one included. Canvases are (rows, C), scores (rows, C, V).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from phyla.errors import GenerationError
from phyla.generation.logits import LogitsProcessor

CONFIDENCES = ("probability", "margin", "entropy", "random")


class Chance:
    """Random numbers of a call: torch's own, those of one generator, or of one for each row.

    With one for each row, rows that are not `going` draw nothing, so that each row has the numbers that it
    would have alone.
    """

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        self.generators = list(generators)
        self.going: Tensor | None = None

    def tokens(self, vocabulary: int, rows: int, length: int, device: Any) -> Tensor:
        """Ids (rows, length), each as likely as any other."""
        if len(self.generators) < 2:
            return torch.randint(vocabulary, (rows, length), device=device, generator=self._one())
        ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        for row, source in self._rows():
            ids[row] = torch.randint(vocabulary, (length,), device=device, generator=source)
        return ids

    def drawn(self, scores: Tensor) -> Tensor:
        """Ids (rows, C), each with the chances that the scores (rows, C, V) give it."""
        chances = torch.softmax(scores, -1, dtype=torch.float32)
        rows, length, size = chances.shape
        if len(self.generators) < 2:
            drawn = torch.multinomial(chances.view(-1, size), 1, generator=self._one())
            return drawn.view(rows, length)
        ids = scores.argmax(-1)
        for row, source in self._rows():
            ids[row] = torch.multinomial(chances[row], 1, generator=source)[:, 0]
        return ids

    def evenly(self, like: Tensor) -> Tensor:
        """Numbers (rows, C) from 0 to 1."""
        if len(self.generators) < 2:
            return torch.rand(like.shape, device=like.device, generator=self._one())
        numbers = torch.zeros(like.shape, device=like.device)
        for row, source in self._rows():
            numbers[row] = torch.rand(like.shape[1:], device=like.device, generator=source)
        return numbers

    def _one(self) -> torch.Generator | None:
        return self.generators[0] if self.generators else None

    def _rows(self) -> list[tuple[int, torch.Generator]]:
        going = [True] * len(self.generators) if self.going is None else self.going.tolist()
        return [(row, source) for row, source in enumerate(self.generators) if going[row]]


def token_entropy(scores: Tensor) -> Tensor:
    """The entropy (rows, C) in nats of each token's distribution."""
    logs = torch.log_softmax(scores.float(), -1).clamp(min=torch.finfo(torch.float32).min)
    return -(logs.exp() * logs).sum(-1)


@dataclass
class SamplerConfig:
    """The settings of a sampler; files keep them with the name of their class as `_cls_name`."""

    def to_dict(self) -> dict[str, Any]:
        """The fields and the name of the class."""
        return {**asdict(self), "_cls_name": type(self).__name__}


@dataclass
class EntropyBoundSamplerConfig(SamplerConfig):
    """entropy_bound: the higher, the more tokens are kept at each step."""

    entropy_bound: float

    def __post_init__(self) -> None:
        if not isinstance(self.entropy_bound, float) or self.entropy_bound <= 0:
            raise GenerationError(f"entropy_bound must be a float above 0, but is {self.entropy_bound!r}")


@dataclass
class LowConfidenceSamplerConfig(SamplerConfig):
    """temperature: 0 takes the best token of each place. confidence: what makes a token sure: its
    "probability", its "margin" over the next one, the (lack of) "entropy", or nothing ("random").
    threshold: surer tokens are kept beside those whose turn it is."""

    temperature: float = 0.0
    confidence: str = "probability"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.temperature, bool) or not self.temperature >= 0:
            raise GenerationError(f"temperature must be at least 0, but is {self.temperature!r}")
        if self.confidence not in CONFIDENCES:
            raise GenerationError(f"confidence must be one of {CONFIDENCES}, but is {self.confidence!r}")


SAMPLER_CONFIGS = {cls.__name__: cls for cls in (EntropyBoundSamplerConfig, LowConfidenceSamplerConfig)}


class CanvasSampler:
    """What the loop asks a sampler; derive one of your own from it."""

    def __init__(self, config: Any, canvas_length: int, vocab_size: int, max_denoising_steps: int) -> None:
        self.config, self.canvas_length, self.vocab_size = config, canvas_length, vocab_size
        self.max_denoising_steps = max_denoising_steps
        self.chance = Chance()

    def initialize_canvas(self, batch_size: int, device: Any) -> Tensor:
        """A canvas of unknown tokens: random ones."""
        return self.chance.tokens(self.vocab_size, batch_size, self.canvas_length, device)

    def draw(self, logits: Tensor) -> Tensor:
        """The token that each place would become."""
        return self.chance.drawn(logits)

    def accept_canvas(
        self, current_canvas: Tensor, denoiser_canvas: Tensor, logits: Tensor, cur_step: int
    ) -> Tensor:
        """The canvas with the drawn tokens that are kept."""
        raise NotImplementedError(f"{type(self).__name__} must define accept_canvas")

    def renoise_canvas(self, accepted_canvas: Tensor, cur_step: int) -> Tensor:
        """The canvas of the next step."""
        return accepted_canvas

    def best(self, logits: Tensor) -> Tensor:
        """The best token of each place."""
        return logits.argmax(-1)

    def text(self, canvas: Tensor, best: Tensor) -> Tensor:
        """What the canvas says, given the best token of each place."""
        return best

    def known(self, canvas: Tensor) -> Tensor | None:
        """Rows (rows,) that have no unknown token left, where that can be told."""
        return None


class EntropyBoundSampler(CanvasSampler):
    """Keeps the tokens of least entropy, as many as are nearly independent (arXiv:2505.24857, section 4).

    k tokens are kept if the sum of their entropies without the largest is at most the bound. All others
    become random.
    """

    def __init__(
        self, config: EntropyBoundSamplerConfig, canvas_length: int, vocab_size: int, max_denoising_steps: int
    ) -> None:
        super().__init__(config, canvas_length, vocab_size, max_denoising_steps)
        self.entropy_bound = config.entropy_bound
        self.accepted_token_mask: Tensor | None = None

    def accept_canvas(
        self, current_canvas: Tensor, denoiser_canvas: Tensor, logits: Tensor, cur_step: int
    ) -> Tensor:
        entropy, order = token_entropy(logits).sort(-1)
        kept = entropy.cumsum(-1) - entropy <= self.entropy_bound
        self.accepted_token_mask = torch.zeros_like(kept).scatter(-1, order, kept)
        return torch.where(self.accepted_token_mask, denoiser_canvas, current_canvas)

    def renoise_canvas(self, accepted_canvas: Tensor, cur_step: int) -> Tensor:
        noise = self.initialize_canvas(len(accepted_canvas), accepted_canvas.device)
        return noise if self.accepted_token_mask is None else torch.where(
            self.accepted_token_mask, accepted_canvas, noise
        )  # fmt: skip


class LowConfidenceSampler(CanvasSampler):
    """Unknown tokens are masks; each step keeps the surest of them, as evenly as the steps go.

    Low-confidence remasking (Nie et al. 2025, arXiv:2502.09992, section 2.4). mask_token: their id.
    """

    def __init__(
        self, config: LowConfidenceSamplerConfig, canvas_length: int, vocab_size: int,
        max_denoising_steps: int, mask_token: int,
    ) -> None:  # fmt: skip
        super().__init__(config, canvas_length, vocab_size, max_denoising_steps)
        self.mask_token = mask_token

    def initialize_canvas(self, batch_size: int, device: Any) -> Tensor:
        return torch.full((batch_size, self.canvas_length), self.mask_token, device=device)

    def _real(self, logits: Tensor) -> Tensor:
        """The scores without that of the mask, which is no token of a text."""
        logits = logits.clone()
        logits[..., self.mask_token] = float("-inf")
        return logits

    def draw(self, logits: Tensor) -> Tensor:
        logits, temperature = self._real(logits), self.config.temperature
        return self.chance.drawn(logits / temperature) if temperature else logits.argmax(-1)

    def confidence(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """How sure each chosen token (rows, C) is."""
        logits, kind = self._real(logits).float(), self.config.confidence
        if kind == "random":
            return self.chance.evenly(chosen)
        if kind == "entropy":
            return -token_entropy(logits)
        chances = logits.softmax(-1)
        if kind == "margin":
            best = chances.topk(2, -1).values
            return best[..., 0] - best[..., 1]
        return chances.gather(-1, chosen[..., None])[..., 0]

    def accept_canvas(
        self, current_canvas: Tensor, denoiser_canvas: Tensor, logits: Tensor, cur_step: int
    ) -> Tensor:
        unknown = current_canvas == self.mask_token
        sure = self.confidence(logits, denoiser_canvas).masked_fill(~unknown, float("-inf"))
        count = -(-unknown.sum(-1, keepdim=True) // cur_step)  # the surest of them, rounded up
        place = sure.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        kept = place < count
        if self.config.threshold is not None:
            kept = kept | (sure > self.config.threshold)
        return torch.where(kept & unknown, denoiser_canvas, current_canvas)

    def best(self, logits: Tensor) -> Tensor:
        return self._real(logits).argmax(-1)

    def text(self, canvas: Tensor, best: Tensor) -> Tensor:
        return torch.where(canvas == self.mask_token, best, canvas)

    def known(self, canvas: Tensor) -> Tensor:
        return (canvas != self.mask_token).all(-1)


class LinearTemperatureScheduleLogitsProcessor(LogitsProcessor):
    """Scores over a temperature that falls evenly from t_max, at the first step, towards t_min."""

    def __init__(self, t_min: float, t_max: float, max_denoising_steps: int) -> None:
        self.t_min, self.t_max, self.max_denoising_steps = t_min, t_max, max_denoising_steps

    def __call__(self, input_ids: Tensor, scores: Tensor, cur_step: int) -> Tensor:  # type: ignore[override]
        """Scores of any shape at a step."""
        return scores / (self.t_min + (self.t_max - self.t_min) * (cur_step / self.max_denoising_steps))


class StableAndConfidentStoppingCriteria:
    """A row is done when its best tokens were the same for `stability_threshold` steps before this one, and
    the mean entropy of its tokens is below `confidence_threshold` nats."""

    def __init__(self, stability_threshold: int, confidence_threshold: float) -> None:
        self.stability_threshold, self.confidence_threshold = stability_threshold, confidence_threshold
        self.argmax_canvas_history: list[Tensor] = []

    def __call__(self, argmax_canvas: Tensor, logits: Tensor, **extra: Any) -> Tensor:
        """True for each row (rows,) that is done."""
        before = self.argmax_canvas_history
        stable = torch.full((len(logits),), len(before) >= self.stability_threshold, device=logits.device)
        for canvas in before:
            stable = stable & (canvas == argmax_canvas).all(-1)
        if self.stability_threshold:
            self.argmax_canvas_history = [*before, argmax_canvas][-self.stability_threshold :]
        return stable & (token_entropy(logits).mean(-1) < self.confidence_threshold)

    def reset(self) -> None:
        """Begin with another canvas."""
        self.argmax_canvas_history = []
