"""From the arguments of `generate` to what the model is fed first: checked, aligned to the right, encoded."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.cache import Cache
from phyla.errors import ArgumentError, GenerationError, UnknownArgumentError, nearest
from phyla.generation.config import DEFAULTS, GenerationConfig
from phyla.generation.logits import id_list

# inputs that have one entry a position, and so move with the ids when a row is aligned to the right
_ALONG = ("token_type_ids", "mm_token_type_ids", "position_ids", "decoder_position_ids", "inputs_embeds")
# likewise, with the positions on their second axis; a new token sees there what the last one saw
ALONG_ROWS = ("cross_attention_mask",)
# inputs that hold for the whole call rather than for the prompt
_STEADY = ("head_mask", "decoder_head_mask", "cross_attn_head_mask", "adapter_names", "lang_ids")
_GENERIC = ("input_ids", "inputs_embeds", "attention_mask", "encoder_outputs", "decoder_input_ids",
            "decoder_attention_mask", "past_key_values", "labels")  # fmt: skip
# ids past the vocabulary that stand for an image, a frame, ... and never reach the embedding
_PLACEHOLDERS = (
    "image_token_index",
    "image_token_id",
    "video_token_index",
    "video_token_id",
    "audio_token_index",
    "audio_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)


@dataclass
class Prompt:
    """What generation starts from.

    given: ids (batch, length) as the caller gave them; they open the returned sequences. ids: the same with
    padding moved to the left. mask: (batch, positions), 1 at real positions, or None where all are.
    positions: how many the prompt takes in the cache (more than its ids when it is given as vectors). first,
    steady: model inputs of the first step and of every step. source_ids, source_mask: what the encoder_*
    processors look at.
    """

    given: Tensor
    ids: Tensor
    mask: Tensor | None
    positions: int
    first: dict[str, Any] = field(default_factory=dict)
    steady: dict[str, Any] = field(default_factory=dict)
    cache: Any = None
    source_ids: Tensor | None = None
    source_mask: Tensor | None = None

    @property
    def rows(self) -> int:
        """How many rows the model is fed at first."""
        return self.ids.shape[0]


def accepted(function: Any) -> frozenset[str] | None:
    """The argument names of a model's call, or None if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else frozenset(p.name for p in parameters)


def split_inputs(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` without those that are None; a name that neither model nor generation knows is an
    UnknownArgumentError.
    """
    inputs = {name: value for name, value in inputs.items() if value is not None and name != "labels"}
    known = accepted(model.forward)
    encode = getattr(model, "encode", None)
    encoder = accepted(encode) if encode is not None else frozenset()
    if known is not None and encoder is not None:
        known = known | encoder | {*_GENERIC, main_input(model)} - {"self", "inputs"}
        for name in inputs:
            if name not in known:
                raise UnknownArgumentError(
                    f"{name!r} is neither a setting of generate nor an input of {type(model).__name__}."
                    f"{nearest(name, [*DEFAULTS, *known])}"
                )
    return inputs


def main_input(model: nn.Module) -> str:
    """The name of the input that `generate` takes first: input_ids, pixel_values, ..."""
    return getattr(model, "main_input_name", None) or "input_ids"


def read_prompt(model: nn.Module, inputs: Any, named: dict[str, Any], config: GenerationConfig) -> Prompt:
    """The prompt of one call; `inputs` is the unnamed main input. Runs the encoder of an encoder-decoder."""
    main, named = main_input(model), dict(named)
    if isinstance(inputs, Mapping):
        raise ArgumentError(
            "inputs must be a tensor of token ids, but is a mapping; write generate(**inputs)"
        )
    if inputs is not None:
        if main in named:
            raise ArgumentError(f"give the prompt as inputs or as {main}, not as both")
        named[main] = inputs
    device = _device(model)
    named = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in named.items()}
    if getattr(model.config, "is_encoder_decoder", False):
        return _encoder_decoder(model, named, config, device)
    return _decoder_only(model, named, config, device)


def _decoder_only(
    model: nn.Module, named: dict[str, Any], config: GenerationConfig, device: torch.device
) -> Prompt:
    cache = _cache(named.pop("past_key_values", None))
    embeds = named.get("inputs_embeds")
    if embeds is not None and (embeds.ndim != 3 or embeds.shape[1] == 0):
        raise ArgumentError(
            f"inputs_embeds must have shape (batch, length, width), but has {tuple(embeds.shape)}"
        )
    ids = named.pop("input_ids", None)
    if ids is None and embeds is None:
        start = getattr(model, "start_prompt", None)  # models whose prompts begin with an image
        ids = _start_ids(named, config, device) if start is None else start(named)
    elif ids is None and embeds is not None:
        ids = torch.empty(len(embeds), 0, dtype=torch.long, device=device)
    ids = _checked_ids(ids, "input_ids", device, model, may_be_empty=embeds is not None)
    positions = ids.shape[1] if embeds is None else embeds.shape[1]
    mask = _mask(named.pop("attention_mask", None), ids, positions, config, "attention_mask", device)
    if cache is not None and not ids.shape[1] - cache.length > 0:
        raise ArgumentError(
            f"input_ids must hold the whole text so far, but has {ids.shape[1]} ids where the cache given as "
            f"past_key_values has {cache.length} already; add the new ids behind the old ones"
        )
    aligned, mask, named = _align(ids, mask, named, positions, fixed=cache is not None and cache.length > 0)
    steady = {name: named.pop(name) for name in _STEADY if name in named}
    lead = getattr(model, "prompt_lead", 0) if embeds is None else 0  # positions that the model puts in front
    if lead and mask is not None:
        mask = torch.cat((mask.new_ones(len(mask), lead), mask), 1)
    return Prompt(
        given=ids,
        ids=aligned,
        mask=mask,
        positions=positions + lead,
        first=named,
        steady=steady,
        cache=cache,
        source_ids=aligned if aligned.shape[1] else None,
        source_mask=mask if positions == ids.shape[1] else None,
    )


def _encoder_decoder(model: nn.Module, named: dict[str, Any], config: GenerationConfig,
                     device: torch.device) -> Prompt:  # fmt: skip
    main, cache = main_input(model), _cache(named.pop("past_key_values", None))
    decoder_ids = named.pop("decoder_input_ids", None)
    reads = accepted(getattr(model, "encode", model.forward)) or ()
    if decoder_ids is None and main != "input_ids" and "input_ids" not in reads:
        decoder_ids = named.pop("input_ids", None)
    decoder_mask = named.pop("decoder_attention_mask", None)
    first = {
        name: named.pop(name) for name in list(named) if name.startswith("decoder_") and name not in _STEADY
    }
    steady = {name: named.pop(name) for name in _STEADY if name in named}
    encoded = named.pop("encoder_outputs", None)
    source, mask = named.get(main), named.pop("attention_mask", None)
    if source is None and encoded is None and "inputs_embeds" not in named:
        source = _start_ids(named, config, device) if main == "input_ids" else None
        if source is None:
            raise ArgumentError(f"{main} must be given: it is the input of {type(model).__name__}")
    source_ids = None
    if source is not None and main == "input_ids":
        source_ids = named[main] = _checked_ids(source, "input_ids", device, model)
        mask = _mask(mask, source_ids, source_ids.shape[1], config, "attention_mask", device)
    elif mask is not None and mask.ndim == 2 and bool((mask != 0).all()):
        mask = None
    if encoded is None:
        encode: Any = model.encode
        takes = accepted(encode)
        given = {k: v for k, v in named.items() if takes is None or k in takes}
        extra = {
            "output_attentions": config.output_attentions,
            "output_hidden_states": config.output_hidden_states,
        }
        given |= {k: True for k, v in extra.items() if v and (takes is None or k in takes)}
        encoded = encode(**given, **({} if mask is None else {"attention_mask": mask}))
    elif isinstance(encoded, (tuple, list)):
        from phyla.outputs import BaseModelOutput

        encoded = BaseModelOutput(*encoded)
    steady |= {"encoder_outputs": encoded, "attention_mask": mask}
    rows = encoded.last_hidden_state.shape[0]
    ids, decoder_mask = _decoder_start(model, decoder_ids, decoder_mask, rows, config, device)
    given_mask = _mask(decoder_mask, ids, ids.shape[1], None, "decoder_attention_mask", device)
    aligned, given_mask, first = _align(ids, given_mask, first, ids.shape[1], fixed=cache is not None)
    return Prompt(
        given=ids,
        ids=aligned,
        mask=given_mask,
        positions=ids.shape[1],
        first=first,
        steady=steady,
        cache=cache,
        source_ids=source_ids,
        source_mask=None if source_ids is None else mask,
    )


def _cache(past: Any) -> Any:
    """The caller's cache; a tuple of each layer's keys and values becomes one."""
    if isinstance(past, tuple | list) and past and isinstance(past[0], tuple | list):
        return Cache.from_legacy_cache(past)
    if past is not None and not hasattr(past, "length"):
        raise ArgumentError(f"past_key_values must be a cache, but is a {type(past).__name__}")
    return past


def _start_ids(named: dict[str, Any], config: GenerationConfig, device: torch.device) -> Tensor:
    """One beginning-of-text token a row, for a prompt that has no ids."""
    if config.bos_token_id is None:
        raise ArgumentError(
            "input_ids must be given, since this model has no bos_token_id to begin a text with"
        )
    rows = next((v.shape[0] for v in named.values() if isinstance(v, Tensor) and v.ndim), 1)
    return torch.full((rows, 1), id_list(config.bos_token_id)[0], dtype=torch.long, device=device)


def _decoder_start(model: nn.Module, ids: Any, mask: Tensor | None, rows: int, config: GenerationConfig,
                   device: torch.device) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Decoder ids that begin with the start token, and their mask."""
    start = config.decoder_start_token_id
    if start is None:
        start = config.bos_token_id
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    if start is None and ids is None:
        raise GenerationError(
            "decoder_start_token_id or bos_token_id must be set for an encoder-decoder, but neither is: pass "
            "one to generate, or pass decoder_input_ids"
        )
    first: Any = None
    if start is not None:
        starts = id_list(start)
        if len(starts) not in (1, rows):
            raise GenerationError(f"decoder_start_token_id must be one id or {rows}, but has {len(starts)}")
        first = torch.tensor(starts, device=device).expand(rows).view(rows, 1)
    if ids is None:
        return first, mask
    ids = _checked_ids(ids, "decoder_input_ids", device, model)
    if len(ids) != rows:
        raise ArgumentError(f"decoder_input_ids must have a row for each of {rows}, but has {len(ids)}")
    free = getattr(model, "free_decoder_start", False)  # decoder prompts that begin as they like
    if first is None or free or bool((ids[:, :1] == first).any()):
        return ids, mask
    if mask is not None:
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    return torch.cat([first, ids], dim=1), mask


def _checked_ids(
    ids: Any, name: str, device: torch.device, model: nn.Module, may_be_empty: bool = False
) -> Tensor:
    """Token ids (batch, length) as int64 on `device`; raises ArgumentError for wrong shapes, dtypes and
    values.
    """
    if not isinstance(ids, Tensor):
        try:
            ids = torch.as_tensor(ids, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(
                f"{name} must be a tensor of token ids (batch, length), or rows of one length, but is a "
                f"{type(ids).__name__}: {error}"
            ) from None
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ArgumentError(
            f"{name} must hold integers, but its dtype is {str(ids.dtype).removeprefix('torch.')}"
        )
    if ids.ndim != 2:
        raise ArgumentError(f"{name} must have shape (batch, length), but has {tuple(ids.shape)}")
    if ids.shape[0] == 0 or (ids.shape[1] == 0 and not may_be_empty):
        raise ArgumentError(f"{name} must hold at least one token, but has shape {tuple(ids.shape)}")
    ids = ids.to(device=device, dtype=torch.long)
    size = source_vocabulary(model) if name == "input_ids" else vocabulary_size(model)
    if ids.numel():
        least, most = (int(x) for x in torch.aminmax(ids))
        if least < 0 or (size is not None and most >= size):
            _refuse_ids(ids, name, size, model.config)
    return ids


def _refuse_ids(ids: Tensor, name: str, size: int | None, config: Any) -> None:
    allowed = {getattr(config, key, None) for key in _PLACEHOLDERS}
    bad = (ids < 0) | (ids >= size if size is not None else False)
    for row, column in bad.nonzero().tolist():
        token = int(ids[row, column])
        if token not in allowed:
            limit = "at least 0" if size is None else f"0 to {size - 1} (the vocabulary has {size})"
            raise ArgumentError(f"{name} must be {limit}, but is {token} in row {row}, column {column}")


def source_vocabulary(model: nn.Module) -> int | None:
    """As `vocabulary_size`, for the ids of a prompt: an encoder may have words of its own."""
    words = getattr(model, "source_words", None)
    return vocabulary_size(model) if words is None else words


def vocabulary_size(model: nn.Module) -> int | None:
    """How many token ids the model's input embedding knows, or None if it cannot be told."""
    words = getattr(model, "target_words", None)
    if words is not None:
        return words
    get = getattr(model, "get_input_embeddings", lambda: None)
    table = get()
    known = getattr(table, "num_embeddings", None)
    if isinstance(known, int):
        return known
    weight = getattr(table, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        return weight.shape[0]
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(config, "vocab_size", None)
    return size if isinstance(size, int) else None


def _mask(mask: Any, ids: Tensor, positions: int, config: GenerationConfig | None, name: str,
          device: torch.device) -> Tensor | None:  # fmt: skip
    """A mask (batch, positions) of 0 and 1, or None where every position is real.

    Without one, padding is told from the ids, if the padding token is no end token and occurs (as the
    reference does).
    """
    if mask is None:
        if config is None or config.pad_token_id is None or ids.shape[1] != positions:
            return None
        ends = [] if config.eos_token_id is None else id_list(config.eos_token_id)
        if config.pad_token_id in ends:
            return None
        mask = ids != config.pad_token_id
    else:
        mask = torch.as_tensor(mask, device=device)
        if tuple(mask.shape) != (ids.shape[0], positions):
            what = "input_ids" if ids.shape[1] == positions else "inputs_embeds"
            raise ArgumentError(
                f"{name} must have the shape of {what}, {(ids.shape[0], positions)}, but has "
                f"{tuple(mask.shape)}"
            )
        if bool(((mask != 0) & (mask != 1)).any()):
            raise ArgumentError(f"{name} must hold 1 at real tokens and 0 at padding, but holds other values")
        mask = mask != 0
    if bool(mask.all()):
        return None
    # a row without any real token attends to its last position, so that nothing divides by zero
    empty = ~mask.any(1)
    mask[:, -1] |= empty
    return mask.long()


def _align(ids: Tensor, mask: Tensor | None, named: dict[str, Any], positions: int,
           fixed: bool) -> tuple[Tensor, Tensor | None, dict[str, Any]]:  # fmt: skip
    """Move padding behind a row's text to its front: new tokens must follow the text without a gap."""
    if mask is None:
        return ids, None, named
    shift = mask.flip(1).argmax(1)  # (batch,) zeros at the end of each row
    if not bool(shift.any()):
        return ids, mask, named
    if fixed:
        raise ArgumentError(
            "with a filled cache (past_key_values) padding must be on the left, but is on the right"
        )
    source = (torch.arange(positions, device=ids.device) - shift[:, None]) % positions  # (batch, positions)
    moved = dict(named)
    for name in _ALONG:
        value = named.get(name)
        if not isinstance(value, Tensor):
            continue
        if name == "inputs_embeds":
            moved[name] = value.gather(1, source[..., None].expand_as(value))
        elif value.shape[-1] == positions:  # position_ids may have axes before the batch
            moved[name] = value.gather(-1, source.expand(value.shape))
    for name in ALONG_ROWS:
        value = named.get(name)
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == positions:
            index = source.view(*source.shape, *(1,) * (value.ndim - 2))
            moved[name] = value.gather(1, index.expand_as(value))
    if ids.shape[1] == positions:
        ids = ids.gather(1, source)
    return ids, mask.gather(1, source), moved


def truncated(prompt: Prompt, side: str, config: GenerationConfig, context: int | None) -> Prompt:
    """The prompt without its oldest ids, so that the new tokens fit the context."""
    if side != "left":
        raise ArgumentError(f'truncate must be "left" or None, but is {side!r}')
    if (
        "encoder_outputs" in prompt.steady
        or prompt.positions != prompt.ids.shape[1]
        or "inputs_embeds" in prompt.first
    ):
        raise GenerationError("truncate='left' works for prompts of token ids of decoder-only models alone")
    new = config.max_new_tokens if config.max_new_tokens is not None else DEFAULTS["max_length"]
    if context is None or prompt.positions + new <= context:
        return prompt
    keep = context - new
    if keep < 1:
        raise GenerationError(
            f"max_new_tokens must be below the context of {context} positions, but is {new}"
        )
    mask = None if prompt.mask is None else prompt.mask[:, -keep:]
    ids = prompt.ids[:, -keep:]
    first = {
        k: v[:, -keep:] if k in ("token_type_ids", "position_ids") else v for k, v in prompt.first.items()
    }
    return replace(prompt, ids=ids, mask=mask, positions=keep, first=first, source_ids=ids, source_mask=mask)


def _device(model: nn.Module) -> torch.device:
    device = getattr(model, "device", None)
    return device if device is not None else next(model.parameters()).device
