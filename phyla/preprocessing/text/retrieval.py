"""A retriever with its two tokenizers, from a folder and into one."""

import os
from pathlib import Path
from typing import Any

from phyla.auto import AutoConfig
from phyla.preprocessing.text.auto import AutoTokenizer

_PARTS = ("question_encoder", "generator")


def retriever_from_pretrained(
    cls: type, retriever_name_or_path: str | os.PathLike, indexed_dataset: Any = None, **options: Any
) -> Any:
    """The retriever of a checkpoint; indexed_dataset replaces the index that its configuration names."""
    config = options.pop("config", None) or AutoConfig.from_pretrained(retriever_name_or_path)
    index = options.pop("index", indexed_dataset)
    readers = {
        f"{part}_tokenizer": AutoTokenizer.from_pretrained(
            retriever_name_or_path, subfolder=f"{part}_tokenizer", config=getattr(config, part), **options
        )
        for part in _PARTS
    }
    return cls(config, **readers, index=index)


def save_retriever(self: Any, save_directory: str | os.PathLike) -> None:
    """Write the configuration and both tokenizers; the index stays where it is."""
    folder = Path(save_directory)
    self.config.save_pretrained(folder)
    for part in _PARTS:
        getattr(self, f"{part}_tokenizer").save_pretrained(folder / f"{part}_tokenizer")
