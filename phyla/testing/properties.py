"""What must hold for every model whatever its family; each check raises AssertionError with the figures.

They take a loaded float32 model in eval mode. Token ids are drawn so that no padding or end token is among
them.
"""

from typing import Any

import torch
from torch import Tensor

from phyla.model import PreTrainedModel

TOLERANCE = 2e-4


def random_ids(model: PreTrainedModel, batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids (batch, length) without the special ones of the configuration."""
    config = model.config.get_text_config()
    special = set()
    for key in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id", "sep_token_id"):
        value = getattr(config, key, None)
        special |= set(value if isinstance(value, list) else [value])
    allowed = [i for i in range(min(config.vocab_size, 99)) if i not in special]
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(allowed)[torch.randint(len(allowed), (batch, length), generator=generator)]


def states(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """The first output by token: scores or states (B, S, ...)."""
    if "use_cache" in model.forward.__annotations__:
        inputs["use_cache"] = False
    out = model(**inputs)
    return out["logits"] if "logits" in out else out["last_hidden_state"]


def assert_close(found: Tensor, wanted: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Equal within `tolerance` times the largest value."""
    if found.shape == wanted.shape and wanted.isinf().any():
        # Scores of what cannot be chosen are endless on both sides; what they share is left out.
        both = found == wanted
        found, wanted = found.masked_fill(both, 0.0), wanted.masked_fill(both, 0.0)
    scale = max(1.0, wanted.abs().max().item())
    error = (found - wanted).abs().max().item()
    if found.shape != wanted.shape or not error <= tolerance * scale:
        raise AssertionError(f"{what}: largest difference {error:.2e}, values up to {scale:.2g}")


def text_inputs(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
    """Call arguments for token ids; an encoder-decoder gets them on both sides."""
    inputs: dict[str, Any] = {"input_ids": ids}
    if mask is not None:
        inputs["attention_mask"] = mask
    if model.is_encoder_decoder:
        inputs["decoder_input_ids"] = random_ids(model, len(ids), 5, seed=9)
    return inputs


def padding_does_not_matter(model: PreTrainedModel) -> None:
    """Padding on either side or both, in any amount, leaves the real tokens' outputs as they are."""
    length = 7
    ids = random_ids(model, 2, length)
    wanted = states(model, **text_inputs(model, ids))
    filler = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    for left, right in ((3, 0), (0, 4), (1, 2)):
        padded = torch.full((2, left + length + right), filler)
        padded[:, left : left + length] = ids
        mask = torch.zeros_like(padded)
        mask[:, left : left + length] = 1
        found = states(model, **text_inputs(model, padded, mask))
        if not model.is_encoder_decoder:
            found = found[:, left : left + length]
        assert_close(found, wanted, f"{left} padding tokens on the left and {right} on the right")


def batch_equals_singles(model: PreTrainedModel) -> None:
    """A row's output does not depend on its neighbours, also when they are shorter."""
    ids = random_ids(model, 3, 8)
    mask = torch.ones_like(ids)
    for row, missing in enumerate((0, 3, 5)):
        if missing:
            mask[row, -missing:] = 0
    together = states(model, **text_inputs(model, ids, mask))
    for row in range(3):
        real = int(mask[row].sum())
        inputs = text_inputs(model, ids, mask)
        alone = {k: v[row : row + 1] for k, v in inputs.items()}
        alone["input_ids"], alone["attention_mask"] = alone["input_ids"][:, :real], None
        found = states(model, **alone)
        kept = together[row : row + 1] if model.is_encoder_decoder else together[row : row + 1, :real]
        assert_close(kept, found, f"row {row} of a batch")


def step_inputs(model: PreTrainedModel, ids: Tensor, memory: Any) -> dict[str, Any]:
    """Arguments of one decoding call."""
    if memory is None:
        return {"input_ids": ids}
    return {"decoder_input_ids": ids, "encoder_outputs": memory}


def cached_equals_uncached(model: PreTrainedModel, chunks: tuple[int, ...]) -> None:
    """Feeding a text in chunks through the cache gives the outputs of one pass; chunks of 1 are decoding."""
    total = sum(chunks)
    ids = random_ids(model, 2, total, seed=3)
    memory = model.encode(input_ids=random_ids(model, 2, 6)) if model.is_encoder_decoder else None
    wanted = states(model, **step_inputs(model, ids, memory))
    for room in (total, 2):
        cache = model.new_cache(2, room)
        found, at = [], 0
        for size in chunks:
            piece = ids[:, at : at + size]
            out = model(**step_inputs(model, piece, memory), past_key_values=cache, use_cache=True)
            found.append(out["logits"] if "logits" in out else out["last_hidden_state"])
            at += size
        if cache is None or cache.length != total:
            raise AssertionError(f"the cache counts {cache and cache.length} positions after {total}")
        assert_close(torch.cat(found, 1), wanted, f"chunks {chunks} with room for {room}")


def gradients_reach_all(
    model: PreTrainedModel, inputs: dict[str, Any], unreached: tuple[str, ...] = ()
) -> None:
    """Every parameter gets a gradient that is finite and not all zero.

    unreached: parts of the names of those that cannot get one.
    """
    model.zero_grad()
    out = model(**inputs)
    loss = torch.zeros(())
    values = [v for value in out.to_tuple() for v in (value if isinstance(value, tuple) else (value,))]
    for value in values:
        if isinstance(value, Tensor) and value.requires_grad:
            weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
            loss = loss + (value * weights).sum()
    loss.backward()
    missing = [
        name
        for name, p in model.named_parameters()
        if (p.grad is None or not p.grad.isfinite().all() or not p.grad.abs().sum())
        and not any(part in name for part in unreached)
    ]
    model.zero_grad()
    if missing:
        raise AssertionError(f"no gradient in {len(missing)} parameters: {missing[:6]}")


def open_equals_fused(model: PreTrainedModel, inputs: dict[str, Any]) -> None:
    """Attention step by step (which can give its weights) equals the fused call."""
    torch.manual_seed(0)
    fused = model(**inputs)
    model.implementation = "eager"
    try:
        torch.manual_seed(0)
        stepwise = model(**inputs)
    finally:
        model.implementation = "sdpa"
    for name in fused:
        if isinstance(fused[name], Tensor) and fused[name].is_floating_point():
            assert_close(stepwise[name], fused[name], name)


def low_precision_is_close(model: PreTrainedModel, inputs: dict[str, Any], bound: float = 0.08) -> None:
    """bfloat16 gives finite outputs within `bound` of float32, relative to the size of the outputs."""
    wanted = model(**inputs)
    model.bfloat16()
    try:
        cast = {
            k: v.bfloat16() if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in inputs.items()
        }
        found = model(**cast)
    finally:
        model.float()
    for name in wanted:
        if isinstance(wanted[name], Tensor) and wanted[name].is_floating_point() and wanted[name].dim() > 1:
            finite = wanted[name].isfinite()
            gap = (found[name].float() - wanted[name])[finite]
            error = gap.norm() / wanted[name][finite].norm().clamp(min=1e-6)
            if not error <= bound:
                raise AssertionError(f"{name} in bfloat16 departs by {error:.3f}, bound {bound}")
