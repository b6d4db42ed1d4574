"""Heads that score tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.blocks import LayerNorm, Linear, activation, make
from phyla.blocks.embed import Tokens
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.loss import balance_loss, check_labels, cross_entropy, next_token_loss
from phyla.outputs import (
    BertForPreTrainingOutput,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    ModelOutput,
    NextSentencePredictorOutput,
)


@dataclass(frozen=True)
class Transform:
    """dense, activation and norm between the states and the vocabulary; width defaults to the states'.

    bias, norm_bias: whether the dense layer and the norm have one.
    """

    act: str
    eps: float
    out: int | None = None
    bias: bool = True
    norm_bias: bool = True


class TokenScores(HeadModule):
    """states -> transform -> scores over the vocabulary, (B, S, D) -> (B, S, V)."""

    def __init__(self, head: "CausalLM", config: Any, width: int) -> None:
        super().__init__()
        self.head = head
        transform = head.transform(config) if head.transform is not None else None
        inner = width
        if transform is not None:
            inner = transform.out or width
            self.dense = Linear(width, inner, bias=transform.bias)
            self.act = activation(transform.act)
            self.norm = make(LayerNorm(inner, transform.eps, bias=transform.norm_bias))
        self.transforms = transform is not None
        size = head.vocabulary(config) if head.vocabulary is not None else config.vocab_size
        bias = getattr(config, head.bias) if isinstance(head.bias, str) else head.bias
        self.out = Linear(inner, size, bias=bool(bias))
        if head.offset:
            self.register_buffer("offset", torch.zeros(1, size))
        self.softcap = getattr(config, head.softcap) if head.softcap else None
        self.scale = head.scale(config) if head.scale is not None else None
        self.tied = head.tied(config) if callable(head.tied) else head.tied and config.tie_word_embeddings

    def tie(self, backbone: nn.Module) -> None:
        if self.tied:
            self.out.weight = token_table(backbone).weight

    def scores(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, V)."""
        if self.transforms:
            x = self.norm(self.act(self.dense(x)))
        if self.scale is not None:
            x = x * self.scale
        logits = self.out(x)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits + self.offset if self.head.offset else logits

    def kept(self, x: Tensor, call: Call) -> Tensor:
        """The positions whose scores were asked for: the last `logits_to_keep`, or all."""
        keep = call.logits_to_keep
        if isinstance(keep, Tensor):
            return x[:, keep]
        return x[:, -keep:] if keep else x

    def loss(self, logits: Tensor, call: Call) -> Tensor | None:
        if call.labels is None:
            return None
        if self.head.criterion is not None:
            return self.head.criterion(logits, call.labels, call.num_items_in_batch)
        if self.head.shifted:
            return next_token_loss(logits, call.labels, call.num_items_in_batch)
        check_labels(logits.shape[:2], call.labels)
        return cross_entropy(logits, call.labels, call.num_items_in_batch)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        x = out.last_hidden_state
        if call.labels is None:
            x = self.kept(x, call)
        logits = self.scores(x)
        fields: dict[str, Any] = {"loss": self.loss(logits, call), "logits": logits}
        router = getattr(out, "router_logits", None)
        if self.head.balance and router:
            aux = balance_loss(router, call.config.num_experts_per_tok, call.attention_mask)
            fields["aux_loss"] = aux
            if fields["loss"] is not None:
                fields["loss"] = fields["loss"] + call.config.router_aux_loss_coef * aux.to(logits.device)
        return fields


def token_table(backbone: Any) -> Tokens:
    """The token embedding of a backbone: its own, or its decoder's."""
    for name in ("decoder", "text"):
        if getattr(backbone, name, None) is not None:
            backbone = getattr(backbone, name)
    return backbone.embed.tokens


@dataclass(frozen=True)
class CausalLM(Head):
    """Next-token scores. tied: the output matrix is the token table where config.tie_word_embeddings says so,
    or where this function of the config does.

    bias: True, False or the config key that says. transform: config -> Transform. softcap: config key of the
    cap. scale: config -> factor on the states or None. offset: a stored constant added to the scores (BART).
    shifted: labels are the inputs (the head shifts them); False where labels are the decoder's targets.
    balance: adds the experts' balance loss. vocabulary: config -> V. from_zero: `generate` numbers positions
    from 0, whatever forward does without position_ids (public results of RoBERTa and its relatives).
    criterion: (logits, labels, total) -> loss in place of the usual one.
    """

    task: ClassVar[str] = "causal-lm"
    output: type[ModelOutput] = CausalLMOutputWithPast
    tied: bool | Callable[[Any], bool] = True
    bias: bool | str = False
    transform: Any = None
    softcap: str = ""
    scale: Any = None
    offset: bool = False
    shifted: bool = True
    balance: bool = False
    vocabulary: Any = None
    from_zero: bool = False
    criterion: Callable[[Tensor, Tensor, Any], Tensor] | None = None

    def make(self, config: Any, width: int) -> HeadModule:
        return TokenScores(self, config, width)


@dataclass(frozen=True)
class Seq2SeqLM(CausalLM):
    """Next-token scores of a decoder behind an encoder; labels are the decoder's targets."""

    task: ClassVar[str] = "seq2seq-lm"
    shifted: bool = False


@dataclass(frozen=True)
class MaskedLM(CausalLM):
    """Scores of the tokens behind masks; labels are -100 everywhere else."""

    task: ClassVar[str] = "masked-lm"
    output: type[ModelOutput] = MaskedLMOutput
    shifted: bool = False


class _Pair(HeadModule):
    """Two scores from the pooled vector: does the second sentence follow the first?"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = Linear(width, 2)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = self.out(out.pooler_output)
        labels = call.next_sentence_label if call.next_sentence_label is not None else call.labels
        return {"loss": None if labels is None else cross_entropy(logits, labels.view(-1)), "logits": logits}


@dataclass(frozen=True)
class NextSentence(Head):
    """Whether the second sentence follows the first (Devlin et al. 2018, section 3.1)."""

    task: ClassVar[str] = "next-sentence-prediction"
    output: type[ModelOutput] = NextSentencePredictorOutput
    pool: bool = True

    def make(self, config: Any, width: int) -> HeadModule:
        return _Pair(width)


class _Both(HeadModule):
    """Masked tokens and the next-sentence question together."""

    def __init__(self, lm: HeadModule, width: int, alone: bool) -> None:
        super().__init__()
        self.lm, self.pair, self.alone = lm, _Pair(width), alone

    def tie(self, backbone: nn.Module) -> None:
        self.lm.tie(backbone)

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        logits = self.lm.scores(out.last_hidden_state)
        pair = self.pair.out(out.pooler_output)
        loss = None
        if call.labels is not None and (self.alone or call.next_sentence_label is not None):
            loss = cross_entropy(logits, call.labels)
            if call.next_sentence_label is not None:
                loss = loss + cross_entropy(pair, call.next_sentence_label.view(-1))
        return {"loss": loss, "prediction_logits": logits, "seq_relationship_logits": pair}


@dataclass(frozen=True)
class Pretraining(MaskedLM):
    """BERT's pretraining: masked tokens (`lm`) and the next-sentence question (`pair`).

    alone: labels without next_sentence_label have a loss too.
    """

    task: ClassVar[str] = "pretraining"
    output: type[ModelOutput] = BertForPreTrainingOutput
    pool: bool = True
    alone: bool = False

    def make(self, config: Any, width: int) -> HeadModule:
        return _Both(TokenScores(self, config, width), width, self.alone)
