"""What calls of models with several heads, and with a parsing head, return."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from phyla.errors import AdapterError
from phyla.outputs import ModelOutput
from phyla.outputs.base import Many, One


class MultiHeadOutput(ModelOutput):
    """One output for each head, by attribute or number (`out[0]`), and the sum of their losses."""

    head_outputs: Any = None
    loss: One = None

    @property
    def logits(self) -> Tensor:
        """The scores of all heads below each other; AdapterError where they differ in width."""
        found = [out["logits"] for out in self.head_outputs]
        if len({f.shape[1:] for f in found}) > 1:
            raise AdapterError(
                f"the heads score {[tuple(f.shape[1:]) for f in found]}, which do not fit together: "
                "read head_outputs"
            )
        return torch.cat(found)

    def __getitem__(self, key: Any) -> Any:
        return self.head_outputs[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.head_outputs)

    def __len__(self) -> int:
        return len(self.head_outputs)


class DependencyParsingOutput(ModelOutput):
    """Scores of relations (B, S, S + 1, labels) and arcs (B, S, S + 1) between words; 0 is the root."""

    loss: One = None
    rel_preds: One = None
    arc_preds: One = None
    hidden_states: Many = None
    attentions: Many = None
