"""`generate(..., batch_invariant=True)`: each row by itself through the engine, whatever stands beside it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.config import GenerationConfig
from phyla.generation.engine.engine import Engine
from phyla.generation.engine.request import Row
from phyla.generation.logits import NEVER
from phyla.generation.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)
from phyla.generation.plan import merge_config, pad_token
from phyla.generation.prompt import _mask, main_input

_PAGE = 32
# a value for each row of the prompt, where it is a list
_LISTS = ("grammar", "row_settings", "adapter_names")


def generate_alike(
    model: nn.Module, inputs: Any = None, generation_config: GenerationConfig | None = None, *,
    use_model_defaults: bool | None = None, seed: Any = None, streamer: Any = None,
    prefix_allowed_tokens_fn: Any = None, synced_gpus: Any = None, **named: Any,
) -> Any:  # fmt: skip
    """As `generate`, where a row's bits depend on nothing but the row (docs/generation.md says for what).

    Raises GenerationError for what the engine does not have, and for a streamer.
    """
    if streamer is not None:
        raise GenerationError(
            "batch_invariant=True goes without a streamer: use phyla.Engine, and its stream"
        )
    config = merge_config(model, generation_config, use_model_defaults)
    config.update(**{n: v for n, v in named.items() if config.knows(n)})
    if config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states):
        raise GenerationError("batch_invariant=True gives no attentions and hidden states")
    main = main_input(model)
    named = {n: v for n, v in named.items() if v is not None}
    if inputs is not None:
        named[main] = inputs
    rows = _rows(named, main, config)
    each = 1 if (config.num_beams or 1) > 1 else config.num_return_sequences or 1
    seeds = _seeds(seed, rows, each)
    keep = bool(config.return_dict_in_generate) and bool(config.output_scores or config.output_logits)
    found: list[Row] = []
    engine = Engine(model, page_size=_PAGE, max_requests=min(64, max(rows * each, 1)))
    with engine:
        handles = []
        for row in range(rows):
            own = _of_row(named, row, rows)
            settings = own.pop("row_settings", None) or {}
            if prefix_allowed_tokens_fn is not None:
                own["prefix_allowed_tokens_fn"] = _for_row(prefix_allowed_tokens_fn, row)
            if each > 1:
                own["num_return_sequences"] = 1
            for number in range(each):
                asked = {**own, **settings, "seed": seeds[row * each + number]}
                handle = engine.submit(
                    generation_config=generation_config, use_model_defaults=use_model_defaults,
                    **{"prompt" if n == main else n: v for n, v in asked.items()},
                )  # fmt: skip
                handle.keep = keep
                handles.append(handle)
        for handle in handles:
            handle.result()
            found += handle.rows
    return _output(model, config, named.get(main), found, keep)


def _rows(named: dict[str, Any], main: str, config: GenerationConfig) -> int:
    """How many rows there are; ids become a tensor, and get a mask where padding can be told from them."""
    ids = named.get(main)
    if ids is not None and not isinstance(ids, Tensor):
        ids = named[main] = torch.as_tensor(ids)
    if ids is not None and main == "input_ids" and ids.dim() == 2 and named.get("attention_mask") is None:
        mask = _mask(None, ids, ids.shape[1], config, "attention_mask", ids.device)
        if mask is not None:
            named["attention_mask"] = mask
    tensors = [ids, *named.values()]
    return next((len(t) for t in tensors if isinstance(t, Tensor) and t.dim()), 1)


def _of_row(named: dict[str, Any], row: int, rows: int) -> dict[str, Any]:
    own = {}
    for name, value in named.items():
        if isinstance(value, Tensor) and value.dim() and len(value) == rows:
            own[name] = value[row : row + 1]
        elif name in _LISTS and isinstance(value, list | tuple):
            if len(value) != rows:
                raise ArgumentError(
                    f"{name} must have an entry for each of {rows} rows, but has {len(value)}"
                )
            own[name] = value[row]
        else:
            own[name] = value
    return own


def _for_row(allowed: Any, row: int) -> Any:
    return lambda _, ids: allowed(row, ids)


def _seeds(seed: Any, rows: int, each: int) -> list[int | None]:
    """A seed for each sequence: those given, or numbers from the one given on."""
    count = rows * each
    if seed is None:
        return [None] * count
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) not in (count, rows):
            raise ArgumentError(
                f"seed must be one number, or one for each of {count} rows, but has {len(seed)}"
            )
        return list(seed) if len(seed) == count else [s for s in seed for _ in range(each)]
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ArgumentError(f"seed must be an integer or a list of integers, but is {seed!r}")
    return [seed + i for i in range(count)]


def _output(model: Any, config: GenerationConfig, given: Any, found: list[Row], keep: bool) -> Any:
    device, pad = model.device, pad_token(config)
    length = max((len(row.tokens) for row in found), default=0)
    new = torch.tensor([row.tokens + [pad] * (length - len(row.tokens)) for row in found], dtype=torch.long)
    encoder = bool(getattr(model.config, "is_encoder_decoder", False))
    if encoder or given is None:
        begin = torch.tensor([row.handle.prompt for row in found], dtype=torch.long)
    else:
        begin = given.repeat_interleave(len(found) // len(given), dim=0).cpu()
    sequences = torch.cat([begin.reshape(len(found), -1), new.reshape(len(found), length)], 1).to(device)
    if not config.return_dict_in_generate:
        return sequences
    if (config.num_beams or 1) > 1:
        kind: type = GenerateBeamEncoderDecoderOutput if encoder else GenerateBeamDecoderOnlyOutput
        scores = torch.tensor([row.score for row in found], device=device)
        return kind(sequences=sequences, sequences_scores=scores)
    fields: dict[str, Any] = {}
    if keep:
        wanted = {"logits": config.output_logits, "scores": config.output_scores}
        for place, (name, asked) in enumerate(wanted.items()):
            if asked:
                fields[name] = tuple(_step(found, step, place, pad) for step in range(length))
    kind = GenerateEncoderDecoderOutput if encoder else GenerateDecoderOnlyOutput
    return kind(sequences=sequences, **fields)


def _step(found: list[Row], step: int, place: int, pad: int) -> Tensor:
    """One step's scores (rows, vocabulary); of a row that is over only padding may follow."""
    like = next(row.kept[step][place] for row in found if step < len(row.kept))
    over = torch.full_like(like, NEVER)
    if 0 <= pad < len(over):
        over[pad] = 0.0
    return torch.stack([row.kept[step][place] if step < len(row.kept) else over for row in found])
