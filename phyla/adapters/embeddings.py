"""Further token tables of a model: added for another tokenizer, switched, trained, saved and loaded.

The folder has embedding.pt, the table (V, D), and the tokenizer beside it, as the public library writes them.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phyla.adapters.api import adapters_of
from phyla.adapters.registry import Adapters, check_name, module_key
from phyla.checkpoints.atomic import atomic_write
from phyla.errors import AdapterError, MissingFileError, ShapeMismatchError, nearest
from phyla.model import PreTrainedModel, places_of

FILE, FOLDER, DEFAULT = "embedding.pt", "tokenizer", "default"


def _name_of(key: str) -> str:
    return key[1:].replace("\u2024", ".")


def _tables(adapters: Adapters, model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Every table by name; the model's own is `default`."""
    found = {_name_of(key): table for key, table in adapters.tables.items()}
    found[adapters.table] = model.get_input_embeddings().weight
    return found


def _find(model: PreTrainedModel, name: str) -> nn.Parameter:
    tables = _tables(adapters_of(model), model)
    if name not in tables:
        raise AdapterError(f"the model has no embeddings {name!r}.{nearest(name, tables)}")
    return tables[name]


def _new(model: PreTrainedModel, name: str) -> None:
    if check_name(name) in _tables(adapters_of(model), model):
        raise AdapterError(f"the model has embeddings {name!r} already: delete them first")


@torch.no_grad()
def add_embeddings(
    self: PreTrainedModel, name: str, tokenizer: Any, reference_embedding: str | None = None,
    reference_tokenizer: Any = None, embedding_dim: int | None = None,
) -> None:  # fmt: skip
    """Add a fresh table for a tokenizer and activate it.

    Tokens that the reference tokenizer knows too begin with their vectors in the reference table.
    """
    _new(self, name)
    if (reference_embedding is None) != (reference_tokenizer is None):
        raise AdapterError("reference_embedding and reference_tokenizer go together: pass both or neither")
    like: Any = self.get_input_embeddings().weight
    table = torch.empty(len(tokenizer), embedding_dim or like.shape[1], dtype=like.dtype, device=like.device)
    table.normal_(0.0, 0.02)
    if reference_embedding is not None:
        old, known = _find(self, reference_embedding), reference_tokenizer.get_vocab()
        pairs = [(i, known[t]) for t, i in tokenizer.get_vocab().items() if t in known]
        if pairs:
            rows, source = (torch.tensor(side, device=like.device) for side in zip(*pairs, strict=True))
            table[rows] = old[source]
    _keep(self, name, table)


def _keep(model: PreTrainedModel, name: str, table: Tensor) -> None:
    weight: Any = model.get_input_embeddings().weight
    width = weight.shape[1]
    if table.dim() != 2 or table.shape[1] != width:
        raise ShapeMismatchError(f"embeddings must be (vocabulary, {width}), but are {tuple(table.shape)}")
    adapters_of(model).tables[module_key(name)] = nn.Parameter(table, requires_grad=False)
    set_active_embeddings(model, name)


def set_active_embeddings(self: PreTrainedModel, name: str) -> None:
    """Use a table; an output matrix that is tied to it goes along, unless a bias of another size forbids."""
    adapters, table = adapters_of(self), _find(self, name)
    if name == adapters.table:
        return
    old = self.get_input_embeddings().weight
    for module, leaf in places_of(self)[id(old)]:
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor) and len(bias) != len(table):
            continue
        module._parameters[leaf] = table
    adapters.tables[module_key(adapters.table)] = old
    del adapters.tables[module_key(name)]
    adapters.table = name
    self.config.vocab_size = len(table)


def get_active_embeddings(self: PreTrainedModel) -> str:
    """The name of the table in use."""
    return adapters_of(self).table


def get_loaded_embeddings(self: PreTrainedModel) -> dict[str, nn.Parameter]:
    """All tables by name."""
    return _tables(adapters_of(self), self)


def delete_embeddings(self: PreTrainedModel, name: str) -> None:
    """Take a table away; where it was in use, the model's own comes back."""
    _find(self, name)
    if name == DEFAULT:
        raise AdapterError("the model's own embeddings cannot be deleted")
    if adapters_of(self).table == name:
        set_active_embeddings(self, DEFAULT)
    del adapters_of(self).tables[module_key(name)]


def save_embeddings(self: PreTrainedModel, path: Any, name: str, tokenizer: Any = None) -> None:
    """Write a table, and the tokenizer if given, into a folder."""
    folder, buffer = Path(path), io.BytesIO()
    torch.save(nn.Parameter(_find(self, name).detach().clone()), buffer)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / FILE, buffer.getvalue())
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / FOLDER)


def load_embeddings(self: PreTrainedModel, path: Any, name: str) -> Any:
    """Read a table from a folder and activate it; the tokenizer that lies beside it, or None."""
    folder = Path(path)
    _new(self, name)
    if not (folder / FILE).is_file():
        raise MissingFileError(f"{folder} must hold {FILE}, but does not")
    table = torch.load(folder / FILE, weights_only=True, map_location="cpu")
    if not isinstance(table, Tensor):
        raise AdapterError(f"{folder / FILE} must hold one tensor, but holds {type(table).__name__}")
    like: Any = self.get_input_embeddings().weight
    _keep(self, name, table.detach().to(like.device, like.dtype))
    if not (folder / FOLDER).is_dir():
        return None
    from phyla.preprocessing.text.auto import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / FOLDER)
