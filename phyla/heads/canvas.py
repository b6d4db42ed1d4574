"""Scores of all tokens of a block of unfinished text at once, and how a class says that it writes text so."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.heads.base import HeadModule
from phyla.heads.lm import CausalLM, TokenScores


@dataclass(frozen=True)
class Denoising:
    """That `generate` writes a class's text by denoising, a block of tokens at a time, and what it must know.

    block: config -> tokens of a block; None: all new tokens are one block, unless the caller says otherwise.
    mask: config -> the id of unknown tokens, or None where unknown tokens are random ones. remembers: calls
    take the block as decoder_input_ids behind a cache, and put new text, input_ids, into it; otherwise they
    take the whole text with the block at each step. conditioned: a step is shown the scores of the step
    before (self_conditioning_logits). shifted: the scores of a token stand at the token before it.
    """

    block: Callable[[Any], int] | None = None
    mask: Callable[[Any], int] | None = None
    remembers: bool = False
    conditioned: bool = False
    shifted: bool = False


class CanvasScores(TokenScores):
    """states (B, C, D) of a canvas -> scores (B, C, V) in float32, capped."""

    def scores(self, x: Tensor) -> Tensor:
        logits = self.out(x).float()
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True)
class BlockDiffusion(CausalLM):
    """Scores of what each token of a canvas will be; labels (B, C) are the finished tokens.

    denoising: how the class writes text.
    """

    task: ClassVar[str] = "block-diffusion"
    shifted: bool = False
    denoising: Denoising = Denoising()

    def make(self, config: Any, width: int) -> HeadModule:
        made = CanvasScores(self, config.get_text_config(), width)
        made.tied = config.tie_word_embeddings
        return made
