"""Collators that stack examples of one length, and the one that puts all of them in one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..text.batch import framework_of, is_mapping
from .arrays import arrays, plain_list


def _is_int(value: Any) -> bool:
    return isinstance(value.item() if hasattr(value, "item") else value, int)


def default_data_collator(features: list, return_tensors: str = "pt") -> dict[str, Any]:
    """Each input of the examples (mappings, or objects with attributes) stacked; texts and None are left out.

    `label` (one number) and `label_ids` (a list) become `labels`, integers or floats as they are.
    """
    make = arrays(return_tensors)
    rows: list[Mapping] = [one if is_mapping(one) else vars(one) for one in features]
    first, batch = rows[0], {}
    if first.get("label") is not None:
        kind = "int" if _is_int(first["label"]) else "float"
        batch["labels"] = make.tensor([plain_number(row["label"]) for row in rows], kind)
    elif first.get("label_ids") is not None:
        if framework_of(first["label_ids"]) is not None:
            batch["labels"] = make.stack([row["label_ids"] for row in rows])
        else:
            kind = "int" if isinstance(first["label_ids"][0], int) else "float"
            batch["labels"] = make.tensor([row["label_ids"] for row in rows], kind)
    for name, value in first.items():
        if name in ("label", "label_ids") or value is None or isinstance(value, str):
            continue
        values = [row[name] for row in rows]
        is_array = framework_of(value) is not None and hasattr(value, "ndim")
        batch[name] = make.stack(values) if is_array else make.tensor(values)
    return batch


def plain_number(value: Any) -> Any:
    """A number of a number or an array of one."""
    return value.item() if hasattr(value, "item") else value


@dataclass
class DefaultDataCollator:
    """`default_data_collator` as an object."""

    return_tensors: str = "pt"

    def __call__(self, features: list, return_tensors: str | None = None) -> dict[str, Any]:
        """The batch of the examples."""
        return default_data_collator(features, return_tensors or self.return_tensors)


@dataclass
class DataCollatorWithFlattening(DefaultDataCollator):
    """All examples in one row without padding; `position_ids` start anew with each of them.

    The first label of each example is `separator_id`, so that none is predicted from the one before.
    """

    return_position_ids: bool = True
    separator_id: int = -100

    def __call__(
        self, features: list, return_tensors: str | None = None, separator_id: int | None = None
    ) -> dict[str, Any]:
        """`input_ids`, `labels` and `position_ids`, each (1, all tokens)."""
        separator = self.separator_id if separator_id is None else separator_id
        row: dict[str, list[int]] = {"input_ids": [], "labels": []}
        if self.return_position_ids:
            row["position_ids"] = []
        source = "labels" if "labels" in features[0] else "input_ids"
        for one in features:
            ids = plain_list(one["input_ids"])
            row["input_ids"] += ids
            row["labels"] += [separator, *plain_list(one[source])[1:]]
            if self.return_position_ids:
                row["position_ids"] += range(len(ids))
        return default_data_collator([row], return_tensors or self.return_tensors)
