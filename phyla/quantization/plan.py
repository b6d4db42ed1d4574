"""What from_pretrained does about quantisation: read a quantised checkpoint, keep it packed, or make one."""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phyla.blocks.linear import Linear
from phyla.checkpoints.state import Layout, layout_of, saves_prefix
from phyla.checkpoints.weights import HQQ_FILE, WEIGHT_FILES, Weights
from phyla.errors import ArgumentError, CorruptFileError
from phyla.quantization.configs import BitsAndBytesConfig, QuantizationConfig, config_of
from phyla.quantization.experts import PackedExperts
from phyla.quantization.linear import PackedParts, QuantizedLinear
from phyla.quantization.quanto import QMAP, kind_of
from phyla.quantization.scheme import Scheme
from phyla.quantization.view import QuantizedWeights, public_shapes, turned_names

KEY = "quantization_config"
# Fields that name public modules which stay dense, whatever the settings call them.
_SKIPPED = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules", "ignore")


@dataclass
class QuantizationPlan:
    """reader: of a quantised checkpoint. asked: settings of the call. packed: whether weights stay packed."""

    reader: Scheme | None = None
    asked: QuantizationConfig | None = None
    stored: QuantizationConfig | None = None
    packed: bool = False

    @classmethod
    def of(
        cls, config: Any, source: str | os.PathLike, asked: Any, shorthand: dict[str, Any], packed: bool,
        path: Path | None = None,
    ) -> "QuantizationPlan":  # fmt: skip
        """From the checkpoint's configuration and the call; ConfigError or ArgumentError for what cannot be.

        shorthand: load_in_4bit, load_in_8bit and other fields of BitsAndBytesConfig that the call has. path:
        where the checkpoint's files lie.
        """
        if shorthand.get("load_in_4bit") or shorthand.get("load_in_8bit"):
            if asked is not None:
                raise ArgumentError(
                    "from_pretrained takes load_in_4bit/8bit or quantization_config, but got both"
                )
            asked = BitsAndBytesConfig(**shorthand)
        asked = None if asked is None else config_of(asked)
        if isinstance(asked, BitsAndBytesConfig) and not asked.is_quantizable():
            asked = None
        found = _stored(config) or _told_by_files(path)
        if found is None:
            return cls(asked=asked, packed=packed)
        from phyla.quantization.methods import reader_of  # all formats: only where one is read

        stored = config_of(found) if _is_known(found) else None
        reader = reader_of(found, os.fspath(source))
        if asked is not None and asked.quant_method != reader.method:
            raise ArgumentError(
                f"{os.fspath(source)} is quantised by {reader.method} already and cannot be by "
                f"{asked.quant_method}: leave quantization_config out, or save it dense first"
            )
        wanted = packed or (asked is not None and not getattr(asked, "dequantize", False))
        return cls(reader, asked, stored, wanted and reader.linear)

    def open(self, weights: Weights) -> Weights:
        """The weights as a dense checkpoint's."""
        return weights if self.reader is None else QuantizedWeights(weights, self.reader)

    def install(self, model: Any, weights: Weights, layout: Layout, dtype: torch.dtype) -> set[str]:
        """Packed modules where they are wanted; the paths of their weights."""
        if isinstance(weights, QuantizedWeights):
            weights.turned = turned_names((*layout.lines(True), *layout.lines(False)))
            weights.shapes = public_shapes(model, layout, weights.infos)
        settings = self.asked or self.stored
        compute = getattr(settings, "_computes_in", None)
        if self.reader is not None:
            if not self.packed:
                return set()
            return model._install_quantized(weights, layout, dtype, compute=compute)
        if self.asked is None:
            return model._install_packed(weights, layout, dtype) if self.packed else set()
        if weights.config is not None:
            raise ArgumentError(
                "a GGUF file is quantised already: pass quantized=True to keep its blocks packed"
            )
        skipped = next((v for k in _SKIPPED if (v := getattr(self.asked, k, None)) is not None), None)
        from phyla.quantization.methods import maker_of

        scheme = maker_of(self.asked, dtype)
        return model._install_quantized(weights, layout, dtype, scheme, skipped, compute)

    def finish(self, model: Any) -> None:
        """Say on the model and its configuration what has become of it."""
        for holder in (model.config, model.config.get_text_config()):
            holder.__dict__.pop(KEY, None)
        if any(isinstance(module, PackedParts) for module in model.modules()):
            settings = self.asked if self.reader is None else self.stored
            model.config.quantization_config = settings
            model.is_quantized, model.quantization_method = True, settings.quant_method  # type: ignore[union-attr]
            model.is_loaded_in_4bit = bool(getattr(settings, "load_in_4bit", False))
            model.is_loaded_in_8bit = bool(getattr(settings, "load_in_8bit", False))


def _stored(config: Any) -> dict[str, Any] | None:
    """The quantization_config of a configuration or of its text part, as plain data."""
    for holder in (config, config.get_text_config()):
        found = holder.__dict__.get(KEY)
        if found is not None:
            return found if isinstance(found, dict) else found.to_dict()
    return None


def _told_by_files(path: Path | None) -> dict[str, Any] | None:
    """What the files of Quanto and HQQ say of themselves, whose own configurations name no method."""
    if path is None or not path.is_dir():
        return {"quant_method": "hqq"} if path is not None and path.name == HQQ_FILE else None
    if (path / QMAP).is_file():
        try:
            return {"quant_method": "quanto", "weights": kind_of((path / QMAP).read_bytes())}
        except (ValueError, AttributeError) as error:
            raise CorruptFileError(
                f"{path / QMAP} must be JSON that names weights, but fails: {error}; download it again"
            ) from None
    others = [name for name in WEIGHT_FILES if name != HQQ_FILE and (path / name).exists()]
    return {"quant_method": "hqq"} if (path / HQQ_FILE).is_file() and not others else None


def _is_known(data: dict[str, Any]) -> bool:
    from phyla.quantization.configs import CLASSES

    return data.get("quant_method") in CLASSES or "quant_method" not in data


def saved_config(model: Any) -> dict[str, Any] | None:
    """The quantization_config that a model's own files carry; None where nothing is packed."""
    packed = next((m for m in model.modules() if isinstance(m, PackedParts)), None)
    if packed is None:
        return None
    settings, scheme = model.config.__dict__.get(KEY), packed.scheme
    if settings is not None and not isinstance(settings, dict):
        settings = settings.to_dict()
    if settings is None or settings.get("quant_method") != scheme.method:
        settings = scheme.config()
    settings = scheme.completed(settings)
    return None if settings is None else {**settings, scheme.dense_maps: dense_maps(model)}


def saved_beside(model: Any, names: Collection[str]) -> tuple[dict[str, str], dict[str, bytes]]:
    """(notes for the header of weight files, small files) that go with packed weights of these names."""
    if not any(isinstance(module, PackedParts) for module in model.modules()):
        return {}, {}
    layout, notes, maps, schemes = layout_of(model), {}, {}, []
    for line in layout.lines(saves_prefix(model)):
        for name, packed in _packed_by(line, model):
            schemes.append(packed.scheme)
            maps[name.removesuffix(".weight")] = packed.parts
            note = schemes[-1].note()
            if note is not None:
                notes[name] = note
    if notes:
        parts = {f"{path}.{leaf}" for path in maps for leaf in schemes[0].leaves}
        notes |= dict.fromkeys(set(names) - parts, '{"_type": "Tensor"}')
        notes["tensor_names"] = json.dumps(sorted(notes))
    return notes, schemes[0].files(maps) if schemes else {}


def _packed_by(line: Any, model: Any) -> list[tuple[str, PackedParts]]:
    """Public names of the packed weights that a line fills, with them."""
    owner, _, leaf = line.ours[0].rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, QuantizedLinear) and leaf == "weight":
        return [(line.theirs[0], module.packed)]
    experts = module._modules.get(leaf)
    return list(zip(line.theirs, experts.held, strict=True)) if isinstance(experts, PackedExperts) else []


def dense_maps(model: Any) -> list[str]:
    """Public paths of the linear maps that are not packed, and of such experts, which are stacks of maps."""
    from phyla.checkpoints.ops import Stack, Swapped

    dense = {f"{path}.weight" for path, module in model.named_modules() if type(module) is Linear}
    lines = layout_of(model).lines(saves_prefix(model))
    stacks = [li for li in lines if isinstance(li.op, (Stack, Swapped)) and not _packed_by(li, model)]
    kept = [li for li in lines if set(li.ours) & dense] + stacks
    return sorted({name.removesuffix(".weight") for line in kept for name in line.theirs})


def dequantize(self: Any) -> nn.Module:
    """Expand every packed linear map in place, into the model's dtype; the model itself."""
    dtype = self.dtype
    for path, module in list(self.named_modules()):
        if isinstance(module, QuantizedLinear):
            new = Linear(module.in_features, module.out_features, bias=module.bias is not None)
            new.weight = nn.Parameter(module.dense(dtype), requires_grad=False)
            if module.bias is not None:
                new.bias = module.bias
            new.register_module("site", module.site)
            parent, _, name = path.rpartition(".")
            setattr(self.get_submodule(parent), name, new.train(module.training))
        elif isinstance(module, PackedExperts):
            parent, _, name = path.rpartition(".")
            delattr(self.get_submodule(parent), name)
            weight = nn.Parameter(module.dense(dtype), requires_grad=False)
            setattr(self.get_submodule(parent), name, weight)
    for holder in (self.config, self.config.get_text_config()):
        holder.__dict__.pop(KEY, None)
    for name in ("is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        self.__dict__.pop(name, None)
    return self
