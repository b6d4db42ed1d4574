"""GGUF files as checkpoints: public names, public config, values in float32 or the quantised blocks
themselves."""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from phyla.checkpoints.gguf_config import public_config
from phyla.checkpoints.gguf_header import GGML_TYPES, GGUFTensor, read_header
from phyla.checkpoints.gguf_names import NAMES, Source, public_sources
from phyla.checkpoints.gguf_quants import PLAIN_TYPES, dequantize
from phyla.checkpoints.paths import open_regular, read_exactly
from phyla.checkpoints.weights import PackedTensor, TensorInfo, Weights
from phyla.errors import CheckpointError, CorruptFileError

_LONGEST_TABLE = 1 << 16


@dataclass(frozen=True)
class _Heads:
    query: int
    key_value: int


class GGUFFile(Weights):
    """One GGUF file; `infos` has public names, `config` the public config.json, `header` all metadata
    (tokenizer included)."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.file = open_regular(self.path)
        try:
            self.header = read_header(self.path)
            self._check_state()
            self._open()
        except BaseException:
            self.file.close()
            raise

    def _check_state(self) -> None:
        status = os.fstat(self.file.fileno())
        named = os.stat(self.path)
        if (status.st_ino, status.st_size) != (named.st_ino, named.st_size):
            raise CorruptFileError(f"{self.path} was overwritten while it was read; load it again")
        self.state = status.st_size, status.st_mtime_ns

    def _open(self) -> None:
        if self.header.byteorder != "<":
            raise CheckpointError(
                f"{self.path} is a big-endian GGUF file; convert it with gguf's convert_endian script"
            )
        if self.header.metadata.get("split.count", 0) not in (0, 1):
            raise CheckpointError(
                f"{self.path} is one piece of a split GGUF file; join them with llama.cpp's gguf-split "
                "--merge"
            )
        self.tensors = {tensor.name: tensor for tensor in self.header.tensors}
        config, key = public_config(self.header, self._table)
        self.heads = _heads(config)
        stored = [(t.name, t.shape[0] if t.shape else 1) for t in self.header.tensors]
        self.sources = public_sources(NAMES[key], stored)
        infos = {name: self._info(name, source) for name, source in self.sources.items()}
        texts = {
            k: v for k, v in self.header.metadata.items() if k.startswith("general.") and isinstance(v, str)
        }
        super().__init__(infos, texts, config)

    def _info(self, name: str, source: Source) -> TensorInfo:
        tensor = self.tensors[source.name]
        kind = GGML_TYPES[tensor.ggml_type][0]
        dtype = PLAIN_TYPES.get(kind, torch.float32)
        quant = None if kind == "F32" or not dtype.is_floating_point else kind
        shape = _public_shape(tensor.shape, source)
        return TensorInfo(name, shape, torch.float32 if dtype.is_floating_point else dtype, self.path, quant)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor in float32 (integers stay integers) or `dtype`, in the public layout."""
        self.info(name)
        source = self.sources[name]
        tensor = self.tensors[source.name]
        values = dequantize(self._raw(tensor, source), GGML_TYPES[tensor.ggml_type][0])
        values = _public_values(
            values.view(_public_shape(tensor.shape, Source(source.name, part=source.part))), source
        )
        return values if dtype is None else values.to(dtype)

    def read_packed(self, name: str) -> PackedTensor | None:
        info, source = self.info(name), self.sources[name]
        if (
            info.quant is None
            or info.quant in PLAIN_TYPES
            or source.layout in _VALUE_LAYOUTS
            or len(info.shape) != 2
        ):
            return None
        raw = self._raw(self.tensors[source.name], source)
        return PackedTensor(raw.view(info.shape[0], -1), info.quant, info.shape)

    def _raw(self, tensor: GGUFTensor, source: Source) -> torch.Tensor:
        """The blocks of a tensor, or of its part, with rows in the public order: uint8, flat."""
        if self.file.closed:
            raise ValueError(f"{self.path} was closed; open it again to read more tensors")
        size, start = tensor.nbytes, self.header.data_offset + tensor.offset
        if source.part is not None:
            size //= tensor.shape[0]
            start += size * source.part
        raw = torch.empty(size, dtype=torch.uint8)
        read_exactly(self.file, raw.numpy().data, start, self.path)
        status = os.fstat(self.file.fileno())
        if (status.st_size, status.st_mtime_ns) != self.state:
            raise CorruptFileError(f"{self.path} was overwritten while it was read; load it again")
        if source.layout in _ROW_LAYOUTS and size:
            order = self._row_order(tensor, source.layout)
            raw = raw.view(len(order), -1).index_select(0, order).view(-1)
        return raw

    def _row_order(self, tensor: GGUFTensor, layout: str) -> torch.Tensor:
        """For each row of the public tensor, the row of the file it is."""
        rows, heads = tensor.shape[0], self.heads
        groups = {"rope_q": 2 * heads.query, "rope_k": 2 * heads.key_value, "qkv_heads": 3 * heads.query}
        count = groups.get(layout, heads.query + 2 * heads.key_value)
        if not count or rows % count or (layout == "qkv_groups" and heads.query % heads.key_value):
            raise CorruptFileError(
                f"{self.path}: tensor {tensor.name!r} has {rows} rows, which {heads.query} heads and "
                f"{heads.key_value} "
                "key-value heads do not divide"
            )
        width = rows // count
        if layout in ("rope_q", "rope_k"):
            return torch.arange(rows).view(count // 2, width, 2).transpose(1, 2).reshape(-1)
        if layout == "qkv_heads":
            return torch.arange(rows).view(3, heads.query, width).transpose(0, 1).reshape(-1)
        q, k, v = torch.arange(rows).split(
            [heads.query * width, heads.key_value * width, heads.key_value * width]
        )
        shape = heads.key_value, -1, width
        return torch.cat([q.view(shape), k.view(shape), v.view(shape)], dim=1).reshape(-1)

    def _table(self, name: str) -> list[float]:
        """A short tensor as numbers, for the config."""
        tensor = self.tensors.get(name)
        if tensor is None or prod(tensor.shape) > _LONGEST_TABLE:
            raise CorruptFileError(f"{self.path} should hold a short table {name!r}")
        return dequantize(self._raw(tensor, Source(name)), GGML_TYPES[tensor.ggml_type][0]).tolist()

    def close(self) -> None:
        self.file.close()


_ROW_LAYOUTS = ("rope_q", "rope_k", "qkv_heads", "qkv_groups")
# Layouts that change values or columns, so that the blocks cannot stand for the public tensor.
_VALUE_LAYOUTS = ("transpose", "minus_one", "a_log", "conv", "row")


def _heads(config: dict) -> _Heads:
    query = next((config[k] for k in ("num_attention_heads", "n_head", "num_heads") if k in config), 0)
    key_value = next((config[k] for k in ("num_key_value_heads", "num_kv_heads") if k in config), query)
    return _Heads(query, key_value)


def _public_shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    if source.part is not None:
        return shape[1:]
    if source.layout == "transpose" and len(shape) == 2:
        return shape[::-1]
    if source.layout == "conv" and len(shape) == 2:
        return shape[0], 1, shape[1]
    if source.layout == "row" and len(shape) == 1:
        return 1, shape[0]
    return shape


def _public_values(values: torch.Tensor, source: Source) -> torch.Tensor:
    if source.layout == "transpose" and values.ndim == 2:
        return values.t().contiguous()
    if source.layout == "minus_one" and source.name.endswith(".weight"):
        return values - 1
    if source.layout == "a_log":
        return (-values).log()
    if source.layout in ("conv", "row"):
        return values.view(_public_shape(tuple(values.shape), source))
    return values
