"""From a quantization_config to the scheme that reads it, and to the one that makes its weights at load."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from phyla.errors import ArgumentError, ConfigError, nearest
from phyla.quantization.awq import AWQ
from phyla.quantization.awq_gemv import AWQGemv, AWQGemvFast
from phyla.quantization.bitsandbytes import KINDS, EightBits, FourBits
from phyla.quantization.compressed import Compressed
from phyla.quantization.fp8 import FBGEMM, FP8
from phyla.quantization.gptq import GPTQ
from phyla.quantization.hqq import HQQ
from phyla.quantization.marlin import AWQMarlin, GPTQMarlin
from phyla.quantization.mxfp4 import MXFP4
from phyla.quantization.quanto import Quanto
from phyla.quantization.scheme import Scheme
from phyla.quantization.torchao import TorchAO, quant_type


def _bitsandbytes(config: dict[str, Any]) -> Scheme:
    if config.get("load_in_8bit"):
        return EightBits()
    kind = config.get("bnb_4bit_quant_type", "fp4")
    if not config.get("load_in_4bit") or kind not in KINDS:
        raise ConfigError(
            "a quantization_config of bitsandbytes must have load_in_8bit, or load_in_4bit with "
            f"bnb_4bit_quant_type of {' or '.join(KINDS)}, but has "
            f"{ {k: config.get(k) for k in ('load_in_8bit', 'load_in_4bit', 'bnb_4bit_quant_type')} }"
        )
    return FourBits(kind, bool(config.get("bnb_4bit_use_double_quant")))


def _gptq(config: dict[str, Any]) -> Scheme:
    is_marlin = config.get("checkpoint_format") == "marlin" or config.get("is_marlin_format")
    return GPTQMarlin.read(config) if is_marlin else GPTQ.read(config)


def _awq(config: dict[str, Any]) -> Scheme:
    kinds = {"gemv": AWQGemv, "gemv_fast": AWQGemvFast, "marlin": AWQMarlin}
    return kinds.get(str(config.get("version", "gemm")).lower(), AWQ).read(config)  # type: ignore[attr-defined]


READERS: dict[str, Callable[[dict[str, Any]], Scheme]] = {
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": Compressed.read,
    "fbgemm_fp8": lambda config: FBGEMM(),
    "fp8": FP8.read,
    "gptq": _gptq,
    "hqq": HQQ.read,
    "mxfp4": MXFP4.read,
    "quanto": Quanto.read,
    "torchao": TorchAO.read,
}


def reader_of(config: Any, where: Any) -> Scheme:
    """The scheme that a checkpoint's quantization_config names; ConfigError for one that is not read."""
    data = config if isinstance(config, dict) else config.to_dict()
    method = str(data.get("quant_method") or _guessed(data))
    if method not in READERS:
        raise ConfigError(
            f"quantization_config.quant_method must be one of {', '.join(READERS)} to be read, but is "
            f"{method!r} ({where}); load the checkpoint that it was made from.{nearest(method, READERS)}"
        )
    return READERS[method](data)


def _guessed(data: dict[str, Any]) -> str:
    """Old files of bitsandbytes do not name their method."""
    return "bitsandbytes" if data.get("load_in_4bit") or data.get("load_in_8bit") else ""


def _quanto(config: dict[str, Any]) -> Scheme:
    if config.get("activations"):
        raise ArgumentError("QuantoConfig.activations must be None: activations are not quantised here")
    return Quanto.read(config)


def _torchao(config: dict[str, Any]) -> Scheme:
    if quant_type(config) == "int4_weight_only":
        return _packed(4, int((config.get("quant_type_kwargs") or {}).get("group_size", 128)))
    return TorchAO.making(config)


def _packed(bits: int, group: int) -> Scheme:
    return Compressed(bits, group, symmetric=False, choices=(bits,))


# Four bits of torchao are saved as compressed-tensors: its own layouts are those of single kernels.
MAKERS = {**READERS, "quanto": _quanto, "torchao": _torchao}


def maker_of(config: Any, dtype: torch.dtype) -> Scheme:
    """The scheme that quantises at load as a public configuration asks; ArgumentError for one that cannot."""
    data = config if isinstance(config, dict) else config.to_dict()
    method = str(data.get("quant_method") or _guessed(data))
    if method not in MAKERS:
        raise ArgumentError(
            f"quantization_config must be of one of the methods {', '.join(MAKERS)}, but is of {method!r}."
            + nearest(method, MAKERS)
        )
    scheme = MAKERS[method](data)
    return replace(scheme, dtype=dtype) if isinstance(scheme, (FourBits, HQQ, TorchAO)) else scheme
