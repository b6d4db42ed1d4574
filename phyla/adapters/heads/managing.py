"""The methods of models with flexible heads: adding, activating, averaging and deleting them."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import phyla.adapters.api as api
from phyla.adapters.composition import AdapterCompositionBlock, BatchSplit, Parallel
from phyla.adapters.head_setup import heads_of, names_in
from phyla.adapters.heads.base import PredictionHead
from phyla.adapters.heads.language import CausalLMHead
from phyla.adapters.heads.module import MODEL_HEAD_MAP, HeadDict, unscaled
from phyla.adapters.placement import end_of
from phyla.adapters.registry import check_name
from phyla.errors import AdapterError
from phyla.model import PreTrainedModel


class HeadMethods(PreTrainedModel):
    """Heads by name; `active_head` is a name, a list of names, a BatchSplit of names, or None."""

    flexible: Any

    @property
    def heads(self) -> HeadDict:
        """The heads by name."""
        return self.flexible.kept

    @property
    def head_types(self) -> list[str]:
        """The kinds of heads that have a meaning on this model."""
        from phyla.adapters.heads.model import kinds_for

        return kinds_for(self)  # type: ignore[arg-type]

    @property
    def active_head(self) -> Any:
        """What is active: a name, a list of names, a BatchSplit of names, or None."""
        return self.flexible.active

    @active_head.setter
    def active_head(self, value: Any) -> None:
        if isinstance(value, Parallel):
            value = list(value.names())
        if isinstance(value, Sequence) and not isinstance(value, str | AdapterCompositionBlock):
            value = list(value)
            value = value[0] if len(value) == 1 else value or None
        if isinstance(value, AdapterCompositionBlock) and not isinstance(value, BatchSplit):
            raise AdapterError(
                f"active heads are a name, a list, a Parallel or a BatchSplit, but not {value!r}"
            )
        for name in names_in(value):
            self.heads[name]
        self.flexible.active = value or None
        if isinstance(value, str) and value:
            labels = self.get_labels_dict(value)
            if labels:
                self.config.id2label = labels
                self.config.label2id = {label: number for number, label in labels.items()}

    def add_classification_head(
        self, head_name: str, num_labels: int = 2, layers: int = 2,
        activation_function: str | None = "tanh", overwrite_ok: bool = False, multilabel: bool = False,
        id2label: Mapping[int, str] | None = None, use_pooler: bool = False,
    ) -> None:  # fmt: skip
        """Add a head for labels of a row; multilabel: any number of them at once."""
        self._add(head_name, overwrite_ok, {
            "head_type": "multilabel_classification" if multilabel else "classification",
            "num_labels": num_labels, "layers": layers, "activation_function": activation_function,
            "id2label": id2label, "use_pooler": use_pooler,
        })  # fmt: skip

    def add_image_classification_head(
        self, head_name: str, num_labels: int = 2, layers: int = 1,
        activation_function: str | None = "tanh", overwrite_ok: bool = False, multilabel: bool = False,
        id2label: Mapping[int, str] | None = None, use_pooler: bool = False,
    ) -> None:  # fmt: skip
        """Add a head for labels of an image; multilabel: any number of them at once."""
        self._add(head_name, overwrite_ok, {
            "head_type": "image_classification", "num_labels": num_labels, "layers": layers,
            "activation_function": activation_function, "multilabel": multilabel, "id2label": id2label,
            "use_pooler": use_pooler,
        })  # fmt: skip

    def add_multiple_choice_head(
        self, head_name: str, num_choices: int = 2, layers: int = 2,
        activation_function: str | None = "tanh", overwrite_ok: bool = False,
        id2label: Mapping[int, str] | None = None, use_pooler: bool = False,
    ) -> None:  # fmt: skip
        """Add a head that picks one of several texts; inputs are (B, choices, S)."""
        self._add(head_name, overwrite_ok, {
            "head_type": "multiple_choice", "num_choices": num_choices, "layers": layers,
            "activation_function": activation_function, "id2label": id2label, "use_pooler": use_pooler,
        })  # fmt: skip

    def add_tagging_head(
        self, head_name: str, num_labels: int = 2, layers: int = 1,
        activation_function: str | None = "tanh", overwrite_ok: bool = False,
        id2label: Mapping[int, str] | None = None,
    ) -> None:  # fmt: skip
        """Add a head for a label of every token."""
        self._add(head_name, overwrite_ok, {
            "head_type": "tagging", "num_labels": num_labels, "layers": layers,
            "activation_function": activation_function, "id2label": id2label,
        })  # fmt: skip

    def add_qa_head(
        self, head_name: str, num_labels: int = 2, layers: int = 1,
        activation_function: str | None = "tanh", overwrite_ok: bool = False,
        id2label: Mapping[int, str] | None = None,
    ) -> None:  # fmt: skip
        """Add a head that finds where an answer starts and ends."""
        self._add(head_name, overwrite_ok, {
            "head_type": "question_answering", "num_labels": num_labels, "layers": layers,
            "activation_function": activation_function, "id2label": id2label,
        })  # fmt: skip

    def add_dependency_parsing_head(
        self, head_name: str, num_labels: int = 2, overwrite_ok: bool = False,
        id2label: Mapping[int, str] | None = None,
    ) -> None:  # fmt: skip
        """Add a biaffine parser; calls need word_starts."""
        self._add(head_name, overwrite_ok, {
            "head_type": "dependency_parsing", "num_labels": num_labels, "id2label": id2label,
        })  # fmt: skip

    def add_masked_lm_head(
        self, head_name: str, activation_function: str | None = "gelu", layers: int = 2,
        overwrite_ok: bool = False,
    ) -> None:  # fmt: skip
        """Add a head that scores the tokens behind masks."""
        self._add(head_name, overwrite_ok, {
            "head_type": "masked_lm", "layers": layers, "activation_function": activation_function,
        })  # fmt: skip

    def add_causal_lm_head(
        self, head_name: str, activation_function: str | None = "gelu", layers: int = 2,
        overwrite_ok: bool = False,
    ) -> None:  # fmt: skip
        """Add a head that scores the next token."""
        self._add(head_name, overwrite_ok, {
            "head_type": "causal_lm", "layers": layers, "activation_function": activation_function,
            "layer_norm": True, "bias": True,
        })  # fmt: skip

    def add_seq2seq_lm_head(self, head_name: str, layers: int = 1, overwrite_ok: bool = False) -> None:
        """Add a head that scores a decoder's next token."""
        self._add(head_name, overwrite_ok, {"head_type": "seq2seq_lm", "layers": layers})

    def register_custom_head(self, identifier: str, head: type[PredictionHead]) -> None:
        """Announce a kind of head of one's own."""
        self.flexible.custom[identifier] = head

    def add_custom_head(
        self, head_type: str, head_name: str, overwrite_ok: bool = False, set_active: bool = True,
        **fields: Any,
    ) -> None:  # fmt: skip
        """Add a head of a kind that register_custom_head announced; `fields` go to its class."""
        if head_type not in self.flexible.custom:
            raise AdapterError(
                f"no head {head_type!r} was announced: call register_custom_head with it and its class first"
            )
        self._may_add(head_name, overwrite_ok)
        self._keep(self._new(head_name, {"head_type": head_type, **fields}), set_active)

    def add_prediction_head_from_config(
        self, head_name: str, config: Mapping[str, Any], overwrite_ok: bool = False, set_active: bool = True
    ) -> None:
        """Add a head from the configuration that head_config.json holds."""
        self._add(head_name, overwrite_ok, config, set_active)

    def add_prediction_head(
        self, head: PredictionHead, overwrite_ok: bool = False, set_active: bool = True
    ) -> None:
        """Add a head that was made already."""
        self._may_add(head.name, overwrite_ok)
        self._keep(head, set_active)

    def _add(self, name: str, overwrite_ok: bool, facts: Mapping[str, Any], set_active: bool = True) -> None:
        self._may_add(name, overwrite_ok)
        self._keep(self._new(name, facts), set_active)

    def _may_add(self, name: str, overwrite_ok: bool) -> None:
        if check_name(name) in self.heads and not overwrite_ok:
            raise AdapterError(f"the model has a head {name!r} already: delete it or pass overwrite_ok=True")

    def _new(self, name: str, facts: Mapping[str, Any]) -> PredictionHead:
        """A head, not yet part of the model, on its device and in its dtype."""
        kind, known = facts.get("head_type"), self.head_types
        if kind in MODEL_HEAD_MAP and kind not in known:
            raise AdapterError(
                f"{type(self).__name__} takes no head of the kind {kind!r}; "
                f"it takes {', '.join(known) or 'none'}"
            )
        made = self.flexible.make_head(self, check_name(name), facts)
        like = api._like(self)
        return made.to(device=end_of(self, like).device, dtype=like.dtype)

    def _keep(self, head: PredictionHead, set_active: bool) -> None:
        """Take a head in."""
        if head.config.get("label2id", "") is None:
            count = head.config.get("num_labels", head.config.get("num_choices"))
            if count is not None:
                head.config["label2id"] = {f"LABEL_{i}": i for i in range(count)}
        if isinstance(head, CausalLMHead) and not head.untied:
            head.tie(self.backbone, self.config)
        self.heads[head.name] = head
        self._write_config()
        if set_active:
            self.active_head = head.name

    def _write_config(self) -> None:
        self.config.prediction_heads = {n: dict(h.config) for n, h in self.heads.items()}

    def _settle(self) -> None:
        """After loading: the heads of the file are the model's own."""
        heads: Any = self.flexible
        if heads.left_out:
            warnings.warn(
                f"{', '.join(heads.left_out)}: no flexible head computes what this one does, so it was left "
                "out; add one, or load_head with a kind announced by register_custom_head",
                stacklevel=4,
            )
        for name in heads.from_static if self.is_encoder_decoder else ():
            unscaled(self.heads[name], heads.scale)
        heads.settle()
        for head in self.heads.values():
            if head.config.get("label2id", "") is None and "num_labels" in head.config:
                head.config["label2id"] = {f"LABEL_{i}": i for i in range(head.config["num_labels"])}
        if len(self.heads):
            self._write_config()
            self.config.architectures = [type(self).__name__]

    def delete_head(self, head_name: str) -> None:
        """Take a head away; it is inactive afterwards."""
        del self.heads[head_name]
        self._write_config()
        if head_name in names_in(self.active_head):
            self.active_head = None

    def get_prediction_heads_config(self) -> dict[str, dict[str, Any]]:
        """The configurations of all heads by name."""
        return {name: head.config for name, head in self.heads.items()}

    def get_labels_dict(self, head_name: str | None = None) -> dict[int, str] | None:
        """The labels of a head (the active one) by number; None for heads without labels."""
        name = head_name if head_name is not None else self.active_head
        if not isinstance(name, str):
            raise AdapterError("pass head_name: there is no single active head whose labels these could be")
        labels = self.heads[name].config.get("label2id")
        return None if labels is None else {number: label for label, number in labels.items()}

    def get_labels(self, head_name: str | None = None) -> list[str] | None:
        """The labels of a head (the active one)."""
        labels = self.get_labels_dict(head_name)
        return None if labels is None else list(labels.values())

    def average_head(
        self, head_name: str, head_list: Any, weights: Sequence[float] | None = None,
        normalize_weights: bool = True, overwrite_ok: bool = False, set_active: bool = False,
    ) -> None:  # fmt: skip
        """Add a head whose parameters are the weighted average of those of heads of one configuration."""
        if isinstance(head_list, Mapping):
            head_list, weights = list(head_list), list(head_list.values())
        names = list(head_list)
        if not names:
            raise AdapterError("average_head needs the names of heads")
        sources = [self.heads[name] for name in names]
        facts = [{k: v for k, v in h.config.items() if k != "dropout_prob"} for h in sources]
        if any(type(h) is not type(sources[0]) for h in sources) or any(f != facts[0] for f in facts):
            raise AdapterError(f"heads to be averaged must have one configuration, but {names} differ")
        share = [1 / len(names)] * len(names) if weights is None else [float(w) for w in weights]
        if len(share) != len(names):
            raise AdapterError(f"{len(names)} heads need {len(names)} weights, but there are {len(share)}")
        if weights is not None and normalize_weights:
            if not sum(share):
                raise AdapterError("weights that are normalised must not sum to 0")
            share = [w / sum(share) for w in share]
        self._may_add(head_name, overwrite_ok)
        made = copy.deepcopy(sources[0])
        made.name = check_name(head_name)
        values = [h.state_dict() for h in sources]
        made.load_state_dict(
            {k: sum(w * v[k] for w, v in zip(share, values, strict=True)) for k in values[0]}
        )
        self._keep(made, set_active)

    def get_output_embeddings(self) -> Any:
        """The matrices over the vocabulary of the active heads: one, a list, or None."""
        found = [self.heads[n].get_output_embeddings() for n in names_in(self.active_head)]
        found = [f for f in found if f is not None]
        return found[0] if len(found) == 1 else found or None

    def tie_weights(self) -> None:
        """Share the token table with the heads where the configuration ties words."""
        self.flexible.tie(self.backbone)

    def freeze_embeddings(self, freeze: bool = True) -> None:
        """Stop (or allow) training of the active heads' matrices over the vocabulary."""
        found = self.get_output_embeddings()
        for module in found if isinstance(found, list) else [found] if found is not None else []:
            module.requires_grad_(not freeze)

    def can_generate(self) -> bool:
        """Whether the active head scores next tokens."""
        active = self.active_head
        if not isinstance(active, str):
            return False
        kind = self.heads[active].config.get("head_type")
        return kind == "seq2seq_lm" if self.is_encoder_decoder else kind == "causal_lm"

    def follow_adapters(self) -> None:
        """Activate the heads that bear the names of the active adapters, where all of them are there."""
        found = heads_of(self.active_adapters)
        names = names_in(found)
        if names and all(name in self.heads for name in names):
            self.active_head = found

    def set_active_adapters(self, adapter_setup: Any, skip_layers: list[int] | None = None) -> None:
        """Activate a setup of adapters, and the heads of the same names."""
        api.set_active_adapters(self, adapter_setup, skip_layers)
        self.follow_adapters()

    def add_adapter(
        self, adapter_name: str, config: Any = None, overwrite_ok: bool = False, set_active: bool = False
    ) -> None:
        """Add a fresh adapter."""
        api.add_adapter(self, adapter_name, config, overwrite_ok, set_active)
        if set_active:
            self.follow_adapters()

    def train_adapter(self, adapter_setup: Any, train_embeddings: bool = False) -> None:
        """Freeze the bare model, train the adapters of the setup and the heads, and activate them."""
        api.train_adapter(self, adapter_setup, train_embeddings)
        self.follow_adapters()
        if not train_embeddings:
            self.freeze_embeddings()

    def train_adapter_fusion(self, adapter_setup: Any, unfreeze_adapters: bool = False) -> None:
        """Freeze the bare model and the adapters, train the fusions and the heads, and activate them."""
        api.train_adapter_fusion(self, adapter_setup, unfreeze_adapters)
        self.follow_adapters()
        self.freeze_embeddings()

    def adapter_to(self, name: str, device: Any = None, dtype: torch.dtype | None = None) -> None:
        """Move an adapter, and the head of its name, to a device or dtype."""
        api.adapter_to(self, name, device, dtype)
        if name in self.heads:
            self.heads[name].to(device=device, dtype=dtype)

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Write the bare model and all heads into a folder, in public format."""
        self._write_config()
        super().save_pretrained(save_directory, **options)  # type: ignore[misc]
