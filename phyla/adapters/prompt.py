"""Prompt tuning: learned vectors in front of the embedded tokens (Lester et al. 2021, arXiv:2104.08691)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.config import ARCHITECTURES, AdapterConfig, known
from phyla.adapters.dialect import MASKLESS, NO_PROMPTS
from phyla.adapters.interpret import Facts, Flow, Method, run
from phyla.adapters.invertible import width_of
from phyla.adapters.places import Place, Survey
from phyla.blocks.cache import Cache
from phyla.blocks.context import SLOTS, Context
from phyla.blocks.mask import Causal
from phyla.errors import AdapterError
from phyla.heads.loss import IGNORED


@known("prompt_tuning")
@dataclass
class PromptTuningConfig(AdapterConfig):
    """prompt_length vectors before all tokens, or behind the first (combine="prefix_after_bos").

    prompt_init: "random_uniform", or "from_string": the vectors of the tokens of prompt_init_text.
    """

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


@dataclass(frozen=True)
class MemoryPlace(Place):
    """The embedding of a decoder that attends to an encoder with prompts."""

    encoder: Any = None


class Prompt(nn.Module):
    """The vectors (P, D)."""

    def __init__(self, config: PromptTuningConfig, width: int) -> None:
        super().__init__()
        if config.combine not in ("prefix", "prefix_after_bos"):
            raise AdapterError(f"combine must be prefix or prefix_after_bos, but is {config.combine!r}")
        self.skip = 1 if config.combine == "prefix_after_bos" else 0
        self.maskless = self.numbered = False
        self.prompt_embedding = nn.Embedding(config.prompt_length, width)
        scale = config.random_uniform_scale
        nn.init.uniform_(self.prompt_embedding.weight, -scale, scale)

    @torch.no_grad()
    def start_from(self, ids: list[int], table: Tensor) -> None:
        """Begin with the vectors of these tokens, repeated or cut to the prompt's length."""
        count = self.prompt_embedding.num_embeddings
        chosen = (ids * (count // len(ids) + 1))[:count]
        self.prompt_embedding.weight.copy_(table[torch.tensor(chosen, device=table.device)])

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by public name."""
        return self.state_dict()

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by public name."""
        self.load_state_dict(tensors)


def attach(config: PromptTuningConfig, places: Survey, entry: Any) -> Iterator[tuple[Place, nn.Module]]:
    """The part of one adapter with its place; an encoder's prompts are known to the decoder that reads it."""
    for kind in dict.fromkeys((places.config.model_type, *(layer.model_type for layer in places.layers))):
        if kind in NO_PROMPTS:
            raise AdapterError(f"{kind} takes no prompts: {NO_PROMPTS[kind]}")
    embed, decoder = _embedding(places)
    lift = getattr(embed.module, "lift", None)
    made = Prompt(config, width_of(embed, places) if lift is None else lift.in_features)
    masks = (getattr(layer.attn.module, "mask", None) for layer in places.layers if layer.attn is not None)
    # What a layer computes from slots must know that padding on the left stands between prompts and tokens.
    made.numbered = bool(made.skip) or not all(isinstance(mask, Causal) for mask in masks)
    made.maskless = any(layer.model_type in MASKLESS for layer in places.layers)
    if config.prompt_init == "from_string":
        if not entry.reading:
            table = getattr(embed.module, "tokens", embed.module)
            made.start_from(_tokens(config.prompt_init_text, places), table.weight)
    elif config.prompt_init != "random_uniform":
        raise AdapterError(
            f"prompt_init must be random_uniform or from_string, but is {config.prompt_init!r}"
        )
    yield embed, made
    if decoder is not None:
        yield MemoryPlace(**{**vars(decoder), "kind": "memory"}, encoder=embed), made


def _embedding(places: Survey) -> tuple[Place, Place | None]:
    """The embedding that prompts stand behind, and that of the decoder which attends to its states."""
    decoders = {layer.tower for layer in places.layers if layer.cross is not None}
    reading = [p for p in places.embeds if p.tower in decoders]
    encoding = [p for p in places.embeds if p.tower not in decoders]
    if places.with_cross and len(reading) == len(encoding) == 1 and hasattr(encoding[0].module, "tokens"):
        return encoding[0], reading[0]
    tokens = [p for p in places.embeds if hasattr(p.module, "tokens")]
    if not places.with_cross and len(tokens) == 1:
        return tokens[0], None  # images have a tower of their own
    encoders = [layer for layer in places.layers if layer.tower not in decoders]
    if len(places.embeds) != 1 or (decoders and (encoders or not reading)):
        raise AdapterError(
            "prompt tuning needs a model with one embedding, or an encoder and a decoder of tokens, but this "
            f"one has {[p.path for p in places.embeds] or 'none'}"
        )
    return places.embeds[0], None


def _tokens(text: str | None, places: Survey) -> list[int]:
    """The ids of a text by the tokenizer of the checkpoint that the model is of."""
    from phyla.preprocessing.text.auto import AutoTokenizer

    if not text:
        raise AdapterError('prompt_init="from_string" needs prompt_init_text')
    config = places.config
    source = getattr(config, "tokenizer_name_or_path", None) or getattr(config, "_name_or_path", None)
    if not source:
        raise AdapterError(
            'prompt_init="from_string" needs the tokenizer of the model: set '
            "model.config.tokenizer_name_or_path to its folder or name"
        )
    return list(AutoTokenizer.from_pretrained(source)(text)["input_ids"])


class PromptSite(nn.Module, Method):
    """The site of an embedding while prompts are active: (x, ctx) -> longer x; ctx is made to fit.

    Prompts take the first positions of a row and its tokens those behind, also in calls with a cache that
    holds prompts already.
    """

    def __init__(self, setup: Any, parts: dict[str, list[Prompt]], facts: Facts, lift: Any = None) -> None:
        super().__init__()
        self.setup, self.parts, self.facts = setup, parts, facts
        self.idle = False  # whether the running call of a model from outside has its prompts already
        self.lift = [lift]  # in a list, so that it is no part of the site
        self.ragged = False  # whether rows of the running call have prompts of several lengths
        skips = {p.skip for found in parts.values() for p in found}
        if len(skips) > 1:
            raise AdapterError("prompts side by side must stand in one place, but have several")
        self.skip = skips.pop()
        self.maskless = any(p.maskless for found in parts.values() for p in found)
        self.numbered = any(p.numbered for found in parts.values() for p in found)
        self.count = max(p.prompt_embedding.num_embeddings for found in parts.values() for p in found)

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        if self.idle:
            return x
        if ctx is not None and ctx.start:
            self._move(ctx)
            return x
        self.ragged = False
        prompts, real = run(self.setup, (None, None), (x,), self, self.facts)
        if prompts is None or real is None:
            return x
        if self.ragged and (ctx is None or self.maskless):
            raise AdapterError("prompts of several lengths need a mask, but this model knows of none")
        if self.lift[0] is not None:
            prompts = self.lift[0](prompts)
        if ctx is not None:
            self._lengthen(ctx, real)
        return torch.cat([x[:, : self.skip], prompts.to(x.dtype), x[:, self.skip :]], 1)

    def real(self, like: Tensor) -> Tensor | None:
        """(B, P): which prompt vectors of rows as those of `like` (B, S, D) count; None without prompts."""
        self.ragged = False
        return run(self.setup, (None, None), (like[:, :0],), self, self.facts)[1]

    def _lengthen(self, ctx: Context, real: Tensor) -> None:
        """Make mask and positions fit the longer rows; real (B, P): which prompt vectors count."""
        skip, (batch, added) = self.skip, real.shape
        mask = ctx.attention_mask
        if mask is not None and mask.dim() != 2:
            raise AdapterError("prompt tuning needs a mask of (batch, positions)")
        slots = None
        if mask is not None or not isinstance(self.setup, str):
            mask = real.new_ones(batch, ctx.length) if mask is None else mask
            if self.numbered:
                slots = _slots(mask, real, skip)
            ctx.attention_mask = torch.cat([mask[:, :skip], real, mask[:, skip:]], 1)
        own = real.long().cumsum(1) - 1
        at, more = ctx.positions, real.sum(1, keepdim=True)
        if slots is not None and skip:
            more = more * (slots[:, skip + added :] >= slots[:, skip : skip + 1])  # tokens behind the prompts
        ahead = at.shape[:-2]  # positions of images have several axes
        front = at[..., :skip].expand(*ahead, batch, -1)
        prompts = own.clamp(min=0) + (front[..., -1:] + 1 if skip else 0)
        behind = (at[..., skip:] + more).expand(*ahead, batch, -1)
        ctx.positions = torch.cat([front, prompts.expand(*ahead, batch, -1), behind], -1)
        ctx.widen(skip, added)
        ctx.length += added
        if ctx.cache is not None:
            ctx.cache.prompts = real
        ctx.memo.clear()
        if slots is not None:
            ctx.memo[SLOTS] = slots

    def _move(self, ctx: Context) -> None:
        """Make positions count the prompts that the cache holds; the mask does already."""
        real = prompts_in(ctx.cache, ctx.cache.batch)
        if real is not None:
            ctx.positions = ctx.positions + real.sum(1, keepdim=True)
            ctx.memo.clear()

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        x = fixed[0]
        assert x is not None
        for part in self.parts.get(name, ()):
            made = part.prompt_embedding.weight.to(x.device).expand(x.shape[0], -1, -1)
            flow = (made, torch.ones(made.shape[:2], dtype=torch.bool, device=x.device))
        return flow

    def level(self, flows: list[Flow], flow: Flow, fixed: Flow) -> list[Flow]:
        return self.level_rows(flows, [(flow, fixed)] * len(flows))

    def level_rows(self, flows: list[Flow], parts: list[tuple[Flow, Flow]]) -> list[Flow]:
        made: list[Flow] = []
        self.ragged = self.ragged or len({0 if f[0] is None else f[0].shape[1] for f in flows}) > 1
        longest = max((f[0].shape[1] for f in flows if f[0] is not None), default=0)
        for (prompts, real), (_, fixed) in zip(flows, parts, strict=True):
            x = fixed[0]
            assert x is not None
            if prompts is None or real is None:
                width = x.shape[-1] if self.lift[0] is None else self.lift[0].in_features
                prompts, real = (
                    x.new_zeros(x.shape[0], 0, width),
                    x.new_zeros(x.shape[0], 0, dtype=torch.bool),
                )
            short = longest - prompts.shape[1]
            made.append((F.pad(prompts, (0, 0, short, 0)), F.pad(real, (short, 0))))
        return made


def _slots(mask: Tensor, real: Tensor, skip: int) -> Tensor:
    """(B, S) where in its row each slot counts: prompts ahead of the tokens, behind padding on the left."""
    lead = mask.int().argmax(-1, keepdim=True) + skip
    own = torch.arange(mask.shape[1], device=mask.device)[None]
    own = own + real.sum(1, keepdim=True) * (own >= lead)
    prompts = lead + (real.long().cumsum(1) - 1).clamp(min=0)
    return torch.cat([own[:, :skip], prompts, own[:, skip:]], 1)


class MemorySite(nn.Module):
    """The site of a decoder's embedding while its encoder has prompts: cross-attention may see them."""

    def __init__(self, encoder: Place) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        prompts = self.encoder.held()
        if ctx is None or ctx.memory is None or not isinstance(prompts, PromptSite):
            return x
        mask, real, skip = ctx.memory_mask, prompts.real(ctx.memory), prompts.skip
        if real is None:
            return x
        rows, count = ctx.memory.shape[0], ctx.memory.shape[1] - real.shape[1]
        if mask is None and prompts.ragged:
            mask = real.new_ones(rows, count)
        if mask is not None and mask.dim() == 2 and mask.shape[1] == count:
            real = real.to(mask.device, mask.dtype)
            ctx.memory_mask = torch.cat([mask[:, :skip], real, mask[:, skip:]], 1)
        return x


def prompts_in(cache: Any, rows: int) -> Tensor | None:
    """(rows, P): which prompt vectors in front of a cache's rows count; None where it holds no prompts."""
    real = getattr(cache, "prompts", None)
    return None if real is None else real.repeat_interleave(rows // len(real), 0)


def fit_call(site: PromptSite, named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, fit for prompts: those in the cache count in the mask, not in positions."""
    mask, ids = named.get("attention_mask"), named.get("input_ids", named.get("inputs_embeds"))
    cache = named.get("past_key_values")
    cached = cache.length if isinstance(cache, Cache) else 0
    if ids is None or (mask is not None and mask.dim() != 2):
        return named
    length, count = ids.shape[1], site.count
    if not cached:
        if mask is not None and mask.shape[1] == length + count:
            named = {**named, "attention_mask": mask[:, count:]}  # generation made room for the prompts
        return named
    real = prompts_in(cache, ids.shape[0])
    if real is None:
        return named
    if mask is None:
        mask = torch.ones(ids.shape[0], cached + length, dtype=torch.long, device=ids.device)
    elif mask.shape[1] == cached + length - real.shape[1]:
        mask = torch.cat([mask.new_ones(real.shape), mask], 1)
    bare = mask[:, real.shape[1] :]
    if named.get("position_ids") is None:
        slots = torch.arange(bare.shape[1] - length, bare.shape[1], device=ids.device)[None]
        lead = bare.int().argmax(-1, keepdim=True)  # padding in front of each row
        named = {**named, "position_ids": (slots - lead).clamp(min=0)}
    skip, front = site.skip, real.to(mask.dtype)
    whole = torch.cat([bare[:, :skip], front, bare[:, skip:]], 1)
    return {**named, "attention_mask": whole}


def fit_outer(
    embed: nn.Module, takes_vectors: bool
) -> Callable[[PromptSite, dict[str, Any]], dict[str, Any]]:
    """`fit_call` for models from outside, whose arguments are known by their public names alone.

    embed: what gives the vectors: a table, or a module that adds positions and types of tokens itself.
    """
    table = isinstance(embed, nn.Embedding)

    def fit(site: PromptSite, named: dict[str, Any]) -> dict[str, Any]:
        ids, vectors = named.get("input_ids"), named.get("inputs_embeds")
        past: Any = named.get("past_key_values")
        given = vectors if ids is None else ids
        cached = past.get_seq_length() if hasattr(past, "get_seq_length") else 0
        site.idle = bool(cached)
        if given is None:
            return named
        made = dict(named)
        if not cached and (vectors is not None or (table and takes_vectors)):
            made["inputs_embeds"] = embed(ids) if vectors is None else site(vectors)
            made.pop("input_ids", None)
            site.idle = True
        length, front = given.shape[1], torch.arange(site.skip, site.skip + site.count, device=given.device)
        fills: dict[str, Any] = {"attention_mask": 1}
        if cached:
            made |= {
                n: named[n] + site.count
                for n in ("position_ids", "cache_position")
                if named.get(n) is not None
            }
        else:
            fills["labels"] = IGNORED
            if table or vectors is not None:
                fills |= {"position_ids": front, "cache_position": front, "token_type_ids": 0}
        for name, fill in fills.items():
            value = named.get(name)
            if isinstance(value, Tensor) and _of_tokens(name, value, len(given), length):
                shift = site.count if isinstance(fill, Tensor) else 0
                made[name] = _with_front(value, fill, site, shift)
        return made

    return fit


def _of_tokens(name: str, value: Tensor, rows: int, length: int) -> bool:
    """Whether an argument has a number for each token (a mask: and for those in the cache)."""
    if name == "attention_mask":
        return value.dim() == 2
    return value.shape[-1] == length and (name != "labels" or value.shape == (rows, length))


def _with_front(value: Tensor, fill: Any, site: PromptSite, shift: int) -> Tensor:
    """Values of tokens (..., S) with others where prompts stand, and those behind them moved on."""
    front = torch.as_tensor(fill, dtype=value.dtype, device=value.device).expand(
        *value.shape[:-1], site.count
    )
    return torch.cat([value[..., : site.skip], front, value[..., site.skip :] + shift], -1)


def fit_labels(site: PromptSite, named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with labels of tokens that leave the prompts' positions out.

    Positions of answers are those of the tokens, which stand behind the prompts.
    """
    spans = ("start_positions", "end_positions")
    if any(isinstance(named.get(n), Tensor) for n in spans):
        moved = {
            n: named[n] + site.count * (named[n] >= site.skip) for n in spans if named.get(n) is not None
        }
        named = {**named, **moved}
    labels, ids = named.get("labels"), named.get("input_ids", named.get("inputs_embeds"))
    if not isinstance(labels, Tensor) or ids is None or labels.shape != ids.shape[:2]:
        return named
    if labels.is_floating_point():  # several labels of a row, as many as it has tokens
        return named
    front = labels.new_full((len(labels), site.count), IGNORED)
    skip = site.skip
    return {**named, "labels": torch.cat([labels[:, :skip], front, labels[:, skip:]], 1)}
