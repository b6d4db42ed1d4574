"""What a head is: a frozen description in a family's table, and the module it makes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from phyla.outputs import BaseModelOutput, ModelOutput

if TYPE_CHECKING:
    from phyla.checkpoints.names import NameMap


@dataclass
class Call:
    """What the caller passed besides the inputs of the backbone."""

    config: Any
    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    labels: Tensor | None = None
    start_positions: Tensor | None = None
    end_positions: Tensor | None = None
    next_sentence_label: Tensor | None = None
    pixel_values: Tensor | None = None
    bool_masked_pos: Tensor | None = None
    return_loss: bool = False
    logits_to_keep: int | Tensor = 0
    num_choices: int = 0
    mc_token_ids: Tensor | None = None
    mc_labels: Tensor | None = None
    num_items_in_batch: int | Tensor | None = None


class HeadModule(nn.Module):
    """Turns a backbone's output into the fields of a public output."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        """Fields such as `loss` and `logits` from the output of the backbone (a StackOutput or its like)."""
        raise TypeError(f"{type(self).__name__} must define forward(out, call)")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def tie(self, backbone: nn.Module) -> None:
        """Share parameters with the backbone where the head is declared tied."""


@dataclass(frozen=True)
class Head:
    """One public class of a family: its task, output, public names, and what it needs of the backbone.

    names: our path below the head -> public path, or config -> that table. prefix: of the backbone's names in
    this class's files, where it is not the family's. pool: whether the class has the backbone's pool. build,
    table: another backbone than the family's, with its name map (an encoder alone). changes: config keys that
    this class sets.
    """

    task: ClassVar[str] = ""
    needs_states: ClassVar[bool] = False  # whether the head reads the states of all layers
    routed: ClassVar[bool] = False  # whether calls return the scores of routers unless told otherwise
    names: "Mapping[str, Any] | NameMap | Callable[[Any], Any]" = field(default_factory=dict)
    output: type[ModelOutput] = BaseModelOutput
    pool: bool = False
    prefix: str | None = None
    build: Callable[[Any], Any] | None = None
    table: Any = None
    skeleton: type | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def make(self, config: Any, width: int) -> HeadModule | None:
        """The module for a backbone whose states are `width` wide; None for the bare backbone."""
        return None

    def wrap(self, spec: Any, config: Any) -> Any:
        """The description of the backbone as this class has it (a feature extractor puts it into a frame)."""
        return spec

    def place(self, names: Any, config: Any) -> Any:
        """The name map of `wrap(spec)`, given that of the spec."""
        return names


@dataclass(frozen=True)
class Backbone(Head):
    """The bare backbone under its public name."""

    task: ClassVar[str] = "base-model"
    pool: bool = False
