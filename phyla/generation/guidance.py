"""Classifier-free guidance: scores pushed away from those of a negative prompt, with the public names."""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.cache import StateCache
from phyla.errors import ArgumentError, GenerationError
from phyla.generation.checks import check_argument
from phyla.generation.config import GenerationConfig
from phyla.generation.forward import Forward
from phyla.generation.logits import LogitsProcessor
from phyla.generation.prompt import Prompt, read_prompt


class ClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Mix the scores of two halves of a batch (2 * rows, vocabulary), guided then unguided (Ho & Salimans
    2022).
    """

    def __init__(self, guidance_scale: float):
        check_argument("guidance_scale", guidance_scale)
        self.guidance_scale = guidance_scale

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary) for ids (rows, length)."""
        if scores.shape[0] != 2 * input_ids.shape[0]:
            raise ArgumentError(
                f"scores must have twice the rows of input_ids ({input_ids.shape[0]}), but have "
                f"{scores.shape[0]}"
            )
        guided, unguided = scores.chunk(2)
        return unguided + (guided - unguided) * self.guidance_scale


class UnbatchedClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Run the model beside itself on a negative prompt and move away from its scores (Sanchez et al. 2023).

    The negative prompt, ids (rows or 1, length), is the prompt's last token where none is given.
    """

    together = True  # rows of a batch at one length alone: it remembers them

    def __init__(
        self,
        guidance_scale: float,
        model: nn.Module,
        unconditional_ids: Tensor | None = None,
        unconditional_attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
    ):
        if getattr(model.config, "is_encoder_decoder", False):
            raise GenerationError("guidance_scale with a negative prompt works for decoder-only models alone")
        self.guidance_scale = guidance_scale
        self.model, self.use_cache = model, use_cache is not False
        self.negative, self.negative_mask = unconditional_ids, unconditional_attention_mask
        self.ids: Tensor | None = None
        self.start, self.begun = torch.empty(0), 0
        self.forward: Forward | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.log_softmax(-1)
        if self.guidance_scale == 1:
            return scores
        if self.forward is None or self.ids is None:
            self.prompt = self._prompt(input_ids)
            self.begun, self.ids = input_ids.shape[1], self.prompt.ids
            self.start = self.prompt.ids
            self.forward = self._begin()
        else:
            ids = torch.cat([self.start, input_ids[:, self.begun :]], dim=1)
            self._return_to(ids)
            self.ids = ids
        negative = self.forward.logits(self.forward(self.ids)).log_softmax(-1)
        return negative + self.guidance_scale * (scores - negative)

    def _return_to(self, ids: Tensor) -> None:
        """Forget what beams and drafts took back."""
        assert self.forward is not None and self.ids is not None
        common = min(self.ids.shape[1], ids.shape[1] - 1)
        if self.forward.fed == self.ids.shape[1] == ids.shape[1] - 1:
            if torch.equal(self.ids, ids[:, :common]):
                return
        same = (self.ids[:, :common] == ids[:, :common]).all(0).cumprod(0).sum()
        if self.forward.fed <= int(same):
            return
        if any(isinstance(slot, StateCache) for slot in getattr(self.forward.cache, "slots", ())):
            self.forward = self._begin()  # states cannot be cut back: all is read anew
            self.forward(self.start)
        else:
            self.forward.truncate(int(same))

    def _begin(self) -> Forward:
        return Forward(self.model, self.prompt, self.prompt.positions + 1, self.use_cache, pad_id=0)

    def _prompt(self, input_ids: Tensor) -> Prompt:
        ids = input_ids[:, -1:] if self.negative is None else self.negative
        named: dict[str, Any] = {"input_ids": _rows(ids, input_ids, "negative_prompt_ids")}
        if self.negative_mask is not None:
            named["attention_mask"] = _rows(self.negative_mask, input_ids, "negative_prompt_attention_mask")
        return read_prompt(self.model, None, named, GenerationConfig())


def _rows(value: Tensor, like: Tensor, name: str) -> Tensor:
    if value.ndim != 2 or like.shape[0] % value.shape[0]:
        raise ArgumentError(
            f"{name} must have shape (1 or {like.shape[0]}, length), but has {tuple(value.shape)}"
        )
    return value.repeat_interleave(like.shape[0] // value.shape[0], dim=0)


def guidance_processor(model: nn.Module, config: GenerationConfig, negative: Tensor | None,
                       mask: Tensor | None) -> LogitsProcessor | None:  # fmt: skip
    """The processor that guidance_scale asks for, or None."""
    if config.guidance_scale is None or config.guidance_scale == 1:
        if negative is not None and config.guidance_scale is None:
            raise GenerationError("negative_prompt_ids need a guidance_scale, but none is set")
        return None
    return UnbatchedClassifierFreeGuidanceLogitsProcessor(
        config.guidance_scale, model, negative, mask, config.use_cache
    )
