"""Sentence embeddings from sentence-transformers folders: encoder, pooling, dense layers, normalisation.

The folder's modules.json lists the steps; a folder without one is an encoder with mean pooling.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.checkpoints import open_weights, read_json, resolve, safe_join
from phyla.errors import ArgumentError, CheckpointError, ConfigError, nearest
from phyla.pipelines.pooling import Pooling

Step = Callable[[Tensor], Tensor]

# Public class names end in these words; the package before them changed over the years.
ACTIVATIONS: dict[str, Step] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
}


@dataclass
class Dense:
    """activation(x W^T + b) on the pooled vector."""

    weight: Tensor  # (out, in)
    bias: Tensor | None
    activation: Step

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(F.linear(x, self.weight, self.bias))


@dataclass
class Norm:
    """Layer normalisation of the pooled vector."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


@dataclass
class Normalize:
    """x / |x|, so that a dot product is a cosine."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.normalize(x, p=2.0, dim=-1)


@dataclass
class SentenceEncoder:
    """Turns texts into vectors: tokenizer, encoder, pooling, then the further steps of the folder.

    `max_length` counts tokens, special ones included; longer texts are cut. `prompts` are texts to put before
    every input, by name.
    """

    model: Any
    tokenizer: Any
    pooling: Pooling
    steps: list[Step] = field(default_factory=list)
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: "str | os.PathLike[str]",
        *,
        torch_dtype: "torch.dtype | str | None" = None,
        device: "torch.device | str | None" = None,
        revision: str | None = None,
        cache_dir: "str | os.PathLike[str] | None" = None,
        local_files_only: bool = False,
        token: "str | bool | None" = None,
    ) -> "SentenceEncoder":
        """Load a folder, a hub id or an installed weight package.

        Raises MissingFileError where files are absent, ConfigError for a step that phyla does not know.
        """
        from phyla import AutoModel, AutoTokenizer

        folder = resolve(
            source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        modules = read_modules(folder)
        encoder_folder = safe_join(folder, modules[0][1]) if modules and modules[0][1] else folder
        model = AutoModel.from_pretrained(encoder_folder, torch_dtype=torch_dtype)
        if device is not None:
            model.to(device)
        model.eval()
        pooling, steps = Pooling(("mean",)), []
        for kind, path in modules[1:]:
            place = safe_join(folder, path) if path else folder
            if kind == "Pooling":
                pooling = Pooling.from_config(read_json(place / "config.json"))
            else:
                steps.append(read_step(kind, place, model))
        settings = encoder_settings(encoder_folder)
        about = optional_json(folder / "config_sentence_transformers.json")
        tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
        return cls(
            model=model,
            tokenizer=tokenizer,
            pooling=pooling,
            steps=steps,
            max_length=settings.get("max_seq_length") or context_length(model, tokenizer),
            lower_case=bool(settings.get("do_lower_case", False)),
            prompts=dict(about.get("prompts") or {}),
            default_prompt=about.get("default_prompt_name"),
        )

    def encode(
        self,
        sentences: "str | Sequence[str]",
        *,
        batch_size: int = 32,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        progress: "Callable[[int], None] | None" = None,
    ) -> np.ndarray:
        """Embeddings in float32, shape (texts, size), or (size,) for one string; in the order given.

        `normalize` True divides each by its length, False leaves out the folder's own normalisation, None
        does what the folder says. `progress` is called with the number of texts done after each batch.
        Raises ArgumentError for a batch size below 1, an unknown prompt name or something that is not text.
        """
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
            raise ArgumentError(
                f"sentences must be text, but item {wrong[0]} is a {type(texts[wrong[0]]).__name__}"
            )
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, but is {batch_size}")
        prefix = self.prefix(prompt, prompt_name)
        skip = len(self.tokens([prefix])[0]) - self.closing_tokens() if prefix else 0
        rows = self.tokens([prefix + text for text in texts])
        steps = [step for step in self.steps if normalize is None or not isinstance(step, Normalize)]
        if normalize:
            steps.append(Normalize())
        # Neighbours in length share a batch, so that little is computed on padding; the longest go first, so
        # that memory that does not suffice shows at once.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        results: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(rows)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            vectors = self.forward([rows[i] for i in chosen], steps, skip)
            for index, vector in zip(chosen, vectors.float().cpu().numpy()):
                results[index] = vector[:truncate_dim]
            if progress is not None:
                progress(start + len(chosen))
        if isinstance(sentences, str):
            return results[0]
        return np.stack(results) if results else np.empty((0, self.size(truncate_dim)), dtype=np.float32)

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Cosines between rows: (n, size) and (m, size) give (n, m)."""
        left, right = np.atleast_2d(left), np.atleast_2d(right)
        lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None]
        return left @ right.T / np.maximum(lengths, 1e-12)

    @torch.inference_mode()
    def forward(self, rows: list[list[int]], steps: list[Step], skip: int) -> Tensor:
        """Vectors (batch, size) of some token ids; `skip` leading prompt tokens stay out of the pooling."""
        batch = self.tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt")
        ids = batch["input_ids"].to(self.model.device)
        mask = batch["attention_mask"].to(self.model.device)
        if getattr(self.model, "is_encoder_decoder", False):
            hidden = self.model.encode(input_ids=ids, attention_mask=mask).last_hidden_state
        else:
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors = self.pooling(hidden, mask, skip)
        for step in steps:
            vectors = step(vectors)
        return vectors

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, cut to the model's length."""
        if not texts:
            return []
        if self.lower_case:
            texts = [text.lower() for text in texts]
        return self.tokenizer(
            texts,
            truncation=self.max_length is not None,
            max_length=self.max_length,
            padding=False,
        )["input_ids"]

    def closing_tokens(self) -> int:
        """How many special tokens stand after a text ([SEP], </s>): they do not belong to a prompt."""
        ids = self.tokens(["a"])[0]
        special = set(self.tokenizer.all_special_ids)
        count = 0
        while count < len(ids) and ids[-1 - count] in special:
            count += 1
        return count

    def prefix(self, prompt: str | None, name: str | None) -> str:
        """The text to put before every input."""
        if prompt is not None:
            return prompt
        name = name or self.default_prompt
        if name is None:
            return ""
        if name not in self.prompts:
            raise ArgumentError(
                f"no prompt named {name!r}; there are {sorted(self.prompts)}.{nearest(name, self.prompts)}"
            )
        return self.prompts[name]

    def size(self, truncate_dim: int | None = None) -> int:
        """Elements of an embedding."""
        size = self.model.config.hidden_size * len(self.pooling.modes)
        for step in self.steps:
            if isinstance(step, Dense):
                size = step.weight.shape[0]
        return min(size, truncate_dim) if truncate_dim else size


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """(class name, subfolder) of each step of modules.json, in order; empty where there is none."""
    if not folder.is_dir() or not (folder / "modules.json").exists():
        return []
    rows = read_json(folder / "modules.json", kind=list)
    if not all(isinstance(r, dict) and "type" in r for r in rows):
        raise ConfigError(f"modules.json must be a list of objects with a type ({folder / 'modules.json'})")
    modules = [(str(row["type"]).rpartition(".")[2], str(row.get("path", ""))) for row in rows]
    if not modules or modules[0][0] != "Transformer":
        found = modules[0][0] if modules else "nothing"
        raise ConfigError(
            f"the first module must be a Transformer, but is {found} ({folder / 'modules.json'})"
        )
    return modules


def read_step(kind: str, folder: Path, model: Any) -> Step:
    """A step after the pooling, in the model's dtype and on its device."""
    if kind == "Normalize":
        return Normalize()
    if kind not in ("Dense", "LayerNorm"):
        raise ConfigError(
            f"modules of kind {kind!r} are not known to phyla ({folder}); "
            "known are Transformer, Pooling, Dense, LayerNorm, Normalize"
        )
    weights = open_weights(folder)

    def tensor(name: str) -> Tensor:
        if name not in weights.infos:
            raise CheckpointError(f"the {kind} module in {folder} has no tensor {name!r}")
        return weights.read(name).to(device=model.device, dtype=model.dtype)

    if kind == "LayerNorm":
        return Norm(tensor("norm.weight"), tensor("norm.bias"))
    config = read_json(folder / "config.json")
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"activation {name!r} is not known; known are {', '.join(ACTIVATIONS)} ({folder / 'config.json'})"
        )
    bias = tensor("linear.bias") if config.get("bias", True) else None
    return Dense(tensor("linear.weight"), bias, ACTIVATIONS[name])


def encoder_settings(folder: Path) -> dict[str, Any]:
    """Greatest length and lower-casing, from `sentence_*_config.json` (* is the kind of encoder)."""
    found = sorted(folder.glob("sentence_*_config.json")) if folder.is_dir() else []
    return read_json(found[0]) if found else {}


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is not there."""
    return read_json(path) if path.is_file() else {}


def context_length(model: Any, tokenizer: Any) -> int | None:
    """The smaller of the model's and the tokenizer's greatest number of tokens, where they name one."""
    lengths = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
    known = [int(n) for n in lengths if isinstance(n, (int, float)) and 0 < n < 1_000_000]
    return min(known) if known else None
