"""What the head of a public class is as a flexible head, read off the class's own description."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from phyla.checkpoints.names import NameMap, To
from phyla.checkpoints.ops import Reshape
from phyla.heads.base import Head
from phyla.heads.choice import MultipleChoice
from phyla.heads.classify import Classify, TokenClassify, dropout_of
from phyla.heads.image import ImageClassify
from phyla.heads.lm import CausalLM, MaskedLM, Seq2SeqLM
from phyla.heads.span import Span
from phyla.heads.speech import SpeechToText
from phyla.heads.summary import SummaryChoice


@dataclass(frozen=True)
class Converted:
    """A flexible head's configuration, and the names of its layers in files of the public class."""

    config: dict[str, Any]
    names: NameMap


def converted(head: Head, config: Any) -> Converted | None:
    """The flexible head that computes what this class's head does, or None if there is none."""
    for kind, convert in _KINDS.items():
        if type(head) is kind:
            return convert(head, config)
    return None


def _labels(config: Any, key: str = "num_labels") -> dict[str, Any]:
    return {
        key: config.num_labels,
        "id2label": {int(k): v for k, v in (config.id2label or {}).items()} or None,
    }


def _names(head: Head, config: Any, layers: Mapping[str, str]) -> NameMap:
    """The lines of the head's own table, for the flexible layers that stand for its parts."""
    found: Any = head.names(config) if callable(head.names) else head.names
    table = (found if isinstance(found, NameMap) else NameMap(found)).flat()

    def moved(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {
            flexible + ours[len(part) :]: theirs
            for part, flexible in layers.items()
            for ours, theirs in entries.items()
            if ours == part or ours.startswith(part + ".")
        }

    return NameMap(moved(table.lines), aliases=moved(table.aliases), copies=moved(table.copies))


def _row(head: Classify, config: Any) -> Converted:
    facts: dict[str, Any] = {
        "head_type": "classification", "layers": 2 if head.dense else 1,
        "activation_function": getattr(config, head.dense, head.dense) if head.dense else None,
        "use_pooler": head.on == "pool", "dropout_prob": dropout_of(config, head.dropout),
        **_labels(config),
    }  # fmt: skip
    if not head.bias:
        facts["bias"] = False
    return Converted(facts, _names(head, config, {"dense": "1", "out": "4"} if head.dense else {"out": "1"}))


def _choice(head: MultipleChoice, config: Any) -> Converted:
    made = _row(head, config)
    facts = {k: v for k, v in made.config.items() if k not in ("num_labels", "bias")}
    return Converted({**facts, "head_type": "multiple_choice", **_labels(config, "num_choices")}, made.names)


def _summary_choice(head: SummaryChoice, config: Any) -> Converted | None:
    narrow = getattr(config, "summary_proj_to_labels", False)
    known = config.summary_type == "first" and config.summary_use_proj and not narrow
    if not known:
        return None
    facts = {
        "head_type": "multiple_choice", "layers": 2, "activation_function": config.summary_activation,
        "use_pooler": False, **_labels(config, "num_choices"),
    }  # fmt: skip
    return Converted(facts, _names(head, config, {"summary.out": "1", "out": "4"}))


def _tokens(head: TokenClassify, config: Any) -> Converted:
    facts = {
        "head_type": "tagging", "layers": 1, "activation_function": None,
        "dropout_prob": dropout_of(config, head.dropout), **_labels(config),
    }  # fmt: skip
    return Converted(facts, _names(head, config, {"out": "1"}))


def _span(head: Span, config: Any) -> Converted:
    facts = {
        "head_type": "question_answering", "num_labels": 2, "layers": 1, "activation_function": None,
        "dropout_prob": dropout_of(config, head.dropout),
    }  # fmt: skip
    return Converted(facts, _names(head, config, {"out": "1"}))


def _image(head: ImageClassify, config: Any) -> Converted | None:
    if head.on == "both" or config.num_labels < 1:
        return None  # twice as wide as flexible heads are, or no scores at all
    facts = {
        "head_type": "image_classification", "layers": 1, "activation_function": None,
        "use_pooler": head.on == "pool", **_labels(config),
        "dropout_prob": getattr(config, head.dropout) if head.dropout else 0.0,
    }  # fmt: skip
    return Converted(facts, _names(head, config, {"out": "1"}))


def _language(kind: str) -> Callable[[Any, Any], Converted | None]:
    def convert(head: CausalLM, config: Any) -> Converted | None:
        bias = getattr(config, head.bias) if isinstance(head.bias, str) else head.bias
        facts: dict[str, Any] = {"head_type": kind, "bias": bool(bias) or head.offset}
        if head.vocabulary is not None:
            facts["vocab_size"] = head.vocabulary(config)
        transform = head.transform(config) if head.transform is not None else None
        if transform is None:
            facts |= {"layers": 1, "activation_function": None}
            names = _with_offset(head, config) if head.offset else _names(head, config, {"out": "0"})
            return Converted(facts, names)
        if not transform.bias or not transform.norm_bias or kind == "seq2seq_lm":
            return None
        if transform.eps != getattr(config, "layer_norm_eps", 1e-12):
            return None
        facts |= {"layers": 2, "activation_function": transform.act, "layer_norm": True}
        if transform.out is not None:
            facts["embedding_size"] = transform.out
        return Converted(facts, _names(head, config, {"dense": "0", "norm": "2", "out": "3"}))

    return convert


def _with_offset(head: CausalLM, config: Any) -> NameMap:
    """The stored constant on the scores is the bias of the flexible head's last layer."""
    lines: Any = _names(head, config, {"out": "0.weight", "offset": "0.bias"}).lines
    return NameMap(
        {"0.weight": f"{lines['0.weight']}.weight", "0.bias": To(lines["0.bias"], Reshape((1, -1)))}
    )


_KINDS: dict[type, Callable[[Any, Any], Converted | None]] = {
    Classify: _row,
    MultipleChoice: _choice,
    SummaryChoice: _summary_choice,
    TokenClassify: _tokens,
    Span: _span,
    ImageClassify: _image,
    CausalLM: _language("causal_lm"),
    MaskedLM: _language("masked_lm"),
    Seq2SeqLM: _language("seq2seq_lm"),
    SpeechToText: _language("seq2seq_lm"),
}
