"""The flexible heads of a model: which there are, which are active, and what they make of its states."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phyla.adapters.heads.base import Frame, PredictionHead
from phyla.adapters.heads.convert import Converted, converted
from phyla.adapters.heads.labels import (
    ClassificationHead,
    ImageClassificationHead,
    MultiLabelClassificationHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    TaggingHead,
)
from phyla.adapters.heads.language import BertStyleMaskedLMHead, CausalLMHead, Seq2SeqLMHead
from phyla.adapters.heads.parsing import BiaffineParsingHead
from phyla.checkpoints.names import NameMap
from phyla.errors import AdapterError, nearest
from phyla.heads.base import Head, HeadModule
from phyla.heads.classify import Classify
from phyla.heads.image import ImageClassify
from phyla.heads.lm import CausalLM

MODEL_HEAD_MAP: dict[str, type[PredictionHead]] = {
    "classification": ClassificationHead,
    "multilabel_classification": MultiLabelClassificationHead,
    "tagging": TaggingHead,
    "multiple_choice": MultipleChoiceHead,
    "question_answering": QuestionAnsweringHead,
    "dependency_parsing": BiaffineParsingHead,
    "masked_lm": BertStyleMaskedLMHead,
    "causal_lm": CausalLMHead,
    "seq2seq_lm": Seq2SeqLMHead,
    "image_classification": ImageClassificationHead,
}


class HeadDict(nn.Module):
    """Heads by name, in the order of their adding; names may hold what module names may not."""

    def keys(self) -> list[str]:
        """The names."""
        return [head.name for head in self.children()]  # type: ignore[misc]

    def values(self) -> list[PredictionHead]:
        """The heads."""
        return list(self.children())  # type: ignore[arg-type]

    def items(self) -> list[tuple[str, PredictionHead]]:
        """Names and heads."""
        return list(zip(self.keys(), self.values(), strict=True))

    def __getitem__(self, name: str) -> PredictionHead:
        if name not in self:
            raise AdapterError(f"the model has no head {name!r}.{nearest(str(name), self.keys())}")
        return self._modules[_key(name)]  # type: ignore[return-value]

    def __setitem__(self, name: str, head: PredictionHead) -> None:
        self.add_module(_key(name), head)

    def __delitem__(self, name: str) -> None:
        del self._modules[_key(self[name].name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._modules)


def _key(name: str) -> str:
    return "_" + name.replace(".", "\u2024")


@dataclass(frozen=True)
class Flexible(Head):
    """The bare backbone of a family with heads to be added; `base` is the description of its bare class.

    heads: all public classes of the family. sees: whether its inputs are images. kind: what a row is
    classified by: the "first" state, the "last" real one, the last "end" token, the "pool", or a mean
    ("mean" behind the first, "all", "map").
    """

    task: ClassVar[str] = "flexible-heads"
    base: Head = field(default_factory=Head)
    heads: Mapping[str, Head] = field(default_factory=dict)
    kind: str = "first"

    @property
    def needs_states(self) -> bool:  # type: ignore[override]
        """Whether the bare class reads the states of all layers."""
        return self.base.needs_states

    @property
    def routed(self) -> bool:  # type: ignore[override]
        """Whether calls of the bare class return the scores of routers unless told otherwise."""
        return self.base.routed

    def make(self, config: Any, width: int) -> HeadModule | None:
        return self.base.make(config, width)

    def wrap(self, spec: Any, config: Any) -> Any:
        return self.base.wrap(spec, config)

    def place(self, names: Any, config: Any) -> Any:
        names = self.base.place(names, config)
        if names.prefix:
            return names
        # Files of some families have a prefix only beside heads that came later (T5).
        others = (h.prefix for h in self.heads.values() if h.prefix and h.build is self.base.build)
        return names.but(prefix=next(others, config.model_type.replace("-", "_")))


def row_kind(base: Head, heads: Mapping[str, Head], modality: str) -> str:
    """What rows of a family are classified by, as its own classes do it."""
    for head in heads.values():
        if isinstance(head, Classify) and head.build is base.build:
            return head.on if head.on in ("last", "end") else "first"
        if isinstance(head, ImageClassify):
            return "first" if head.on == "both" else head.on
    if {"causal-lm", "seq2seq-lm", "speech-seq2seq", "image-text-to-text"} & {h.task for h in heads.values()}:
        return "last"
    if modality == "audio":
        return "all"
    return "pool" if modality == "vision" and base.pool else "first"


class FlexibleHeads(nn.Module):
    """The heads, and which of them are active: None, a name, a list of names, or a BatchSplit of names."""

    def __init__(self, spec: Flexible, config: Any, width: int) -> None:
        super().__init__()
        self.spec, self.kept = spec, HeadDict()
        self.custom: dict[str, Any] = {}
        self.active: Any = None
        self.from_static: dict[str, Converted] = {}
        self.left_out: list[str] = []
        language = next((h for h in heads_with_scores(spec.heads) if h.build is spec.base.build), None)
        self.softcap = getattr(config, language.softcap) if language and language.softcap else None
        self.scale = language.scale(config) if language and language.scale else None
        self.config = config
        frame = Frame(config, width)
        for name, facts in (getattr(config, "prediction_heads", None) or {}).items():
            if facts.get("head_type") in MODEL_HEAD_MAP:
                self.kept[name] = self.make_head(frame, name, facts)
                self.active = name
            else:
                self.left_out.append(name)
        self._convert(frame, config)

    def _convert(self, frame: Frame, config: Any) -> None:
        """The head of the class whose checkpoint this is, as a flexible one, under the name `default`."""
        named = (config.architectures or [""])[0]
        head = self.spec.heads.get(named)
        if head is None or head.task == self.spec.base.task:
            return
        made = converted(head, config) if head.build is self.spec.base.build else None
        if made is None:
            self.left_out.append(named)
            return
        self.kept["default"] = self.make_head(frame, "default", made.config)
        self.from_static["default"], self.active = made, "default"

    def make_head(self, model: Any, name: str, facts: Mapping[str, Any]) -> PredictionHead:
        """A head from its public configuration; AdapterError where it is not known or does not fit."""
        given = {k: v for k, v in facts.items() if k not in ("head_type", "label2id", "id2label")}
        labels = facts.get("id2label")
        if labels is None and facts.get("label2id") is not None:
            labels = {number: label for label, number in facts["label2id"].items()}
        if labels is not None:
            given["id2label"] = labels
        kind = facts.get("head_type", "")
        known = {**MODEL_HEAD_MAP, **self.custom}
        if kind not in known:
            raise AdapterError(
                f"there is no kind of head {kind!r}.{nearest(str(kind), known)} Announce one of your own "
                "with register_custom_head first"
            )
        for key in ("layers", "num_labels", "num_choices"):
            if key in given and not (isinstance(given[key], int) and given[key] > 0):
                raise AdapterError(f"{key} of a head must be a positive whole number, but is {given[key]!r}")
        try:
            made = known[kind](model, name, **given)
        except TypeError as error:
            raise AdapterError(f"a head of the kind {kind!r} cannot be made from {given}: {error}") from None
        made.config.setdefault("head_type", kind)
        return made

    def own_names(self) -> NameMap:
        """The public names of all heads, those of a converted one as the file being read has them."""
        lines: dict[str, Any] = {}
        aliases: dict[str, tuple[str, ...]] = {}
        copies: dict[str, tuple[str, ...]] = {}
        for name, head in self.kept.items():
            at = f"kept.{_key(name)}"
            if name in self.from_static:
                table = self.from_static[name].names
                lines |= {f"{at}.{ours}": theirs for ours, theirs in table.lines.items()}
                aliases |= {f"{at}.{ours}": theirs for ours, theirs in table.aliases.items()}
                copies |= {f"{at}.{ours}": theirs for ours, theirs in table.copies.items()}
                continue
            lines |= {f"{at}.{path}": f"heads.{name}.{path}" for path, _ in head.named_parameters()}
        return NameMap(lines, aliases=aliases, copies=copies)

    def settle(self) -> None:
        """The checkpoint is read: from now on the converted head has names of its own."""
        self.from_static = {}

    def tie(self, backbone: nn.Module) -> None:
        """Share the token table with the heads over the vocabulary where the configuration ties words."""
        for head in self.kept.values():
            if isinstance(head, CausalLMHead):
                head.tie(backbone, self.config)


def unscaled(head: PredictionHead, scale: float | None) -> None:
    """Let a head of another class, which read states as they are, read them multiplied by `scale`."""
    if scale is None or head.config.get("head_type") not in ("question_answering", "tagging"):
        return
    first: Any = next(layer for layer in head.children() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight.div_(scale)


def heads_with_scores(heads: Mapping[str, Head]) -> Iterator[CausalLM]:
    """The family's own heads over the vocabulary."""
    for head in heads.values():
        if isinstance(head, CausalLM) and type(head).__name__ in ("CausalLM", "Seq2SeqLM", "SpeechToText"):
            yield head


def cut(value: Any, rows: int, at: slice | Tensor) -> Any:
    """Some rows of every tensor with `rows` rows, in outputs and tuples too."""
    if isinstance(value, Tensor):
        return value[at] if value.dim() and value.shape[0] == rows else value
    if isinstance(value, tuple | list):
        return type(value)(cut(v, rows, at) for v in value)
    if hasattr(value, "__dataclass_fields__") and isinstance(value, dict):
        names: Any = type(value)
        fields = {name: getattr(value, name) for name in names.__dataclass_fields__}
        fields.pop("past_key_values", None)  # one cache holds the rows of all heads
        return type(value)(**{k: cut(v, rows, at) for k, v in fields.items()})
    return value


def total(losses: list[Tensor | None]) -> Tensor | None:
    """The sum of the losses, or None where one is missing."""
    if not losses or any(loss is None for loss in losses):
        return None
    return torch.stack([loss for loss in losses if loss is not None]).sum()
