"""What models return: ordered fields readable by attribute, key or index, under the public names."""

from collections import OrderedDict
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar

from torch import Tensor
from torch.utils._pytree import register_pytree_node
from typing_extensions import dataclass_transform


@dataclass_transform()
class ModelOutput(OrderedDict):
    """Fields that are not None, by attribute (`out.logits`), key (`out["logits"]`) or position (`out[0]`)."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(cls)
        # Captured graphs (torch.export, torch.compile) take outputs apart and put them together again.
        register_pytree_node(
            cls,
            lambda out: (list(out.values()), list(out.keys())),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
            to_dumpable_context=list,
            from_dumpable_context=list,
        )

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                OrderedDict.__setitem__(self, field.name, value)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return OrderedDict.__getitem__(self, key)
        return self.to_tuple()[key]

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None and name in self.keys():
            OrderedDict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        OrderedDict.__setitem__(self, key, value)
        object.__setattr__(self, key, value)

    def __reduce__(self) -> tuple:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order."""
        return tuple(self[k] for k in self.keys())


Many = tuple[Tensor, ...] | None
One = Tensor | None
