"""Token healing: the last token of a prompt is chosen anew among those that begin with its text."""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import GenerationError
from phyla.generation.config import GenerationConfig

_FAVOUR = 10.0  # what tokens that continue the last one's text gain; the token itself one more


def heal_tokens(model: nn.Module, input_ids: Tensor, tokenizer: Any = None) -> Tensor:
    """Prompts (rows, length) read anew from their text, each with its last token replaced by the likeliest
    token
    that begins with it.
    """
    if tokenizer is None:
        raise GenerationError("token_healing needs the model's tokenizer: pass tokenizer=... to generate")
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    if bos is None or pad is None:
        raise GenerationError(
            "token_healing needs a tokenizer with bos and pad tokens, but "
            f"{'bos' if bos is None else 'pad'}_token is not set"
        )
    texts = [text.strip() for text in tokenizer.batch_decode(input_ids, skip_special_tokens=True)]
    ids = tokenizer(texts, return_tensors="pt", padding=True)["input_ids"].to(input_ids.device)
    # the beginning of the text shall not bias the choice
    ids = torch.where(ids == bos, pad, ids)
    if ids.numel() == 0:
        return ids
    words = tokenizer.get_vocab()
    space = tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(" "))[0]
    for row in ids:
        if bool((row == pad).all()):
            continue
        last = int(row[-1])
        tail = tokenizer.decode(last).replace(" ", space)
        bias = {(i,): _FAVOUR for word, i in words.items() if word.startswith(tail)}
        if len(bias) <= 1 or len(row) < 2:
            continue
        bias[(last,)] = bias.get((last,), 0.0) + 1.0
        text = row[:-1].clone()
        if int((row != pad).sum()) == 1:
            text[-1] = bos
        config = GenerationConfig(max_new_tokens=1, pad_token_id=pad, sequence_bias=bias)
        generate: Any = model.generate
        row.copy_(generate(text[None], generation_config=config)[0])
    return ids


def healed_inputs(
    model: nn.Module, inputs: Any, named: dict[str, Any], tokenizer: Any
) -> tuple[Any, dict[str, Any]]:
    """The call's prompt with its tokens healed, and the mask that goes with it."""
    ids = named.get("input_ids") if inputs is None else inputs
    if not isinstance(ids, Tensor) or named.get("inputs_embeds") is not None:
        raise GenerationError("token_healing needs a prompt of token ids")
    healed = heal_tokens(model, ids, tokenizer)
    named = {k: v for k, v in named.items() if k not in ("input_ids", "attention_mask")}
    pad = getattr(tokenizer, "pad_token_id", None)
    return healed, {**named, "attention_mask": healed.ne(-1 if pad is None else pad).long()}
