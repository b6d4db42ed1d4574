"""AutoAdapterModel: a checkpoint of any class in, its family's model with flexible heads out."""

from typing import Any

from phyla.adapters.heads.model import adapter_class, class_named
from phyla.auto import _AutoModel
from phyla.config import PretrainedConfig


class AutoAdapterModel(_AutoModel):
    """Models with flexible heads, by the model_type of the checkpoint."""

    @classmethod
    def _class_for(cls, config: PretrainedConfig) -> Any:
        return adapter_class(config.model_type)


def named(name: str) -> Any:
    """`AutoAdapterModel`, or `XAdapterModel` by its public name; None for others."""
    return AutoAdapterModel if name == "AutoAdapterModel" else class_named(name)
