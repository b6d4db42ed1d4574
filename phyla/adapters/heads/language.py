"""Heads that score tokens of the vocabulary."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.adapters.bottleneck import Act
from phyla.adapters.heads.base import PredictionHead, beside_prompt
from phyla.blocks import LayerNorm, Linear, make
from phyla.heads.lm import token_table
from phyla.heads.loss import IGNORED, check_labels, cross_entropy
from phyla.outputs import CausalLMOutputWithPast, MaskedLMOutput, ModelOutput, Seq2SeqLMOutput


class CausalLMHead(PredictionHead):
    """Scores of the next token: `layers` - 1 dense layers, and the output matrix."""

    head_type: ClassVar[str] = "causal_lm"
    plain: ClassVar[type[ModelOutput]] = CausalLMOutputWithPast
    untied = False  # set where a file holds another matrix than the token table

    def __init__(
        self, model: Any, head_name: str, vocab_size: int | None = None, embedding_size: int | None = None,
        layers: int = 1, activation_function: str | None = None, layer_norm: bool = False,
        bias: bool = False, shift_labels: bool = True, dropout_prob: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(head_name)
        text = model.config.get_text_config()
        self.config = {
            "head_type": self.head_type, "vocab_size": vocab_size or text.vocab_size,
            "embedding_size": embedding_size or getattr(text, "embedding_size", None) or model.width,
            "layers": layers, "activation_function": activation_function, "layer_norm": layer_norm,
            "bias": bias, "shift_labels": shift_labels, "label2id": None, "dropout_prob": dropout_prob,
        }  # fmt: skip
        self.build(model)

    def layers(self, model: Any) -> Iterator[nn.Module]:
        """Dense layer, activation and norm, layers - 1 times, and the output matrix."""
        width, inner = model.width, self.config.get("embedding_size", model.width)
        for _ in range(self.config["layers"] - 1):
            yield Linear(width, inner)
            width = inner
            if self.config["activation_function"]:
                yield Act(self.config["activation_function"])
            if self.config.get("layer_norm", False):
                yield make(LayerNorm(inner, getattr(model.config, "layer_norm_eps", 1e-12)))
        yield Linear(inner, self.config["vocab_size"], bias=self.config["bias"])

    def get_output_embeddings(self) -> nn.Module:
        return self[len(self) - 1]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another matrix in the place of the last layer."""
        self[len(self) - 1] = new_embeddings

    def tie(self, backbone: nn.Module, config: Any) -> None:
        """Share the token table where the model's configuration ties words and it has the right shape."""
        if self.untied or not getattr(config.get_text_config(), "tie_word_embeddings", False):
            return
        table: Any = token_table(backbone)
        out: Any = self.get_output_embeddings()
        if table.weight.shape == out.weight.shape:
            out.weight = table.weight

    def forward(  # type: ignore[override]
        self, outputs: Any, cls_output: Tensor | None = None, attention_mask: Tensor | None = None,
        return_dict: bool = False, labels: Tensor | None = None, logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        """Scores (B, S, V), of the last positions that were asked for, and, with labels (B, S), the loss."""
        x = self.states(outputs)
        if labels is None:
            if isinstance(logits_to_keep, Tensor):
                x = x[:, logits_to_keep]
            elif logits_to_keep:
                x = x[:, -logits_to_keep:]
        layers = list(self)
        for layer in layers[:-1]:
            x = layer(x)
        undo = given.get("invertible_adapter")
        if undo is not None:
            x = undo(x, rev=True)
        logits = layers[-1](x if given.get("scale") is None else x * given["scale"])
        cap = given.get("softcap")
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        loss = None if labels is None else self.loss(logits, labels, num_items_in_batch, given)
        return self.answer(outputs, return_dict, loss=loss, logits=logits)

    def loss(self, logits: Tensor, labels: Tensor, total: Any, given: dict[str, Any]) -> Tensor:
        """Cross entropy; labels are the inputs where they are to be shifted."""
        if self.config["shift_labels"]:
            # The first token is nobody's next one, also not a prompt's.
            labels = torch.cat([torch.full_like(labels[:, :1], IGNORED), labels[:, 1:]], 1)
        labels = beside_prompt(labels, given, IGNORED)
        check_labels(logits.shape[:2], labels)
        if self.config["shift_labels"]:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return cross_entropy(logits, labels, total)


class BertStyleMaskedLMHead(CausalLMHead):
    """Scores of the tokens behind masks; labels are -100 everywhere else."""

    head_type: ClassVar[str] = "masked_lm"
    plain: ClassVar[type[ModelOutput]] = MaskedLMOutput

    def __init__(
        self, model: Any, head_name: str, vocab_size: int | None = None, embedding_size: int | None = None,
        layers: int = 2, activation_function: str | None = "gelu", layer_norm: bool = True,
        bias: bool = True, shift_labels: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            model, head_name, vocab_size, embedding_size, layers, activation_function, layer_norm, bias,
            shift_labels,
        )  # fmt: skip
        del self.config["dropout_prob"]


class Seq2SeqLMHead(CausalLMHead):
    """Scores of a decoder's next token behind an encoder; labels are the decoder's targets."""

    head_type: ClassVar[str] = "seq2seq_lm"
    plain: ClassVar[type[ModelOutput]] = Seq2SeqLMOutput

    def __init__(
        self, model: Any, head_name: str, vocab_size: int | None = None, layers: int = 1,
        activation_function: str | None = None, layer_norm: bool = False, bias: bool = False,
        shift_labels: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            model, head_name, vocab_size, model.width, layers, activation_function, layer_norm, bias,
            shift_labels,
        )  # fmt: skip
        del self.config["dropout_prob"], self.config["embedding_size"]
