"""Loads what a command works with, with a spinner for people."""

from typing import Any

from phyla.cli.options import Dtype
from phyla.cli.terminal import waiting


def load_language_model(
    source: str, dtype: Dtype | None, device: str | None, revision: str | None, quantized: bool
) -> tuple[Any, Any]:
    """(model, tokenizer) of one source; an encoder-decoder where its config says so."""
    with waiting(f"loading {source}"):
        import phyla

        tokenizer = phyla.AutoTokenizer.from_pretrained(source, **revised(revision))
        config = phyla.AutoConfig.from_pretrained(source, **revised(revision))
        kind = phyla.AutoModelForSeq2SeqLM if config.is_encoder_decoder else phyla.AutoModelForCausalLM
        model = kind.from_pretrained(
            source, torch_dtype=torch_dtype(dtype), quantized=quantized, **revised(revision)
        ).eval()
        if device is not None:
            model.to(device)
    return model, tokenizer


def revised(revision: str | None) -> dict[str, str]:
    """The revision as an argument, where there is one."""
    return {} if revision is None else {"revision": revision}


def torch_dtype(dtype: Dtype | None) -> Any:
    """The torch dtype of an option ("auto" and None stay)."""
    if dtype is None or dtype is Dtype.auto:
        return None if dtype is None else "auto"
    import torch

    return getattr(torch, dtype.value)
