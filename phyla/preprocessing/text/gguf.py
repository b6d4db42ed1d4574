"""Public tokenizer objects from GGUF files."""

from pathlib import Path
from typing import Any

from .fast import PreTrainedTokenizerFast


def load_gguf(path: Path, name: str, given: dict, cls: Any) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file as `cls`, or as the class that its metadata names where `cls` is None or
    in Python.
    """
    from .auto import class_named
    from .gguf_tokenizer import from_gguf

    backend, config = from_gguf(path)
    settings = {**config, **given}
    kind = settings.pop("tokenizer_class", None)
    if cls is None or not cls.is_fast:
        cls = class_named(kind if kind is None or kind.endswith("Fast") else f"{kind}Fast")
    if cls is None or not cls.is_fast:
        cls = PreTrainedTokenizerFast
    if cls is PreTrainedTokenizerFast:  # a family's own class says what its models take
        settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
    return cls(tokenizer_object=backend, name_or_path=name, **settings)
