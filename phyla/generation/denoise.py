"""Text written from noise, a block at a time: each block begins as unknown tokens and is refined in steps.

Block diffusion (Arriola et al. 2025, arXiv:2503.09573) with uniform noise, and masked diffusion (Nie et al.
2025, arXiv:2502.09992). A class says by the `denoising` of its head that it writes so: see heads/canvas.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.cache import Cache
from phyla.errors import ArgumentError, GenerationError, UnknownArgumentError
from phyla.generation.caches import new_cache
from phyla.generation.config import DEFAULTS, GenerationConfig
from phyla.generation.denoising_config import FIELDS, DiffusionGemmaGenerationConfig, defaults
from phyla.generation.logits import LogitsProcessorList
from phyla.generation.loop import adapted
from phyla.generation.outputs import DiffusionGemmaGenerationOutput
from phyla.generation.plan import end_tokens, pad_token
from phyla.generation.prompt import read_prompt, split_inputs, vocabulary_size
from phyla.generation.samplers import (
    CanvasSampler,
    Chance,
    EntropyBoundSampler,
    EntropyBoundSamplerConfig,
    LinearTemperatureScheduleLogitsProcessor,
    LowConfidenceSampler,
    StableAndConfidentStoppingCriteria,
)
from phyla.generation.stopping import StoppingCriteriaList
from phyla.generation.task import row_generators

# inputs of the first step of the first block
_BEGIN = ("decoder_input_ids", "self_conditioning_logits")


@dataclass
class Scorer:
    """A model that scores a canvas behind finished text, ids (rows, S) with mask (rows, S), None: all real.

    first: inputs of its first call. cache: the memory of one that remembers what it has read.
    """

    model: Any
    ids: Tensor
    mask: Tensor | None
    first: dict[str, Any]
    cache: Any = None
    unread: int = 0

    def extend(self, block: Tensor) -> None:
        """Put a finished block behind the text."""
        self.ids, self.unread = torch.cat([self.ids, block], 1), block.shape[1]
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, block.shape[1]), value=1)

    def __call__(self, canvas: Tensor, before: Tensor | None, ahead: int) -> Tensor:
        """Scores (rows, C, V); before: those of the last step; ahead: unknown tokens behind the canvas."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


class Remembering(Scorer):
    """One that keeps finished text in a cache: the first call behind new text reads it, too."""

    def __call__(self, canvas: Tensor, before: Tensor | None, ahead: int) -> Tensor:
        given: dict[str, Any] = {} if before is None else {"self_conditioning_logits": before}
        if self.unread:
            given |= {"input_ids": self.ids[:, -self.unread :], "attention_mask": self.mask, **self.first}
        elif self.mask is not None:
            given["decoder_attention_mask"] = F.pad(self.mask, (0, canvas.shape[1]), value=1)
        out = self.model(
            decoder_input_ids=canvas, past_key_values=self.cache, return_dict=True, **given
        )  # fmt: skip
        self.cache, self.first, self.unread = out.past_key_values, {}, 0
        return out.logits


class Rereading(Scorer):
    """One that reads the text, the canvas and unknown tokens behind it at each step."""

    def __call__(self, canvas: Tensor, before: Tensor | None, ahead: int) -> Tensor:
        denoising = self.model.head_spec.denoising
        rest = canvas.new_full((len(canvas), ahead), denoising.mask(self.model.config))
        ids = torch.cat([self.ids, canvas, rest], 1)
        given = dict(self.first)
        if self.mask is not None:
            given["attention_mask"] = F.pad(self.mask, (0, ids.shape[1] - self.mask.shape[1]), value=1)
        scores = self.model(input_ids=ids, return_dict=True, **given).logits
        begin = self.ids.shape[1] - bool(denoising.shifted)
        if begin < 0:
            raise ArgumentError("the prompt must hold at least one token: the first one's scores stand there")
        return scores[:, begin : begin + canvas.shape[1]]


@dataclass
class Plan:
    """What the loop runs with; `begin` are inputs of the first step, `steps` and `length` are of a block."""

    steps: int
    length: int
    blocks: int
    sampler: CanvasSampler
    processors: LogitsProcessorList
    settled: StableAndConfidentStoppingCriteria | None
    criteria: StoppingCriteriaList
    ends: Tensor | None
    pad: int
    begin: dict[str, Tensor]
    conditioned: bool
    streamer: Any = None


@adapted
def generate_blocks(
    model: nn.Module,
    input_ids: Any = None,
    past_key_values: Any = None,
    streamer: Any = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: list | None = None,
    stopping_criteria: list | None = None,
    *,
    seed: int | Sequence[int] | None = None,
    sampler: Any = None,
    **settings: Any,
) -> Any:
    """Token ids (rows, S + new tokens) that continue input_ids (rows, S), written a block at a time.

    `settings` are fields of the generation configuration (see `DiffusionGemmaGenerationConfig`), which go
    before those of `generation_config`, which go before the model's own; and inputs of the model:
    attention_mask (padding may stand on either side), pixel_values, ... Another name is an
    UnknownArgumentError. New tokens are whole blocks; a row ends at the first end token and is padded behind
    it. With return_dict_in_generate, which is the default, the result has `sequences`, `tokens_per_forward`
    (rows,) and `past_key_values`.

    past_key_values: a cache with text; input_ids are what it does not hold, attention_mask is for both.
    decoder_input_ids (rows, C), self_conditioning_logits: the first canvas and what is said of it. Processors
    get scores (rows, C, V), with `cur_step` steps left; criteria are asked behind each block. seed: a number
    for the call, or one for each row, which then does not depend on the others; without it torch's global
    generator is used. sampler: a `CanvasSampler` in place of what sampler_config says. streamer gets the
    prompt, each finished block (rows, C) by `put`, and by `put_draft`, where it has that, what the canvas
    says at each step.

    Raises GenerationError for settings and ArgumentError for prompts.
    """
    denoising: Any = model.head_spec.denoising  # type: ignore[union-attr]
    config = settle(model, denoising, generation_config, settings)
    foreign = next(
        (k for k, v in settings.items() if k in DEFAULTS and k not in FIELDS and v is not None), None
    )
    if foreign is not None:
        raise UnknownArgumentError(f"{foreign!r} is no setting of text that is written from noise")
    named = split_inputs(model, {k: v for k, v in settings.items() if k not in FIELDS})
    begin = {name: named.pop(name) for name in _BEGIN if name in named}
    if past_key_values is not None and config.cache_implementation is not None:
        raise GenerationError("give past_key_values or cache_implementation, not both")
    pack: Any = getattr(model, "pack", None)
    if pack is not None and not model.training:
        pack()
    with torch.no_grad():
        scorer, given = prompted(model, denoising, input_ids, named, past_key_values, config)
        rows, device = len(scorer.ids), scorer.ids.device
        plan = make_plan(
            model, denoising, config, scorer, sampler, logits_processor, stopping_criteria, begin
        )
        plan.sampler.chance = Chance(row_generators(seed, rows, device))
        plan.streamer = streamer
        if denoising.remembers and scorer.cache is None:
            room = scorer.ids.shape[1] + plan.blocks * plan.length
            scorer.cache = new_cache(model, config.cache_implementation, config.cache_config, rows, room)
        try:
            if streamer is not None:
                streamer.put(given.cpu())
            new, counts, passes = write(scorer, plan)
        except BaseException as error:
            if hasattr(streamer, "fail"):
                streamer.fail(error)
            raise
    if streamer is not None:
        streamer.end()
    sequences = torch.cat([given, new], 1)
    if not config.return_dict_in_generate:
        return sequences
    return DiffusionGemmaGenerationOutput(
        sequences=sequences, tokens_per_forward=counts / passes, past_key_values=scorer.cache
    )  # fmt: skip


def settle(
    model: Any, denoising: Any, given: GenerationConfig | None, settings: dict[str, Any]
) -> DiffusionGemmaGenerationConfig:
    """The settings of a call: its own before the given ones, the model's, and the defaults."""
    if given is not None and not isinstance(given, GenerationConfig):
        raise ArgumentError(f"generation_config must be a GenerationConfig, but is a {type(given).__name__}")
    own = getattr(model, "generation_config", None)
    own = DiffusionGemmaGenerationConfig.from_model_config(model.config) if own is None else own
    config = DiffusionGemmaGenerationConfig.of(given if given is not None else own)
    config.fill(DiffusionGemmaGenerationConfig.of(own))
    asked = {k: v for k, v in settings.items() if k in FIELDS}
    length = asked.get("block_length") or config.block_length
    if length is None and denoising.block is not None:
        length = denoising.block(model.config)
    config.fill(defaults(denoising.mask is not None, length))
    config.update(**asked)
    config.block_length = length
    return config


def prompted(
    model: Any,
    denoising: Any,
    ids: Any,
    named: dict[str, Any],
    past: Any,
    config: DiffusionGemmaGenerationConfig,
) -> tuple[Scorer, Tensor]:
    """Who scores the canvas, behind a prompt with padding on the left; and the prompt as it was given."""
    kind = Remembering if denoising.remembers else Rereading
    if isinstance(past, Cache) and past.length:
        mask = named.pop("attention_mask", None)
        prompt = read_prompt(model, ids, named, config)
        known, new = past.length, prompt.ids.shape[1]
        if mask is None and prompt.mask is not None:
            mask = F.pad(prompt.mask, (known, 0), value=1)
        if mask is not None and mask.shape != (len(prompt.ids), known + new):
            raise ArgumentError(
                f"attention_mask must be {(len(prompt.ids), known + new)}, for {known} cached positions and "
                f"{new} new ones, but is {tuple(mask.shape)}"
            )
        mask = None if mask is None else mask.to(prompt.ids.device).long()
    else:
        prompt = read_prompt(model, ids, named, config)
        mask = prompt.mask
    return kind(model, prompt.ids, mask, dict(prompt.first), past, prompt.ids.shape[1]), prompt.given


def make_plan(
    model: Any, denoising: Any, config: DiffusionGemmaGenerationConfig, scorer: Scorer, sampler: Any,
    processors: list | None, criteria: list | None, begin: dict[str, Tensor],
) -> Plan:  # fmt: skip
    """What the loop runs with."""
    have = scorer.ids.shape[1] + (0 if scorer.cache is None else scorer.cache.length)
    limit = config.max_new_tokens
    if config.max_length and limit == defaults(False, None)["max_new_tokens"]:
        limit = config.max_length - have
    if limit <= 0:
        raise GenerationError(
            f"max_length ({config.max_length}) must be more than the prompt's length, which is {have}"
        )
    length = config.block_length or limit
    steps = config.max_denoising_steps or length
    size = vocabulary_size(model)
    if sampler is None:
        sampler = make_sampler(model, denoising, config, length, size, steps)
    chain = LogitsProcessorList(processors or [])
    if config.t_min is not None and config.t_max is not None:
        chain.append(LinearTemperatureScheduleLogitsProcessor(config.t_min, config.t_max, steps))
    settled = None
    if config.stability_threshold is not None and config.confidence_threshold is not None:
        settled = StableAndConfidentStoppingCriteria(config.stability_threshold, config.confidence_threshold)
    device = scorer.ids.device
    for name, value in begin.items():
        begin[name] = value.to(device)
    if "decoder_input_ids" in begin and begin["decoder_input_ids"].shape != (len(scorer.ids), length):
        raise ArgumentError(
            f"decoder_input_ids must be a block for each row, {(len(scorer.ids), length)}, but is "
            f"{tuple(begin['decoder_input_ids'].shape)}"
        )
    return Plan(
        steps, length, math.ceil(limit / length), sampler, chain, settled,
        StoppingCriteriaList(criteria or []), end_tokens(config, device), pad_token(config), begin,
        denoising.conditioned,
    )  # fmt: skip


def make_sampler(
    model: Any,
    denoising: Any,
    config: DiffusionGemmaGenerationConfig,
    length: int,
    size: int | None,
    steps: int,
) -> CanvasSampler:
    """The sampler that the settings name."""
    if size is None:
        raise GenerationError(f"the size of the vocabulary is needed, which {type(model).__name__} lacks")
    said = config.sampler_config
    if isinstance(said, EntropyBoundSamplerConfig):
        return EntropyBoundSampler(said, length, size, steps)
    if denoising.mask is None:
        raise GenerationError(
            f"a {type(said).__name__} needs a token that stands for unknown ones, which "
            f"{type(model).__name__} has not: leave sampler_config out"
        )
    return LowConfidenceSampler(said, length, size, steps, denoising.mask(model.config))


def write(scorer: Scorer, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """The new tokens (rows, blocks * C), and how many real ones and steps (rows,) there are of each row."""
    rows, device = len(scorer.ids), scorer.ids.device
    over = torch.zeros(rows, dtype=torch.bool, device=device)
    counts, passes = (torch.zeros(rows, dtype=torch.int, device=device) for _ in range(2))
    written = []
    for number in range(plan.blocks):
        block = denoise(scorer, plan, over, passes, (plan.blocks - 1 - number) * plan.length)
        before = over
        real, ended = cut(block, plan.ends)
        real &= ~before[:, None]
        block = block.masked_fill(~real, plan.pad)
        counts += real.sum(-1)
        scorer.extend(block)
        over = over | ended
        if plan.criteria:
            over = over | plan.criteria(scorer.ids, None, new_token_length=plan.length)
        written.append(block)
        if plan.streamer is not None:
            plan.streamer.put(block.cpu())
            if hasattr(plan.streamer, "end_row"):
                for row in (over & ~before).nonzero()[:, 0].tolist():
                    plan.streamer.end_row(row)
        if bool(over.all()):
            break
    return torch.cat(written, 1), counts, passes


def denoise(scorer: Scorer, plan: Plan, over: Tensor, passes: Tensor, ahead: int) -> Tensor:
    """One block (rows, C): what the canvas says when it is done, or after all steps; adds to `passes`."""
    sampler, settled, rows = plan.sampler, plan.settled, len(over)
    sampler.chance.going = ~over
    canvas = sampler.initialize_canvas(rows, over.device)
    canvas = plan.begin.pop("decoder_input_ids", canvas)
    before: Any = plan.begin.pop("self_conditioning_logits", None)
    done, best = over.clone(), canvas
    if settled is not None:
        settled.reset()
    for left in range(plan.steps, 0, -1):
        passes += ~done
        scores = scorer(canvas, before, ahead)
        scores = plan.processors(scorer.ids, scores, cur_step=left)
        drawn = sampler.draw(scores)
        kept = sampler.accept_canvas(canvas, drawn, scores, left)
        noisy, says = sampler.renoise_canvas(kept, left), sampler.text(kept, sampler.best(scores))
        if before is not None and bool(done.any()):  # rows that are done stay as they are
            scores = torch.where(done[:, None, None], before.to(scores), scores)
        canvas, best = (torch.where(done[:, None], old, new) for old, new in ((canvas, noisy), (best, says)))
        if settled is not None:
            done = done | settled(best, scores)
        known = sampler.known(canvas)
        done = done if known is None else done | known
        sampler.chance.going = ~done
        before = scores.to(scorer.model.dtype) if plan.conditioned else None
        if hasattr(plan.streamer, "put_draft"):
            draft = {"logits": scores} if getattr(plan.streamer, "_takes_logits", False) else {"value": best}
            plan.streamer.put_draft(**{name: value.cpu() for name, value in draft.items()})
        if bool(done.all()):
            break
    return best


def cut(block: Tensor, ends: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which tokens of a block (rows, C) stand before or at the first end token, and which rows have one."""
    if ends is None:
        return torch.ones_like(block, dtype=torch.bool), torch.zeros_like(block[:, 0], dtype=torch.bool)
    found = torch.isin(block, ends)
    return (found.cumsum(-1) - found.long()) == 0, found.any(-1)
