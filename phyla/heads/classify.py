"""Heads that score labels, for a row or for each of its tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Linear, activation
from phyla.blocks.pool import first_token
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.loss import check_labels, cross_entropy, label_loss
from phyla.outputs import ModelOutput, SequenceClassifierOutput, TokenClassifierOutput


def dropout_of(config: Any, keys: tuple[str | float, ...]) -> float:
    """The first of these config keys that has a value, or 0; a number among them is itself."""
    for key in keys:
        value = getattr(config, key, None) if isinstance(key, str) else key
        if value is not None:
            return float(value)
    return 0.0


def last_token(call: Call, x: Tensor) -> Tensor:
    """Index (B) of each row's last real token: by pad_token_id, else by the mask, else the end of the row.

    x may have more positions than there are tokens: prompts, in front of them or behind the first.
    """
    length, device = x.shape[1], x.device
    padding = call.config.get_text_config().pad_token_id
    if call.input_ids is not None and padding is not None:
        real = call.input_ids.to(device) != padding
    elif call.attention_mask is not None and call.attention_mask.dim() == 2:
        real = call.attention_mask.to(device).bool()
    else:
        return torch.full((x.shape[0],), length - 1, device=device)
    order = torch.arange(real.shape[1], device=device)
    return (order * real).argmax(-1) + (length - real.shape[1])


class _Rows(HeadModule):
    """One vector a row -> labels."""

    def __init__(self, head: "Classify", config: Any, width: int) -> None:
        super().__init__()
        self.head = head
        self.dropout_prob = dropout_of(config, head.dropout)
        ahead = (head.dropout_first,) if isinstance(head.dropout_first, str) else head.dropout
        self.first_prob = dropout_of(config, ahead) if head.dropout_first else 0.0
        self.dense = Linear(width, width) if head.dense else None
        self.act = activation(getattr(config, head.dense, head.dense)) if head.dense else None
        self.out = Linear(width, config.num_labels, bias=head.bias)

    def pick(self, out: Any, call: Call) -> Tensor:
        """(B, D): the vector of each row that the labels are read from."""
        on, x = self.head.on, out.last_hidden_state
        if on == "pool":
            return out.pooler_output
        if on == "first":
            return first_token(x, call.attention_mask)
        rows = torch.arange(x.shape[0], device=x.device)
        if on == "last":
            return x[rows, last_token(call, x)]
        ends = call.input_ids == call.config.eos_token_id
        count = ends.sum(1)
        if not torch.compiler.is_compiling() and (count.min() != count.max() or not count.min()):
            raise ArgumentError(
                f"every row must hold the same number of end tokens ({call.config.eos_token_id}), "
                f"but they hold {count.tolist()}; end each text with the end token"
            )
        last = x.shape[1] - 1 - ends.flip(1).int().argmax(1)
        return x[rows, last]

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = self.pick(out, call)
        if self.dense is not None and self.act is not None:
            if self.first_prob and self.training:
                x = F.dropout(x, self.first_prob)
            x = self.act(self.dense(x))
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        logits = self.out(x)
        return {
            "loss": None if call.labels is None else self.head.loss(logits, call.labels, call.config),
            "logits": logits,
        }


@dataclass(frozen=True)
class Classify(Head):
    """Labels of a row: on "pool", the "first" token, the "last" real one or the last "end" token.

    dense: activation of a square layer in between, or the config key of one ("" for none). dropout: config
    keys, the first set one counts. dropout_first: whether it also stands before the dense layer, or the
    config key of the one there. loss: (logits, labels, config) -> loss.
    """

    task: ClassVar[str] = "sequence-classification"
    output: type[ModelOutput] = SequenceClassifierOutput
    on: str = "pool"
    dense: str = ""
    bias: bool = True
    dropout: tuple[str | float, ...] = ()
    dropout_first: bool | str = True
    loss: Callable[[Tensor, Tensor, Any], Tensor] = label_loss

    def make(self, config: Any, width: int) -> HeadModule:
        return _Rows(self, config, width)


class _Tokens(HeadModule):
    """Each token's vector -> labels."""

    def __init__(self, head: "TokenClassify", config: Any, width: int) -> None:
        super().__init__()
        self.dropout_prob = dropout_of(config, head.dropout)
        self.out = Linear(width, config.num_labels)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        if self.training and self.dropout_prob:
            x = F.dropout(x, self.dropout_prob)
        logits = self.out(x)
        loss = None
        if call.labels is not None:
            check_labels(logits.shape[:2], call.labels)
            loss = cross_entropy(logits, call.labels)
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class TokenClassify(Head):
    """Labels of every token."""

    task: ClassVar[str] = "token-classification"
    output: type[ModelOutput] = TokenClassifierOutput
    dropout: tuple[str | float, ...] = ()

    def make(self, config: Any, width: int) -> HeadModule:
        return _Tokens(self, config, width)
