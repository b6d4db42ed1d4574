"""What every flexible head is: a name, a public configuration, and layers on the states of a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.adapters.bottleneck import Act
from phyla.blocks import Linear
from phyla.errors import AdapterError
from phyla.model import init_module
from phyla.outputs import ModelOutput


@dataclass
class Frame:
    """What a head needs of a model that is still being made."""

    config: Any
    width: int
    training: bool = False


class PredictionHead(nn.Sequential):
    """Layers behind a model, by the public protocol; a head of one's own derives from this class.

    `__init__(model, head_name, **fields)` sets `config` and calls `build(model)`; `forward(outputs,
    cls_output=None, attention_mask=None, return_dict=False, **given)` gets the model's output and what the
    caller gave besides (labels and the like).
    """

    plain: ClassVar[type[ModelOutput]]
    joint: ClassVar[type[ModelOutput] | None] = None  # behind an encoder-decoder

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.config: dict[str, Any] = {}

    def build(self, model: Any) -> None:
        """Make the layers that `config` describes, with fresh values."""
        for number, layer in enumerate(self.layers(model)):
            self.add_module(str(number), layer)
        self.start(model)

    def start(self, model: Any) -> None:
        """Fresh values as the model's own, and its mode."""
        std = float(getattr(model.config.get_text_config(), "initializer_range", None) or 0.02)
        for module in self.modules():
            init_module(module, std)
        self.train(model.training)

    def layers(self, model: Any) -> Iterator[nn.Module]:
        """Dropout, a linear layer and an activation, `layers` times; the last one gives the scores."""
        width, chance, last = model.width, self.dropout(model.config), self.config["layers"] - 1
        outputs = self.config.get("num_labels", 1 if "num_choices" in self.config else width)
        for number in range(last + 1):
            yield nn.Dropout(chance)
            scores = number == last and ("num_labels" in self.config or "num_choices" in self.config)
            bias = self.config.get("bias", True) if number == last else True
            yield Linear(width, outputs if number == last else width, bias=bias)
            if not scores and self.config.get("activation_function"):
                yield Act(self.config["activation_function"])

    def dropout(self, config: Any) -> float:
        """The head's own chance of dropout, or the model's."""
        for value in (
            self.config.get("dropout_prob"),
            getattr(config, "classifier_dropout", None),
            getattr(config, "hidden_dropout_prob", None),
        ):
            if value is not None:
                return float(value)
        return 0.0

    def get_output_embeddings(self) -> nn.Module | None:
        """The matrix over the vocabulary, where the head has one."""
        return None

    def get_label_names(self) -> list[str]:
        """The arguments that bring the labels."""
        return ["labels"]

    def row(self, outputs: Any, cls_output: Tensor | None, given: Mapping[str, Any]) -> Tensor:
        """(B, D): the vector of each row."""
        if self.config.get("use_pooler"):
            pooled = given.get("pooled_output")
            if pooled is not None:
                return pooled.flatten(1)
            if cls_output is None:
                raise AdapterError(
                    f"the head {self.name!r} reads the model's pooled vector, but this model has none: add "
                    "the head with use_pooler=False"
                )
        return self.states(outputs)[:, 0] if cls_output is None else cls_output

    def states(self, outputs: Any) -> Tensor:
        """(B, S, D): the model's states; the first output where they have no name."""
        found = getattr(outputs, "last_hidden_state", None)
        return outputs[0] if found is None else found

    def _get_cls_output(self, outputs: Any, **given: Any) -> Tensor:
        """The vector of each row, under the name that heads of one's own call."""
        return self.row(outputs, given.get("cls_output"), given)

    def answer(self, outputs: Any, return_dict: bool, **fields: Any) -> Any:
        """The public output: the head's fields and, for the rest, the model's."""
        kind = self.plain
        if self.joint is not None and "encoder_last_hidden_state" in type(outputs).__dataclass_fields__:
            kind = self.joint
        values = {
            name: fields[name] if name in fields else getattr(outputs, name, None)
            for name in kind.__dataclass_fields__
        }
        made: ModelOutput = kind(**values)
        return made if return_dict else made.to_tuple()


def labels_of(id2label: Mapping[Any, str] | None) -> dict[str, int] | None:
    """label2id as head_config.json holds it."""
    return None if id2label is None else {label: int(number) for number, label in id2label.items()}


def beside_prompt(values: Tensor, given: Mapping[str, Any], fill: int) -> Tensor:
    """Values of the tokens (B, S) with `fill` where a prompt stands."""
    length, skip = given.get("prompt_tokens_length") or 0, given.get("prompt_skip") or 0
    if not length:
        return values
    added = values.new_full((values.shape[0], length), fill)
    return torch.cat([values[:, :skip], added, values[:, skip:]], 1)
